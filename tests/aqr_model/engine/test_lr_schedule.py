"""Rates over a training are those that mmcv's own runner sets, in every policy."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmcv import Config
from mmcv.runner import EpochBasedRunner, Hook
from torch import nn

from aqr_model.engine.optim.lr_schedule import Schedule, make_hooks, policies

EPOCHS, LENGTH = 5, 7
STEPS = EPOCHS * LENGTH
RATIO = {"min_lr_ratio": 0.01}
LR_POLICIES = {
    "fixed": {},
    "step": {"step": [2, 4], "gamma": 0.3},
    "Step": {"step": 3, "by_epoch": False, "min_lr": 0.01},
    "exp": {"gamma": 0.9, "by_epoch": False},
    "poly": {"power": 0.9, "min_lr": 1e-3},
    "inv": {"gamma": 0.1, "power": 2.0, "by_epoch": False},
    "CosineAnnealing": RATIO,
    "FlatCosineAnnealing": {**RATIO, "start_percent": 0.4},
    "CosineRestart": {**RATIO, "periods": [2, 3], "restart_weights": [1, 0.5]},
    "cyclic": {"target_ratio": (6, 1e-4), "cyclic_times": 2, "step_ratio_up": 0.4, "gamma": 0.5},
    "OneCycle": {"max_lr": 0.3, "pct_start": 0.25, "three_phase": True},
    "LinearAnnealing": {"min_lr": 1e-3, "by_epoch": False},
}
MOMENTUM_POLICIES = {
    "step": {"step": [2], "gamma": 0.5},
    "CosineAnnealing": {"min_momentum_ratio": 0.5, "by_epoch": False},
    "LinearAnnealing": {"min_momentum": 0.4},
    "cyclic": {"target_ratio": (0.85 / 0.95, 1), "cyclic_times": 1, "step_ratio_up": 0.4},
    "OneCycle": {"base_momentum": 0.8, "max_momentum": 0.9},
}
WARMUPS = [
    {},
    {"warmup": "constant", "warmup_iters": 5, "warmup_ratio": 0.1},
    {"warmup": "linear", "warmup_iters": 9, "warmup_ratio": 0.001},
    {"warmup": "exp", "warmup_iters": 2, "warmup_ratio": 0.3, "warmup_by_epoch": True},
]


def optimizer(kind=torch.optim.AdamW):
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.02)]
    return kind(groups, lr=0.1)


def rates(one):
    return [(g["lr"], g["betas"][0] if "betas" in g else g["momentum"]) for g in one.param_groups]


def mmcv_runner(one):
    model = nn.Linear(1, 1)
    model.train_step = lambda data, optimizer: {"loss": None, "num_samples": 1}
    logger = logging.getLogger("mmcv-test")
    return EpochBasedRunner(model, optimizer=one, logger=logger, max_epochs=EPOCHS)


def mmcv_rates(lr_config, momentum_config, one):
    """What mmcv's runner sets, step by step."""
    seen = []

    class Keep(Hook):
        def before_train_iter(self, runner):
            seen.append(rates(runner.optimizer))

    runner = mmcv_runner(one)
    runner.register_lr_hook(dict(lr_config))
    runner.register_momentum_hook(None if momentum_config is None else dict(momentum_config))
    runner.register_hook(Keep(), priority="VERY_LOW")
    runner.run([[0] * LENGTH], [("train", 1)])
    return seen


def schedule(
    lr_config, momentum_config=None, one=None, *, steps=STEPS, epochs=EPOCHS, length=LENGTH
):
    return Schedule(
        optimizer() if one is None else one,
        lr_config=lr_config,
        momentum_config=momentum_config,
        total_steps=steps,
        total_epochs=epochs,
        steps_per_epoch=length,
    )


def our_rates(lr_config, momentum_config, one, order):
    ours = schedule(lr_config, momentum_config, one)
    found = {}
    for step in order:
        ours.set(step)
        found[step] = rates(one)
    return [found[step] for step in sorted(found)]


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    monkeypatch.setattr(
        "mmcv.runner.epoch_based_runner.time", SimpleNamespace(sleep=lambda s: None)
    )


@pytest.mark.parametrize("warmup", WARMUPS, ids=lambda w: w.get("warmup", "cold"))
@pytest.mark.parametrize("policy", LR_POLICIES)
def test_learning_rates_are_mmcvs(policy, warmup):
    config = {"policy": policy, **LR_POLICIES[policy], **warmup}
    want = mmcv_rates(config, None, optimizer())
    assert len(want) == STEPS
    assert our_rates(config, None, optimizer(), range(STEPS)) == want


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("policy", MOMENTUM_POLICIES)
def test_momenta_are_mmcvs(policy, kind):
    config = {"policy": policy, **MOMENTUM_POLICIES[policy]}
    lr = {"policy": "fixed"}
    want = mmcv_rates(lr, config, optimizer(kind))
    assert our_rates(lr, config, optimizer(kind), range(STEPS)) == want


def test_every_policy_of_mmcv_is_compared():
    titled = {name.title() if name.islower() else name for name in LR_POLICIES}
    assert titled == set(policies("lr_config")) - {"YOLOX"}  # mmdet's own
    titled = {name.title() if name.islower() else name for name in MOMENTUM_POLICIES}
    assert titled == set(policies("momentum_config"))


