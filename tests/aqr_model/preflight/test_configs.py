import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from mmdet3d.models import build_model
from torch import nn

import aqr_model  # noqa: F401  (registers)
from aqr_model.knobs import to_overrides
from aqr_model.preflight.checks import preflight
from aqr_model.preflight.findings import Findings
from aqr_model.preflight.reading import load_config
from aqr_model.preflight.types import unknown_types

CONFIGS = Path("aqr_model/configs")
USERS = Path("tests/data/users")
LOG = Path("../shared/data/logs/aqr_clamp1.5_residual0.7.log")
FULL_SIZE = ("voxel0100_r50_800x320_cbgs", "voxel0075_vov_1600x640_cbgs")
ONE_SENSOR = ("lidar_voxel0075_cbgs", "camera_vov_1600x640_cbgs")
# Every entry that AQR adds, below pts_bbox_head.aqr_weight_generator.
AQR_ENTRIES = {
    "encoder.layers.0.attentions.0.attn.in_proj_weight": [768, 256],
    "encoder.layers.0.attentions.0.attn.in_proj_bias": [768],
    "encoder.layers.0.attentions.0.attn.out_proj.weight": [256, 256],
    "encoder.layers.0.attentions.0.attn.out_proj.bias": [256],
    "encoder.layers.0.ffns.0.layers.0.0.weight": [1024, 256],
    "encoder.layers.0.ffns.0.layers.0.0.bias": [1024],
    "encoder.layers.0.ffns.0.layers.1.weight": [256, 1024],
    "encoder.layers.0.ffns.0.layers.1.bias": [256],
    "encoder.layers.0.norms.0.weight": [256],
    "encoder.layers.0.norms.0.bias": [256],
    "encoder.layers.0.norms.1.weight": [256],
    "encoder.layers.0.norms.1.bias": [256],
    "encoder.post_norm.weight": [256],
    "encoder.post_norm.bias": [256],
    "weight_predictor.weight": [2, 256],
    "weight_predictor.bias": [2],
}


@cache
def built(path: Path) -> nn.Module:
    return build_model(load_config(path).model)


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def golden(name: str) -> dict[str, list[int]]:
    return json.loads(Path(f"tests/data/cmt_{name}.state_dict.json").read_text())


@pytest.mark.parametrize("name", [*FULL_SIZE, *ONE_SENSOR])
def test_the_plain_models_have_exactly_the_public_state_dict(name):
    assert shapes(built(CONFIGS / f"cmt_{name}.py")) == golden(name)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_aqr_adds_exactly_its_own_entries(name):
    ours = shapes(built(CONFIGS / f"cmt_aqr_{name}.py"))
    added = {f"pts_bbox_head.aqr_weight_generator.{k}": v for k, v in AQR_ENTRIES.items()}
    assert ours == golden(name) | added


@pytest.mark.parametrize("name", FULL_SIZE)
def test_aqr_fine_tuning_goes_without_object_sampling_and_else_as_the_base(name):
    def steps(path: Path) -> list:
        return [dict(step) for step in load_config(path).data.train.dataset.pipeline]

    plain, tuned = steps(CONFIGS / f"cmt_{name}.py"), steps(CONFIGS / f"cmt_aqr_{name}.py")
    assert [step for step in plain if step["type"] != "UnifiedObjectSample"] == tuned
    assert len(plain) == len(tuned) + 1


@pytest.mark.parametrize("name", FULL_SIZE)
def test_backbones_and_necks_do_not_move_in_fine_tuning(name):
    from aqr_model.engine.optim.freezing import Frozen

    cfg = load_config(CONFIGS / f"cmt_aqr_{name}.py")
    model = build_model(cfg.model)
    frozen = Frozen(model, cfg)
    frozen.train_mode()
    report = frozen.report()
    still = {"img_backbone", "img_neck", "pts_middle_encoder", "pts_backbone", "pts_neck"}
    assert {part for part, found in report.items() if not found.trainable} == still
    assert all(report[part].fixed_norms == report[part].norms for part in still)
    assert report["pts_bbox_head"].frozen == report["pts_bbox_head"].fixed_norms == 0


