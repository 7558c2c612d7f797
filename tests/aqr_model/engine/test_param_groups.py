import pytest
import torch
from mmcv import Config
from mmcv.runner import build_optimizer
from torch import nn

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


def rates_of(optimizer, config=CONFIG, total=4.0, lr=lambda s, t: 1.0, momentum=lambda s, t: 1.0):
    return Rates(optimizer, config, total_epochs=total, lr_factor=lr, momentum_factor=momentum)


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


def test_rates_follow_schedule_and_multiplier():
    config = Config(CONFIG)._cfg_dict.to_dict()
    config["paramwise_cfg"]["custom_keys"]["transformer"]["lr_mult_schedule"] = {
        "type": "staged",
        "stages": [(0, 0.5), (2, 0.25)],
    }
    optimizer = make_optimizer(model(), config)
    rates = rates_of(optimizer, config, lr=lambda s, t: 2.0, momentum=lambda s, t: 0.5)
    rates.set(0, 10, 1.99)
    # The schedule stands in place of lr_mult.
    assert rates.by_name() == pytest.approx({"img_backbone": 0.02, "transformer": 0.1})
    assert all(group["betas"] == (0.45, 0.999) for group in optimizer.param_groups)
    rates.set(0, 10, 2.0)
    assert rates.by_name() == pytest.approx({"img_backbone": 0.02, "transformer": 0.05})


def test_momentum_of_sgd_follows_its_schedule():
    optimizer = make_optimizer(model(), {"type": "SGD", "lr": 0.1, "momentum": 0.8})
    rates_of(optimizer, {}, momentum=lambda s, t: 0.5).set(0, 10, 0.0)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.4, 0.4]


def test_a_resumed_optimizer_keeps_its_groups():
    source, target = make_optimizer(model(), CONFIG), make_optimizer(model(), CONFIG)
    rates_of(source, lr=lambda s, t: 3.0).set(0, 1, 0.0)
    target.load_state_dict(source.state_dict())
    rates = rates_of(target)
    assert rates.by_name() == pytest.approx({"img_backbone": 0.03, "transformer": 0.24})
    rates.set(0, 1, 0.0)
    assert rates.by_name() == pytest.approx({"img_backbone": 0.01, "transformer": 0.08})
