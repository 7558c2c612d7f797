import json
from pathlib import Path

import pytest
import torch
from mmcv import Config
from mmdet3d.models import build_model

import aqr_model  # noqa: F401  (registers)
from aqr_model.knobs import KNOBS, to_overrides

CONFIGS = Path("aqr_model/configs")
SHIPPED = sorted(path.name for path in CONFIGS.glob("*.py"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_config_builds(name):
    cfg = Config.fromfile(str(CONFIGS / name))
    model = build_model(cfg.model)
    assert hasattr(model.pts_bbox_head, "aqr_weight_generator") == ("aqr" in name)


def test_r50_has_exactly_the_public_state_dict():
    golden = json.loads(
        Path("tests/data/cmt_voxel0100_r50_800x320_cbgs.state_dict.json").read_text()
    )
    cfg = Config.fromfile(str(CONFIGS / "cmt_voxel0100_r50_800x320_cbgs.py"))
    ours = {name: list(value.shape) for name, value in build_model(cfg.model).state_dict().items()}
    assert ours == golden


@pytest.mark.parametrize("knob", [k for k in KNOBS.values() if k.keys], ids=lambda k: k.name)
def test_every_knob_sets_keys_of_the_config(knob):
    cfg = Config.fromfile(str(CONFIGS / "cmt_aqr_nano.py"))
    for key in knob.keys:
        node = cfg
        *parents, last = key.split(".")
        for part in parents:
            node = node[part]
        assert last in node, key
    cfg.merge_from_dict(to_overrides({knob.name: knob.default}))


def test_pure_search_axes_reach_no_config():
    overrides = to_overrides({"amplification": 1.3, "max_weight_clamp": 2.0, "data.x": 3})
    assert overrides == {
        "model.pts_bbox_head.renderer_config.max_weight_clamp": 2.0,
        "data.x": 3,
    }


def test_detector_parts_keep_their_contracts():
    from aqr_model.cmt.cp_fpn import CPFPN
    from aqr_model.cmt.grid_mask import GridMask

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

    images = torch.rand(3, 3, 40, 60) + 0.5
    mask = GridMask(probability=1.0)
    torch.manual_seed(0)
    masked = mask(images)
    kept = masked != 0
    assert 0.3 < kept.float().mean() < 1.0
    assert torch.equal(kept[0, 0], kept[2, 2])
    assert torch.equal(masked[kept], images[kept])
    assert mask.eval()(images) is images
