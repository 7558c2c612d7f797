"""Length, rates, groups and weights of a training, checked before it starts."""

from collections import OrderedDict

import pytest
import torch
from mmcv.runner import build_optimizer
from mmdet3d.models import build_model
from own_config import write_config

from aqr_model.engine.optim.param_groups import make_optimizer, matching_key
from aqr_model.preflight.checks import preflight
from aqr_model.preflight.reading import load_config


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Findings of a config with a few lines of its own, by their keys."""
    monkeypatch.chdir(tmp_path)

    def run(text="", **options):
        found = preflight(load_config(write_config(tmp_path, text, **options)))
        return (
            {error.key: error.text for error in found.errors},
            {warning.key.removeprefix(KEYS): warning.text for warning in found.warnings},
        )

    return run


KEYS = "optimizer.paramwise_cfg.custom_keys."


def custom_keys(**entries):
    return f"optimizer = dict(paramwise_cfg=dict(custom_keys={entries!r}))\n"


def test_a_config_that_can_start_has_nothing_to_be_said(check):
    assert check() == ({}, {})
    assert check(base="cmt_nano.py") == ({}, {})


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        (
            "total_epochs = None\nrunner = dict(type='IterBasedRunner', max_iters=20)\n",
            "total_epochs",
            "`runner.max_iters` (20) is not read",
        ),
        ("total_epochs = None\n", "total_epochs", "Write `total_epochs = EPOCHS`"),
        ("evaluation = dict(rungs=[0.5, 0.25, 1.0])\n", "evaluation", "rungs must rise"),
        ("evaluation = dict(rungs=[0.5, 1.0])\n", "evaluation", "one share a rung"),
        ("lr_config = dict(_delete_=True, policy='stepp', step=[8])\n", "lr_config", "stepp"),
        ("lr_config = dict(step_ratio_ups=0.3)\n", "lr_config", "step_ratio_ups"),
        ("momentum_config = dict(policy='cyclic', ratios=(1, 1))\n", "momentum_config", "ratios"),
        ("fp16 = dict(loss_scale=-1)\n", "fp16", "`loss_scale` must be"),
        ("fp16 = dict(loss_scale=dict(mode='dynamic'))\n", "fp16", "mode"),
        ("bf16 = True\nfp16 = dict()\n", "fp16", "one of `precision`, `bf16`"),
        ("precision = dict(images='bfloat16')\n", "precision", "'bfloat16'"),
        ("precision = 'bf16'\n", "precision", "must be a dict"),
        (
            "precision = dict(bev='bf16')\n"
            "optimizer_config = dict(type='CustomFp16OptimizerHook')\n",
            "optimizer_config",
            "Write `precision = None` to keep `optimizer_config.type = 'CustomFp16OptimizerHook'`",
        ),
        ("data = dict(samples_per_gpu=0)\n", "data.samples_per_gpu", "above 0"),
        ("total_epochs = 'many'\n", "total_epochs", "a number above 0"),
        (
            "lr_config = dict(_delete_=True, policy='CosineAnnealing', min_lr=0,"
            " min_lr_ratio=0.1)\n",
            "lr_config",
            "it does not take {'min_lr': 0, 'min_lr_ratio': 0.1} together",
        ),
        (
            "lr_config = dict(_delete_=True, policy='CosineRestart', periods=[1], min_lr=0)\n",
            "lr_config",
            "exceeds cumulative_periods",
        ),
        ("freeze = ['pts_backbon', 'pts_neck']\n", "freeze", "'pts_backbon'"),
        ("freeze = ['img_backbone', 'img_neck', 'pts_voxel_encoder', 'pts_backbone', 'pts_neck', "
         "'pts_bbox_head']\n", "optimizer", "parameters that train"),
        ("optimizer = dict(betas=0.9)\n", "optimizer", "AdamW: 'float' object"),
        ("optimizer = dict(momentum=0.9)\n", "optimizer", "momentum"),
        ("optimizer = dict(type='AdamV')\n", "optimizer", "AdamV"),
        (
            custom_keys(transformer={"lr_mult_schedule": {"type": "cosine", "start_value": 1}}),
            KEYS[:-1],
            "lacks end_value",
        ),
        (
            "model = dict(pts_bbox_head=dict(modulator_config=dict(residual_weight=None,\n"
            "    residual_schedule=dict(_delete_=True, type='cosine', start_value=0.7,\n"
            "    end_value=0.4, warmup_epochs=3))))\n",
            "model",
            "must end behind its warm-up",
        ),
    ],
)  # fmt: skip
def test_what_cannot_start_is_refused_before_it_does(check, text, key, said):
    errors, _ = check(text)
    assert list(errors) == [key]
    assert said in errors[key]


@pytest.mark.parametrize(
    "text",
    [
        "lr_config = dict(_delete_=True, policy='OneCycle', max_lr=1e-3, total_steps=90)\n",
        "lr_config = dict(_delete_=True, policy='CosineRestart', periods=[90], min_lr=0,"
        " by_epoch=False)\n",
        "lr_config = dict(_delete_=True, policy='cyclic', cyclic_times=50)\n",
        "evaluation = dict(_delete_=True, interval=1, by_epoch=False)\n",
    ],
)
def test_what_counts_steps_is_not_refused_while_nobody_has_counted_them(check, text):
    assert check(text) == ({}, {})


def test_all_of_it_comes_at_once(check):
    errors, _ = check(
        "total_epochs = 0\nseed = 'a'\nlr_config = dict(policy='poly2')\nresume_from = 'x.pth'\n"
        "model = dict(img_neck=dict(norm_evals=True))\nload_from = 'gone.pth'\n"
        "data = dict(train=dict(classses=[]))\n"
    )
    assert errors.keys() == {
        *("total_epochs", "seed", "lr_config", "resume_from", "model.img_neck.norm_evals"),
        *("load_from", "data.train.classses"),
    }


def test_a_runner_that_says_another_length_is_told_what_decides(check):
    _, warnings = check("runner = dict(type='EpochBasedRunner', max_epochs=20)\n")
    assert warnings == {"runner.max_epochs": "is 20, but `total_epochs` (2) decides."}


def test_a_hook_of_the_optimizer_that_is_not_run_is_named(check):
    _, warnings = check("optimizer_config = dict(type='MyHook')\n")
    assert "MyHook is not run" in warnings["optimizer_config.type"]
    assert check("optimizer_config = dict(type='GradientCumulativeOptimizerHook')\n") == ({}, {})


# --- entries of custom_keys ----------------------------------------------------------------------


def test_entries_that_change_nothing_are_named_with_what_decides(check):
    errors, warnings = check(
        custom_keys(
            query_embed={"lr_mult": 0.5},
            reference_point={"lr_mult": 0.5},
            weight_renderer={"lr_mult": 8.0},
            weight_predictor={"lr_mult": 2.0},
            pts_neckk={"lr_mult": 3.0},
        )
    )
    assert errors == {}
    assert warnings == {
        "query_embed": "changes nothing: no parameter of the model has `query_embed` in its name."
        " Take it out.",
        "pts_neckk": "changes nothing: no parameter of the model has `pts_neckk` in its name. The"
        " nearest name is `pts_neck`. Take it out.",
        "weight_renderer": "changes nothing: `weight_renderer` is a part of the model without"
        " parameters. Take it out.",
        "weight_predictor": "changes nothing: for all 2 parameters with `weight_predictor` in their"
        " name, a longer key decides, `aqr_weight_generator`. Take it out, or write it as"
        " `aqr_weight_generator.weight_predictor`.",
    }


def test_a_rate_of_what_is_frozen_changes_nothing(check):
    _, warnings = check("freeze = ['pts_backbone']\n" + custom_keys(pts_backbone={"lr_mult": 2}))
    assert "all 15 parameters that it decides are frozen" in warnings["pts_backbone"]
    # A rate of 0 says the same as the freezing.
    quiet = "freeze = ['pts_backbone']\n" + custom_keys(pts_backbone={"lr_mult": 0})
    assert check(quiet) == ({}, {})


def test_what_decides_here_decides_in_mmcv(tmp_path, monkeypatch):
    """Every entry that is called idle can change its rate, and mmcv's groups stay as they are."""
    monkeypatch.chdir(tmp_path)
    entries = {
        "transformer": {"lr_mult": 0.3},
        "pts_bbox_head.transformer": {"lr_mult": 0.5},
        "layers.0": {"lr_mult": 0.7},
        "query_embed": {"lr_mult": 5.0},
    }
    cfg = load_config(write_config(tmp_path, custom_keys(**entries)))
    found = preflight(cfg)
    idle = {w.key.removeprefix(KEYS) for w in found.warnings if w.key.startswith(KEYS)}
    assert idle == {"transformer", "query_embed"}
    model = build_model(cfg.model)

    def rates():
        groups = build_optimizer(model, dict(cfg.optimizer)).param_groups
        names = [name for name, _ in model.named_parameters()]
        return dict(zip(names, (group["lr"] for group in groups), strict=True))

    before = rates()
    for key in cfg.optimizer.paramwise_cfg.custom_keys:
        kept = cfg.optimizer.paramwise_cfg.custom_keys[key].lr_mult
        cfg.optimizer.paramwise_cfg.custom_keys[key].lr_mult = kept + 1
        assert (rates() == before) == (key in idle), key
        cfg.optimizer.paramwise_cfg.custom_keys[key].lr_mult = kept


