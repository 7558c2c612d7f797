"""The detector of a config: built on the meta device, or every reason why not."""

import logging
import time
from pathlib import Path

import pytest
import torch
from mmdet3d.models import BACKBONES, build_model
from own_config import write_config
from torch import nn

from aqr_model.preflight.findings import Findings
from aqr_model.preflight.model import check_model
from aqr_model.preflight.reading import apply_overrides, load_config
from aqr_model.preflight.types import unknown_types

CONFIGS = Path("aqr_model/configs")
SHIPPED = sorted(path.name for path in CONFIGS.glob("*.py"))
NANO = "cmt_aqr_nano.py"


def checked(overrides=None, name=NANO, **options):
    cfg = load_config(CONFIGS / name)
    apply_overrides(cfg, overrides or {})
    findings = Findings()
    return check_model(dict(cfg.items()), findings, **options), findings


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_detector_is_built_without_memory_and_stays_what_it_is(name):
    cfg = load_config(CONFIGS / name)
    before = repr(cfg)
    findings = Findings()
    model = check_model(dict(cfg.items()), findings)
    assert findings == Findings()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    real = build_model(cfg.model)
    assert [(n, p.shape, p.requires_grad) for n, p in model.named_parameters()] == [
        (n, p.shape, p.requires_grad) for n, p in real.named_parameters()
    ]
    assert repr(load_config(CONFIGS / name)) == before


def test_the_largest_detector_is_checked_faster_than_it_is_built():
    name = "cmt_aqr_voxel0075_vov_1600x640_cbgs.py"
    checked(name=name)
    start = time.process_time()  # whatever else the machine does
    checked(name=name)
    middle = time.process_time()
    build_model(load_config(CONFIGS / name).model).init_weights()
    assert middle - start < time.process_time() - middle


def test_every_reason_comes_at_once_with_its_key():
    model, findings = checked(
        {
            "model.img_backbone.depths": 50,
            "model.pts_backbone.frozen_stages": 2,
            "model.pts_neck.type": "SECONDFPM",
            "model.pts_bbox_head.attention_bias_config": None,
            "model.pts_bbox_head.transformer.decoder.transformerlayers.operation_order": ("norm",),
            "model.pts_voxel_layer.max_point": 3,
        }
    )
    assert model is None
    found = {error.key: error.text for error in findings.errors}
    order = "model.pts_bbox_head.transformer.decoder.transformerlayers"
    assert found.keys() == {
        "model.img_backbone.depths",
        "model.pts_backbone.frozen_stages",
        "model.pts_neck",
        "model.pts_bbox_head.attention_bias_config",
        order,
        "model.pts_voxel_layer.max_point",
    }
    assert found["model.img_backbone.depths"] == (
        "must be an argument of ResNet, but it has none of this name (its value here is 50); the"
        " nearest that it has is `depth`. Take it out, or correct its name."
    )
    assert (
        "none of this name (its value here is None)"
        in found["model.pts_bbox_head.attention_bias_config"]
    )
    assert found["model.pts_backbone.frozen_stages"].endswith(
        "Take it out, and write `freeze = ['pts_backbone']` at the top of the config."
    )
    assert "SECONDFPM is not; the nearest name is SECONDFPN" in found["model.pts_neck"]
    assert "nearest that it has is `max_num_points`" in found["model.pts_voxel_layer.max_point"]
    assert found[order].startswith("`operation_order` must be ('self_attn', 'norm',")


def test_without_its_unknown_arguments_the_detector_goes_on_to_be_checked():
    model, findings = checked({"model.pts_bbox_head.attention_bias_config": {"type": "NoSuchPart"}})
    assert [error.key for error in findings.errors] == [
        "model.pts_bbox_head.attention_bias_config"  # and its type is no second mistake
    ]
    assert isinstance(model, nn.Module)


