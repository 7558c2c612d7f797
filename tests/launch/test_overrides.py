import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aqr_model.knobs import KNOBS
from launch.cli import app
from launch.overrides import READ_BY_TRAINER, keys_of, unknown_overrides

BASE = {
    "model": {
        "type": "CmtDetector",
        "pts_bbox_head": {
            "type": "CmtHead",
            "enable_aqr": True,
            "aqr_config": {"window_sizes": [5, 3]},
            "loss_cls": {"type": "FocalLoss", "loss_weight": 2.0},
        },
        "train_cfg": {"pts": {"out_size_factor": 8}},
    },
    "optimizer": {
        "type": "AdamW",
        "lr": 1e-4,
        "paramwise_cfg": {"custom_keys": {"img_backbone": {"lr_mult": 0.1}}},
    },
    "data": {
        "samples_per_gpu": 2,
        "train": {"type": "CBGSDataset", "dataset": {"type": "NuScenes", "ann_file": "a.pkl"}},
    },
    "pipeline": [{"type": "Load", "dim": 5}, {"type": "Crop", "size": 3}],
    "total_epochs": 6,
}


def refused(overrides):
    return {path[2]: message for path, message in unknown_overrides(overrides, BASE)}


def test_keys_that_are_there_are_taken():
    overrides = {
        "data.samples_per_gpu": 4,
        "pipeline.1.size": 2,
        "model.pts_bbox_head": {"loss_cls": {"loss_weight": 1.0}},
        "model.pts_bbox_head.aqr_config.window_sizes.0": 7,
    }
    assert refused(overrides) == {}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("data.samples_per_gpus", "data.samples_per_gpu"),
        ("data.sample_per_gpu", "data.samples_per_gpu"),
        ("totel_epochs", "total_epochs"),
        ("optimzer.lr", "optimizer"),
        ("optimizer_confg.cumulative_iters", "optimizer_config"),
        ("optimizer_config.cumulative_iter", "optimizer_config.cumulative_iters"),
        ("checkpoint_config.intervall", "checkpoint_config.interval"),
        ("model.pts_bbox_head.enable_aqrs", "model.pts_bbox_head.enable_aqr"),
        ("model.pts_bbox_hed.enable_aqr", "model.pts_bbox_head"),
        ("model.train_cfg.pts.out_sizefactor", "model.train_cfg.pts.out_size_factor"),
        ("pipeline.1.sizes", "pipeline.1.size"),
        ("optimizer.paramwise_cfg.custom_key.neck", "optimizer.paramwise_cfg.custom_keys"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_name(key, meant):
    (message,) = refused({key: 1}).values()
    assert "must exist in the config" in message
    assert f"but got {key!r}; did you mean {meant!r}?" in message
    assert "a config file" in message


def test_a_misspelt_key_inside_a_dict_is_found_and_placed_at_its_override():
    found = refused({"data": {"samples_per_gpus": 4, "samples_per_gpu": 4}})
    assert list(found) == ["data"]
    assert "but got 'data.samples_per_gpus'; did you mean 'data.samples_per_gpu'?" in found["data"]


def test_a_dict_that_replaces_the_one_there_may_hold_anything():
    assert refused({"optimizer": {"_delete_": True, "type": "SGD", "momentum": 0.9}}) == {}


@pytest.mark.parametrize(
    "key",
    [
        "optimizer.paramwise_cfg.custom_keys.pts_neck.lr_mult",
        "optimizer.weight_decay",  # an argument of AdamW
        "data.train.dataset.load_interval",
        "model.pts_bbox_head.visualization_interval",
        "optimizer_config.cumulative_iters",
        "optimizer_config",
        "fp16.loss_scale",
        "bf16",
        "lr_config.warmup_iters",
        "seed",
    ],
)
def test_new_keys_that_somebody_reads_are_taken(key):
    assert refused({key: 1}) == {}


def test_every_key_of_a_knob_may_be_set():
    keys = [key for knob in KNOBS.values() for key in knob.keys]
    assert keys
    assert refused(dict.fromkeys(keys, 1)) == {}


def test_what_the_trainer_reads_at_the_top_is_listed():
    folder = Path(__file__).parents[2] / "aqr_model"
    texts = [path.read_text() for path in folder.rglob("*.py")]
    read = {name for text in texts for name in re.findall(r'\bcfg\.get\("(\w+)"', text)}
    assert len(read) > 10
    assert read - set(READ_BY_TRAINER[""]) == set()


def test_keys_of_a_config():
    keys = keys_of(BASE)
    assert "model.pts_bbox_head.loss_cls.loss_weight" in keys
    assert "pipeline.1.size" in keys
    assert "model.pts_bbox_head.aqr_config.window_sizes.0" not in keys
    assert len(set(keys)) == len(keys)


SPEC = """\
name: demo
train:
  config: base.py
  epochs: 2
  overrides: {data.samples_per_gpus: 4}
objective: {metric: NDS, noise: 0.002}
space:
  residual_weight: {low: 0.3, high: 0.9}
  model.pts_bbox_head.loss_cls.loss_wight: {low: 1.0, high: 3.0}
budget: {trials: 2}
"""


def test_a_spec_names_both_mistakes_at_once_with_what_was_meant(tmp_path, monkeypatch):
    lines = [f"{name} = {value!r}" for name, value in BASE.items() if name != "pipeline"]
    text = "\n".join(lines)
    (tmp_path / "base.py").write_text(text.replace("'type': 'NuScenes'", "'name': 'n'"))
    (tmp_path / "demo.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["plan", "demo.yaml"])
    assert shown.exit_code == 2
    said = " ".join(shown.stderr.split())
    assert "did you mean 'data.samples_per_gpu'?" in said
    assert "did you mean 'model.pts_bbox_head.loss_cls.loss_weight'?" in said