@pytest.mark.parametrize("name", ["r50_base", "r50_aqr", "r50_aqr_clamp"])
def test_configs_in_the_users_vocabulary_load_as_they_are(name):
    cfg = load_config(USERS / f"{name}.py")
    assert cfg.plugin_dir == "projects/mmdet3d_plugin/"
    assert preflight(cfg, files=False).errors == []
    ours = shapes(built(USERS / f"{name}.py"))
    twin = "cmt_" if name == "r50_base" else "cmt_aqr_"
    assert ours == shapes(built(CONFIGS / f"{twin}{FULL_SIZE[0]}.py"))


def test_what_of_a_users_config_does_nothing_is_named_with_its_line():
    found = preflight(load_config(USERS / "r50_aqr.py"), files=False)
    keys = "optimizer.paramwise_cfg.custom_keys"
    parts = ("pts_voxel_encoder", "query_embed", "weight_renderer", "feature_modulator")
    assert [warning.key for warning in found.warnings] == [
        "log_config.hooks",  # TensorBoard's
        *(f"{keys}.{part}" for part in parts),
    ]
    lines = (USERS / "r50_aqr.py").read_text().splitlines()
    for part, warning in zip(parts, found.warnings[1:], strict=True):
        assert f'"{part}"' in lines[int(warning.at.rpartition(" ")[2]) - 1]
    assert ["[8, 5] are read as [9, 5]" in note.text for note in found.notes] == [True]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_of_the_shipped_configs_everything_does_something(path):
    found = preflight(load_config(path), files=False)
    assert found == Findings()


def test_the_numbers_of_a_users_config_arrive():
    head = built(USERS / "r50_aqr_clamp.py").pts_bbox_head
    assert head.weight_renderer.max_weight_clamp == 2.0
    assert head.feature_modulator.residual_weight == 0.65
    generator = head.aqr_weight_generator
    assert (generator.camera_window, generator.bev_window) == (9, 5)  # what [8, 5] meant
    assert generator.encoder.layers[0].attentions[0].attn.num_heads == 4


def test_a_users_config_whose_freezing_is_lost_is_refused():
    with pytest.raises(ValueError, match=r"model\.img_backbone\.frozen_stages = 4"):
        load_config(USERS / "r50_doubled.py")


@pytest.mark.skipif(not LOG.is_file(), reason="the users' log is not in this checkout")
def test_the_config_of_the_users_log_loads_and_its_detector_builds(tmp_path):
    text = LOG.read_text(errors="replace")
    dump = re.search(r"mmdet - INFO - Config:\n(.*?)\n\d{4}-\d\d-\d\d ", text, re.DOTALL)
    assert dump
    (tmp_path / "dumped.py").write_text(dump.group(1))
    cfg = load_config(tmp_path / "dumped.py")
    assert {entry.name for entry in unknown_types(cfg)} == {
        "PyramidAugmentation",
        "CustomRandomBrightnessContrast",
    }
    steps = cfg.data.train.dataset.pipeline
    for entry in unknown_types(cfg):
        assert (
            steps[int(entry.place.removeprefix("data.train.dataset.pipeline."))].type == entry.name
        )
    assert unknown_types(cfg, sections=("model", "optimizer")) == ()
    ours = shapes(build_model(cfg.model))
    assert ours == shapes(built(CONFIGS / f"cmt_aqr_{FULL_SIZE[0]}.py"))


def test_pure_search_axes_reach_no_config():
    overrides = to_overrides({"amplification": 1.3, "max_weight_clamp": 2.0, "data.x": 3})
    assert overrides == {
        "model.pts_bbox_head.renderer_config.max_weight_clamp": 2.0,
        "data.x": 3,
    }


def test_detector_parts_keep_their_contracts():
    from aqr_model.cmt.images.cp_fpn import CPFPN

    neck = CPFPN(in_channels=[4, 8], out_channels=6, num_outs=2)
    fine, coarse = torch.randn(1, 4, 6, 10), torch.randn(1, 8, 3, 5)
    first, second = neck([fine, coarse])
    lateral = neck.lateral_convs[1](coarse)
    assert torch.equal(second, lateral)  # no output convolution above the finest level
    upsampled = lateral.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = neck.fpn_convs[0](neck.lateral_convs[0](fine) + upsampled)
    assert torch.allclose(first, expected, atol=1e-6)
    with pytest.raises(ValueError, match="num_outs == len"):
        CPFPN(in_channels=[4, 8], out_channels=6, num_outs=3)