def test_arguments_that_the_parts_of_aqr_do_not_know_are_named_too():
    _, findings = checked({"model.pts_bbox_head.renderer_config.gaussian_sigmas": 2.0})
    (error,) = findings.errors
    assert error.key == "model.pts_bbox_head.renderer_config.gaussian_sigmas"
    assert "WeightRenderer" in error.text
    assert "`gaussian_sigma`" in error.text


def test_an_argument_that_is_missing_is_said_of_its_part():
    cfg = load_config(CONFIGS / NANO)
    del cfg.model.img_neck["num_outs"]
    del cfg.model.pts_bbox_head.transformer.decoder["num_layers"]
    findings = Findings()
    check_model(dict(cfg.items()), findings)
    found = {error.key: error.text for error in findings.errors}
    assert found.keys() == {"model.img_neck", "model.pts_bbox_head.transformer.decoder"}
    assert "missing 1 required positional argument: 'num_outs'" in found["model.img_neck"]


def test_what_a_part_refuses_in_its_own_words_is_passed_on():
    _, findings = checked({"model.pts_bbox_head.num_query": 145})
    (error,) = findings.errors
    assert error.key == "model.pts_bbox_head"
    assert error.text.startswith("`num_query` must be a square for `reference_init='grid'`")


def test_what_a_part_warns_of_is_a_note_and_stays_out_of_the_log(caplog):
    with caplog.at_level(logging.WARNING):
        model, findings = checked({"model.pts_bbox_head.aqr_config.window_sizes": [8, 5]})
    assert model is not None
    assert [note.text.startswith("`window_sizes` [8, 5]") for note in findings.notes] == [True]
    assert caplog.records == []
    assert logging.getLogger("aqr_model").propagate
    assert logging.root.manager.disable == logging.NOTSET


def test_weights_that_a_part_starts_from_must_be_there(tmp_path):
    init = {"type": "Pretrained", "checkpoint": str(tmp_path / "r18.pth")}
    _, findings = checked({"model.img_backbone.init_cfg": init})
    (error,) = findings.errors
    assert error.key == "model.img_backbone.init_cfg.checkpoint"
    assert "r18.pth' is not there" in error.text
    (tmp_path / "r18.pth").touch()
    assert checked({"model.img_backbone.init_cfg": init})[1] == Findings()
    init["checkpoint"] = "torchvision://resnet18"  # fetched when it is needed
    assert checked({"model.img_backbone.init_cfg": init})[1] == Findings()
    away = {
        "model.img_backbone.init_cfg.checkpoint": "away.pth",
        "model.img_backbone.init_cfg.type": "Pretrained",
    }
    assert checked(away, files=False)[1] == Findings()


def test_a_part_that_computes_when_it_is_built_is_built_for_real():
    @BACKBONES.register_module()
    class RatesByDepth(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 1, depth)]

    try:
        model, findings = checked(
            {"model.img_backbone": {"_delete_": True, "type": "RatesByDepth", "depth": 3}}
        )
        assert findings == Findings()
        assert model.img_backbone.rates == [0, 0.5, 1]
        _, findings = checked({"model.img_backbone": {"_delete_": True, "type": "RatesByDepth"}})
        assert [error.key for error in findings.errors] == ["model.img_backbone"]
    finally:
        BACKBONES.module_dict.pop("RatesByDepth")


def test_types_of_schedules_are_none_of_a_registry(tmp_path):
    path = write_config(
        tmp_path,
        "model = dict(img_backbone=dict(type='VovNet'), pts_bbox_head=dict(renderer_config=dict(\n"
        "    max_weight_clamp=None,\n"
        "    clamp_schedule=dict(_delete_=True, type='constant', value=1.5))))\n",
    )
    (found,) = unknown_types(load_config(path))
    assert (found.name, found.place, found.nearest) == ("VovNet", "model.img_backbone", "VoVNet")
    assert unknown_types(load_config(path), sections=("optimizer",)) == ()
