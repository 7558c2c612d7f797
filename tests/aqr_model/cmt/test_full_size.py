"""The whole R50 detector on a real keyframe: it learns, and a new AQR changes nothing."""

from collections.abc import Mapping
from pathlib import Path

import keyframe
import pytest
import torch
from mmdet3d.core.bbox.box_np_ops import points_in_rbbox
from mmdet3d.models import build_model
from torch import Tensor, nn

from aqr_model.engine.batches import seed_everything
from aqr_model.engine.optim.freezing import Frozen
from aqr_model.engine.weights.pretrained import load_pretrained

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not keyframe.available(), reason=keyframe.ABSENT),
]
PLAIN = "cmt_voxel0100_r50_800x320_cbgs.py"
AQR = "cmt_aqr_voxel0100_r50_800x320_cbgs.py"
LEARNING = ("img_backbone", "img_neck", "pts_middle_encoder", "pts_backbone", "pts_neck")


@pytest.fixture(scope="module")
def infos(tmp_path_factory) -> Path:
    return keyframe.write_infos(tmp_path_factory.mktemp("keyframe") / "infos.pkl")


@pytest.fixture(scope="module")
def batch(infos) -> dict:
    return keyframe.keyframe_batch(keyframe.keyframe_config(AQR, infos))


@pytest.fixture(scope="module")
def plain(infos, batch) -> tuple[nn.Module, dict[str, Tensor]]:
    """The plain detector after a forward and a backward, from random weights."""
    overrides = {
        "model.use_grid_mask": False,
        "model.img_backbone.with_cp": False,
        # By default the blocks start shut, and no gradient gets into them.
        "model.img_backbone.zero_init_residual": False,
    }
    cfg = keyframe.keyframe_config(PLAIN, infos, **overrides)
    seed_everything(1)
    model = build_model(cfg.model)
    model.init_weights()
    # Taken before the forward, whose batch norms move their statistics.
    model.start = {name: value.clone() for name, value in model.state_dict().items()}
    return model, step(model, batch)


def step(model: nn.Module, batch: dict) -> dict[str, Tensor]:
    seed_everything(2)  # dropout and denoising noise
    terms = model.train()(return_loss=True, **batch)
    torch.stack([value for name, value in terms.items() if "loss" in name]).sum().backward()
    return {name: value.detach() for name, value in terms.items()}


def gradient_sums(module: nn.Module) -> Mapping[str, float]:
    return {
        n: float(p.grad.abs().sum()) for n, p in module.named_parameters() if p.grad is not None
    }


def test_the_keyframe_arrives_whole(batch):
    assert tuple(batch["img"].shape) == (1, 6, 3, 320, 800)
    assert batch["img"].dtype == torch.uint8
    assert batch["img"].float().std() > 30  # not masked
    (points,), (boxes,) = batch["points"], batch["gt_bboxes_3d"]
    assert points.shape[1] == 5
    assert points[:, :3].std(dim=0).min() > 0.5
    # The objects stand where the points are: the adapter's frames agree with the sensor's.
    assert len(boxes) > 40
    inside = points_in_rbbox(points[:, :3].numpy(), boxes.tensor[:, :7].numpy())
    assert inside.any(axis=0).mean() > 0.9


def test_the_plain_detector_learns_from_it(plain):
    model, losses = plain
    assert len(losses) == 24  # six layers, classes and boxes, matching and denoising
    assert all(torch.isfinite(value) for value in losses.values())
    for part in LEARNING:
        sums = gradient_sums(model.get_submodule(part))
        assert len(sums) == len(list(model.get_submodule(part).parameters())), part
        assert all(0 < value < float("inf") for value in sums.values()), part


def test_a_new_aqr_changes_no_loss_and_learns(plain, infos, batch, tmp_path):
    base, losses = plain
    cfg = keyframe.keyframe_config(AQR, infos)
    model = build_model(cfg.model)
    model.init_weights()
    torch.save({"state_dict": base.start}, tmp_path / "plain.pth")
    fresh = load_pretrained(model, tmp_path / "plain.pth")
    assert len(fresh) == 16
    Frozen(model, cfg)  # what the config freezes takes no gradients
    head = model.pts_bbox_head
    head.collect_aqr = True
    ours = step(model, batch)

    assert ours.keys() == losses.keys()
    assert all(torch.equal(ours[name], losses[name]) for name in losses)
    predictor = gradient_sums(head.aqr_weight_generator.weight_predictor)
    assert len(predictor) == 2
    assert all(0 < value < float("inf") for value in predictor.values())
    assert not any(gradient_sums(model.get_submodule(part)) for part in LEARNING)

    # 1024 cells of 0.1 m end at 48.4 m: a query beyond has no place on the BEV map.
    inside = (head.reference_points.weight[:, :2] < 102.4 / 108).all(dim=1)
    assert torch.equal(head.last_aqr["projection"].bev_valid[0], inside)
    assert not inside.all()
