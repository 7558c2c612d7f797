"""The committed nano checkpoint is what the file beside it says."""

import json
from pathlib import Path

import pytest
import torch
from mmcv import Config
from mmdet3d.models import build_model

from aqr_model.data.prepare import prepare
from aqr_model.data.synthetic import SyntheticConfig, write_dataset
from aqr_model.engine.evaluator import Evaluator
from aqr_model.engine.weights.pretrained import load_pretrained

CHECKPOINT = Path("aqr_model/checkpoints/cmt_nano.pth")
RECORD = json.loads(CHECKPOINT.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Path:
    """The validation scenes of the base domain; they do not depend on how many scenes train."""
    settings = {**RECORD["data"], "train_scenes": 0}
    settings["image_size"] = tuple(settings["image_size"])
    settings["sweep_offsets_s"] = tuple(settings["sweep_offsets_s"])
    root = tmp_path_factory.mktemp("base") / "held_out"
    write_dataset(root, SyntheticConfig(**settings))
    prepare(root, "v1.0-synth")
    return root


def test_it_is_small():
    assert CHECKPOINT.stat().st_size < 5e6


def test_it_scores_what_its_record_says(held_out):
    cfg = Config.fromfile(RECORD["config"])
    cfg.data.val.data_root = str(held_out)
    cfg.data.val.ann_file = str(held_out / "nuscenes_infos_synth_val.pkl")
    model = build_model(cfg.model)
    assert load_pretrained(model, CHECKPOINT) == ()
    scores = Evaluator(cfg, device=torch.device("cpu")).score(model)
    assert scores["val/nds"] >= 0.40, "good enough to start from"
    # Another processor rounds differently, which can move a detection across a threshold.
    for name, value in RECORD["scores"].items():
        assert scores[name] == pytest.approx(value, abs=0.01), name


def test_it_fits_the_aqr_config_with_only_aqr_fresh():
    model = build_model(Config.fromfile("aqr_model/configs/cmt_aqr_nano.py").model)
    fresh = load_pretrained(model, CHECKPOINT)
    assert fresh
    assert all(name.startswith("pts_bbox_head.aqr_weight_generator.") for name in fresh)
