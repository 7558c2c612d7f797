import pytest
import torch
from mmcv import Config
from torch import nn

from aqr_model.engine.optim.freezing import Frozen, frozen_report
from aqr_model.engine.optim.param_groups import make_optimizer


def block(channels=2):
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.Dropout())


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.neck, self.head = block(), block(), block()

    def forward(self, x):
        return self.head(self.neck(self.backbone(x)))


def config(**settings):
    return Config({"optimizer": {"type": "AdamW", "lr": 0.1, "weight_decay": 0.1}, **settings})


def trained(cfg):
    """A model before and after three steps, and which of its parameters the optimizer has."""
    torch.manual_seed(0)
    model = Model()
    frozen = Frozen(model, cfg)
    optimizer = make_optimizer(model, cfg.optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        frozen.train_mode()
        optimizer.zero_grad()
        model(torch.randn(4, 2, 3, 3)).square().sum().backward()
        optimizer.step()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in held}
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    return model, names, moved


BN = {"running_mean", "running_var", "num_batches_tracked"}


def test_without_settings_everything_trains():
    model, names, moved = trained(config())
    assert names == {name for name, _ in model.named_parameters()}
    assert names <= moved
    assert {f"neck.1.{buffer}" for buffer in BN} <= moved


def test_a_frozen_module_stays_as_it_was():
    model, names, moved = trained(config(freeze=["backbone", "neck.1"]))
    for kept in ("backbone.", "neck.1."):
        assert not any(name.startswith(kept) for name in names | moved)
    assert {"neck.0.weight", "head.1.running_mean"} <= moved
    assert not model.backbone[2].training, "dropout of a frozen part is off"
    report = frozen_report(model)
    assert (report["backbone"].trainable, report["backbone"].frozen) == (0, 10)
    assert (report["neck"].trainable, report["neck"].frozen) == (6, 4)
    assert [report[part].fixed_norms for part in ("backbone", "neck", "head")] == [1, 1, 0]


def test_fixed_statistics_leave_the_weights_to_learn():
    _, names, moved = trained(config(norm_eval=["neck"]))
    assert not any(f"neck.1.{buffer}" in moved for buffer in BN)
    assert {"neck.1.weight", "neck.0.weight"} <= names & moved


def test_a_multiplier_of_zero_freezes_the_group():
    cfg = config()
    cfg.optimizer.paramwise_cfg = {
        "custom_keys": {"neck": {"lr_mult": 0}, "neck.0.bias": {"lr_mult": 2.0}}
    }
    model, names, moved = trained(cfg)
    kept = {"neck.0.weight", "neck.1.weight", "neck.1.bias"}
    assert not kept & (names | moved)
    assert not any(f"neck.1.{buffer}" in moved for buffer in BN)
    assert "neck.0.bias" in names & moved, "the longer key decides"
    assert all(not model.get_parameter(name).requires_grad for name in kept)


def test_a_scheduled_multiplier_does_not_freeze():
    cfg = config()
    schedule = {"type": "staged", "stages": [(0, 0.0), (1, 1.0)]}
    cfg.optimizer.paramwise_cfg = {
        "custom_keys": {"neck": {"lr_mult": 0, "lr_mult_schedule": schedule}}
    }
    _, names, _ = trained(cfg)
    assert "neck.0.weight" in names


@pytest.mark.parametrize("key", ["freeze", "norm_eval"])
@pytest.mark.parametrize("name", ["necks", ""])
def test_names_must_be_modules(key, name):
    with pytest.raises(ValueError, match=f"`{key}` must name modules .* backbone, neck, head"):
        Frozen(Model(), config(**{key: [name]}))


def test_a_model_without_anything_to_train_is_refused():
    cfg = config(freeze=["backbone", "neck", "head"])
    model = Model()
    Frozen(model, cfg)
    with pytest.raises(ValueError, match="all of this one are frozen"):
        make_optimizer(model, cfg.optimizer)


def test_a_step_of_the_detector_leaves_its_frozen_parts_bit_for_bit(nano_cfg, tmp_path):
    from gang import Recorder

    from aqr_model.engine.setup import build_detector
    from aqr_model.train import train

    settings = {
        "load_from": "aqr_model/checkpoints/cmt_nano.pth",
        "freeze": ["pts_backbone", "pts_neck"],
        "norm_eval": ["pts_voxel_encoder"],
        "model.img_backbone.frozen_stages": 1,
        "model.img_backbone.norm_eval": True,
        "optimizer.paramwise_cfg.custom_keys.shared_conv": {"lr_mult": 0},
        "total_epochs": 0.5,
        "evaluation": {"rungs": [1.0], "val_shares": [1.0]},
    }
    cfg = nano_cfg(**settings)
    model = build_detector(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = Recorder(None)
    train(cfg, workdir=tmp_path, report=report)
    after = torch.load(tmp_path / "final.pth", weights_only=True)["state_dict"]
    moved = {name for name in after if not after[name].equal(before.get(name, after[name]))}
    stem = ("img_backbone.conv1.", "img_backbone.bn1.", "img_backbone.layer1.")
    still = ("pts_backbone.", "pts_neck.", "pts_bbox_head.shared_conv.", *stem)
    assert not [name for name in moved if name.startswith(still)]
    fixed = ("img_backbone.", "pts_voxel_encoder.")
    statistics = {n for n in moved if n.split(".")[-1] in BN}
    assert not [name for name in statistics if name.startswith(fixed)]
    learnt = ("img_backbone.layer2", "img_neck", "pts_voxel_encoder", "pts_bbox_head.transformer")
    assert all(any(name.startswith(part) for name in moved) for part in learnt)
    rates = next(values for _, values in report.logs if "train/loss" in values)
    assert "train/lr/shared_conv" not in rates
    assert "train/lr/pts_backbone" not in rates
    assert rates["train/lr/img_backbone"] > 0