@pytest.mark.parametrize("policy", LR_POLICIES)
def test_a_steps_rates_depend_on_no_other_step(policy):
    # A resumed training begins in the middle.
    config = {"policy": policy, **LR_POLICIES[policy], **WARMUPS[2]}
    momentum = {"policy": "cyclic", **MOMENTUM_POLICIES["cyclic"]}
    forwards = our_rates(config, momentum, optimizer(), range(STEPS))
    assert our_rates(config, momentum, optimizer(), range(STEPS - 1, -1, -1)) == forwards


@pytest.mark.parametrize("name", ["r50", "vov"])
def test_the_public_schedules_are_mmcvs_at_every_hundredth(name):
    files = {
        "r50": "cmt_voxel0100_r50_800x320_cbgs.py",
        "vov": "cmt_voxel0075_vov_1600x640_cbgs.py",
    }
    cfg = Config.fromfile(f"aqr_model/configs/{files[name]}")
    one, total = optimizer(), 1000
    ours = schedule(
        cfg.lr_config, cfg.momentum_config, one, steps=total, epochs=cfg.total_epochs, length=50
    )
    runner = mmcv_runner(optimizer())
    runner.register_lr_hook(dict(cfg.lr_config))
    runner.register_momentum_hook(dict(cfg.momentum_config))
    runner._max_iters = total
    runner.call_hook("before_run")
    peak = {"r50": 6, "vov": 8}[name]
    for step in (*range(0, total, total // 100), total - 1):
        runner._iter = step
        runner.call_hook("before_train_iter")
        ours.set(step)
        assert rates(one) == rates(runner.optimizer)
        if step == 400:
            assert rates(one)[0] == pytest.approx((peak * 0.1, 0.9 * 0.85 / 0.95))


def test_a_budget_may_be_a_part_of_an_epoch():
    one = optimizer()
    cosine = {"policy": "CosineAnnealing", "min_lr": 0.0}
    # By iteration: over the whole budget, however short.
    ours = schedule({**cosine, "by_epoch": False}, None, one, steps=4, epochs=0.4, length=10)
    seen = []
    for step in range(4):
        ours.set(step)
        seen.append(rates(one)[0][0])
    assert seen == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)
    # By epoch: a step an epoch, and half an epoch at the end; a length of 1.5 epochs.
    ours = schedule(cosine, None, one, steps=15, epochs=1.5, length=10)
    seen = []
    for step in range(15):
        ours.set(step)
        seen.append(rates(one)[0][0])
    assert seen == pytest.approx([0.1] * 10 + [0.025] * 5)


def test_no_config_keeps_the_rates():
    one = optimizer()
    schedule(None, None, one).set(STEPS - 1)
    assert rates(one) == [(0.1, 0.9), (0.02, 0.9)]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("lr_config", {"policy": "stepp", "step": 3}, r"must be one of CosineAnnealing, .*Step"),
        ("lr_config", {}, "must be one of CosineAnnealing"),
        ("momentum_config", {"policy": "poly"}, "must be one of CosineAnnealing, Cyclic,"),
        (
            "lr_config",
            {"policy": "step", "step": [3], "steps": [3]},
            "unexpected keyword argument 'steps'.* takes .step.*gamma.*min_lr.*all take .by_epoch",
        ),
        ("lr_config", {"policy": "step"}, "policy 'step', but .*missing 1 required"),
        ("lr_config", {"policy": "step", "step": [-1]}, "policy 'step'"),
        ("lr_config", {"policy": "CosineAnnealing"}, "policy 'CosineAnnealing'"),
        ("lr_config", {"policy": "fixed", "warmup": "cubic"}, "constant.*linear.*exp"),
        ("lr_config", {"policy": "cyclic", "step_ratio_up": 1.0}, "step_ratio_up"),
    ],
)
def test_what_mmcv_has_not_is_refused_before_anything_is_built(name, config, message):
    with pytest.raises(ValueError, match=message):
        make_hooks(**{"lr_config": None, "momentum_config": None, name: config})


@pytest.mark.parametrize(
    "config",
    [
        {"policy": "CosineRestart", "periods": [2], "min_lr": 0, "restart_weights": [1]},
        {"policy": "OneCycle", "max_lr": 0.1, "total_steps": 10},
        {"policy": "OneCycle", "max_lr": [0.1]},
        {"policy": "cyclic", "cyclic_times": 100},
    ],
)
def test_a_policy_that_does_not_reach_the_end_is_refused_before_the_first_step(config):
    with pytest.raises(ValueError, match="must hold for the whole training of 35 steps in 5 epoch"):
        schedule(config)


def test_a_resumed_schedule_starts_from_the_rates_of_the_optimizer_that_is_loaded():
    config = {"policy": "exp", "gamma": 0.5, "by_epoch": False}
    source, target = optimizer(), optimizer()
    schedule(config, None, source).set(3)
    ours = schedule(config, None, target)
    target.load_state_dict(source.state_dict())
    ours.set(3)
    assert rates(target) == rates(source)