# --- weights -------------------------------------------------------------------------------------


def test_weights_must_be_there_and_fit(check, tmp_path):
    errors, _ = check("load_from = 'none.pth'\n")
    assert "'none.pth' is not there" in errors["load_from"]
    own = build_model(load_config(write_config(tmp_path)).model).state_dict()
    torch.save({"state_dict": own}, "fits.pth")
    assert check("load_from = 'fits.pth'\n") == ({}, {})
    own["pts_bbox_head.reference_points.weight"] = torch.zeros(1, 3)
    torch.save({"state_dict": own}, "other.pth")
    errors, _ = check("load_from = 'other.pth'\n")
    assert "shape of pts_bbox_head.reference_points.weight" in errors["load_from"]
    torch.save(
        OrderedDict((k, v) for k, v in own.items() if "lateral_convs.0.conv.weight" in k),
        "part.pth",
    )
    errors, _ = check("load_from = 'part.pth'\n")
    assert "load_from" in errors
    (tmp_path / "torn.pth").write_bytes(b"PK")
    errors, _ = check("load_from = 'torn.pth'\n")
    assert "torn.pth" in errors["load_from"]


def test_weights_elsewhere_are_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path, "load_from = 'away.pth'\n")
    (tmp_path / "data" / "val.pkl").unlink()
    assert preflight(load_config(path), files=False).errors == []
    assert {error.key for error in preflight(load_config(path)).errors} == {"load_from", "data"}


def test_the_groups_are_those_of_the_training(tmp_path):
    """What preflight asks `matching_key` is what `make_optimizer` does."""
    cfg = load_config(write_config(tmp_path))
    model = build_model(cfg.model)
    keys = cfg.optimizer.paramwise_cfg.custom_keys
    named = {id(p): name for name, p in model.named_parameters()}
    for group in make_optimizer(model, cfg.optimizer).param_groups:
        for parameter in group["params"]:
            name = named[id(parameter)]
            assert group["name"] == (matching_key(name, keys) or name.split(".")[0])
