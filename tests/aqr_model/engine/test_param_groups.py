import pytest
import torch
from mmcv import Config
from mmcv.runner import build_optimizer
from mmdet3d.models import build_model
from torch import nn

from aqr_model.aqr import FeatureModulator
from aqr_model.engine.optim.lr_schedule import Schedule
from aqr_model.engine.optim.param_groups import Rates, make_optimizer, matching_key


def model():
    torch.manual_seed(0)
    parts = {
        "img_backbone": nn.Linear(3, 3),
        "head": nn.ModuleDict({"transformer": nn.Linear(3, 2)}),
    }
    return nn.ModuleDict(parts)


CONFIG = {
    "type": "AdamW",
    "lr": 0.1,
    "weight_decay": 0.01,
    "paramwise_cfg": {
        "bias_lr_mult": 2.0,
        "custom_keys": {
            "img_backbone": {"lr_mult": 0.1, "decay_mult": 5},
            "transformer": {"lr_mult": 0.8},
            "weight_renderer": {"lr_mult": 8.0},
        },
    },
}


def rates_of(optimizer, config=CONFIG):
    """Rates of 10 steps in 4 epochs; each step doubles the rate and halves the momentum."""
    each_step = {"policy": "step", "step": 1, "by_epoch": False}
    schedule = Schedule(
        optimizer,
        lr_config={**each_step, "gamma": 2.0},
        momentum_config={**each_step, "gamma": 0.5},
        total_steps=10,
        total_epochs=4.0,
        steps_per_epoch=3,
    )
    return Rates(optimizer, config, schedule, total_epochs=4.0)


def test_the_longest_key_decides():
    keys = ("head", "head.transformer", "a")
    assert matching_key("head.transformer.weight", keys) == "head.transformer"
    assert matching_key("head.norm.weight", keys) == "head"
    assert matching_key("neck.weight", ("head",)) is None


def test_groups_have_names_and_mmcvs_settings():
    net = model()
    groups = make_optimizer(net, CONFIG).param_groups
    assert [(g["name"], len(g["params"])) for g in groups] == [
        ("img_backbone", 2),
        ("transformer", 2),
    ]
    assert [g["lr"] for g in groups] == pytest.approx([0.01, 0.08])
    assert [g["weight_decay"] for g in groups] == pytest.approx([0.05, 0.01])


def test_groups_update_as_mmcvs_do():
    config = {**CONFIG, "paramwise_cfg": {"bias_lr_mult": 2.0, "norm_decay_mult": 0.0}}
    ours, theirs = model(), model()
    optimizers = [make_optimizer(ours, config), build_optimizer(theirs, Config(config)._cfg_dict)]
    assert len(optimizers[0].param_groups) == 4
    for _ in range(3):
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            net["head"]["transformer"](net["img_backbone"](torch.ones(1, 3))).sum().backward()
            optimizer.step()
    for name, value in ours.state_dict().items():
        assert value.equal(theirs.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "count"),
    [("cmt_voxel0100_r50_800x320_cbgs", 422), ("cmt_voxel0075_vov_1600x640_cbgs", 592)],
)
def test_every_parameter_of_a_public_config_has_mmcvs_settings(name, count):
    cfg = Config.fromfile(f"aqr_model/configs/{name}.py")
    net = build_model(cfg.model)

    def settings(optimizer):
        names = {id(p): n for n, p in net.named_parameters()}
        return {
            names[id(p)]: (group["lr"], group["weight_decay"], group["betas"], group["eps"])
            for group in optimizer.param_groups
            for p in group["params"]
        }

    ours, theirs = settings(make_optimizer(net, cfg.optimizer)), build_optimizer(net, cfg.optimizer)
    assert ours == settings(theirs)
    assert len(ours) == count
    base = cfg.optimizer.lr
    assert ours["img_backbone." + ("conv1.weight" if "r50" in name else "stem.stem_1/conv.weight")][
        :2
    ] == pytest.approx((0.01 * base, 0.05))
    assert ours["img_neck.fpn_convs.0.conv.bias"][:2] == pytest.approx((0.1 * base, 0.01))
    assert ours["pts_bbox_head.reference_points.weight"][:2] == (base, 0.01)


def test_what_aqr_learns_around_1_does_not_decay():
    head = nn.ModuleDict({"feature_modulator": FeatureModulator(learnable_modulation=True)})
    net = nn.ModuleDict({"pts_bbox_head": head, "img_backbone": nn.Linear(1, 1)})
    config = {"type": "AdamW", "lr": 0.1, "weight_decay": 0.5}
    for keys in ({}, {"feature_modulator": {"lr_mult": 2.0}}):
        optimizer = make_optimizer(net, {**config, "paramwise_cfg": {"custom_keys": keys}})
        decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
        assert decays == {next(iter(keys), "pts_bbox_head"): 0.0, "img_backbone": 0.5}
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert head["feature_modulator"].modulation_scale.item() == 1.0


def test_rates_follow_schedule_and_multiplier():
    config = Config(CONFIG)._cfg_dict.to_dict()
    config["paramwise_cfg"]["custom_keys"]["transformer"]["lr_mult_schedule"] = {
        "type": "staged",
        "stages": [(0, 0.5), (2, 0.25)],
    }
    optimizer = make_optimizer(model(), config)
    rates = rates_of(optimizer, config)
    rates.set(1, 1.99)
    # The schedule stands in place of lr_mult.
    assert rates.by_name() == pytest.approx({"img_backbone": 0.02, "transformer": 0.1})
    assert all(group["betas"] == (0.45, 0.999) for group in optimizer.param_groups)
    rates.set(1, 2.0)
    assert rates.by_name() == pytest.approx({"img_backbone": 0.02, "transformer": 0.05})


def test_momentum_of_sgd_follows_its_schedule():
    optimizer = make_optimizer(model(), {"type": "SGD", "lr": 0.1, "momentum": 0.8})
    rates_of(optimizer, {}).set(1, 0.0)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.4, 0.4]


def test_a_resumed_optimizer_keeps_its_groups():
    source, target = make_optimizer(model(), CONFIG), make_optimizer(model(), CONFIG)
    rates_of(source).set(3, 0.0)
    rates = rates_of(target)
    target.load_state_dict(source.state_dict())
    assert rates.by_name() == pytest.approx({"img_backbone": 0.08, "transformer": 0.64})
    rates.set(0, 0.0)
    assert rates.by_name() == pytest.approx({"img_backbone": 0.01, "transformer": 0.08})
    assert all(group["betas"] == (0.9, 0.999) for group in target.param_groups)
