"""The CMT head of the R50 and VoV files, without its backbones, on random features."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from aqr_alone import SIZES, Size, ring_of_cameras
from measure import DEVICE
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import aqr_model  # noqa: F401  (its shims come before any import of mmdet)

# isort: split
from mmdet.models.builder import build_head
from mmdet3d.core.bbox import LiDARInstance3DBoxes

from aqr_model.preflight.reading import load_config

CONFIGS = {
    "r50": "aqr_model/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py",
    "vov": "aqr_model/configs/cmt_aqr_voxel0075_vov_1600x640_cbgs.py",
}
NUM_BOXES = 40


def make_metas(size: Size) -> list[dict[str, Any]]:
    """Cameras and ground truth of a batch."""
    height, width = size.image
    metas = []
    for place, matrices in enumerate(ring_of_cameras(size).numpy()):
        boxes = torch.rand(NUM_BOXES, 9) * 4 + 1
        boxes[:, :3] = (torch.rand(NUM_BOXES, 3) - 0.5) * torch.tensor([90.0, 90.0, 4.0])
        metas.append(
            {
                "lidar2img": list(matrices),
                "pad_shape": [(height, width, 3)] * len(matrices),
                "box_type_3d": LiDARInstance3DBoxes,
                "gt_bboxes_3d": LiDARInstance3DBoxes(boxes, box_dim=9),
                "gt_labels_3d": torch.arange(NUM_BOXES) % 10,
                "noise_seed": place,
            }
        )
    return metas


def head_step(
    name: str, batch: int, *, aqr: bool, device: torch.device = DEVICE, dropout: bool = True
) -> tuple[nn.Module, Callable[[], dict[str, Tensor]]]:
    """A head and its step: forward, losses, backward. The step gives the losses."""
    torch.manual_seed(0)
    size = replace(SIZES[name], batch=batch)
    cfg = load_config(CONFIGS[name]).model
    head: Any = build_head(cfg.pts_bbox_head | {"train_cfg": cfg.train_cfg.pts, "enable_aqr": aqr})
    head.init_weights()
    head.to(device).train()
    if not dropout:
        for module in head.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attn_drop") and isinstance(module.attn_drop, float):
                module.attn_drop = 0.0
    bev = torch.randn(batch, head.shared_conv.conv.in_channels, *size.bev).to(device)
    images = torch.randn(6 * batch, 256, *size.camera[1:]).to(device)
    metas = make_metas(size)
    boxes, labels = ([meta[key] for meta in metas] for key in ("gt_bboxes_3d", "gt_labels_3d"))

    def work() -> dict[str, Tensor]:
        head.zero_grad()
        losses = head.loss(boxes, labels, head([bev], [images], metas))
        torch.stack(list(losses.values())).sum().backward()
        return losses

    return head, work


def head_forward(batch: int, how: str) -> Callable[[], Any]:
    """The forward of a training step: 900 + 400 queries in groups, 22,384 tokens."""
    torch.manual_seed(0)
    size = replace(SIZES["r50"], batch=batch)
    cfg = load_config(CONFIGS["r50"]).model
    head: Any = build_head(
        cfg.pts_bbox_head | {"train_cfg": cfg.train_cfg.pts, "enable_aqr": False}
    )
    head.init_weights()
    head.to(DEVICE).train()
    bev = torch.randn(batch, head.shared_conv.conv.in_channels, *size.bev, device=DEVICE)
    images = torch.randn(6 * batch, 256, *size.camera[1:], device=DEVICE)
    metas = make_metas(size)
    written_out = how == "masked dense"

    def work() -> Any:
        torch.manual_seed(1)
        with sdpa_kernel(SDPBackend.MATH) if written_out else nullcontext():
            return head([bev], [images], metas)

    return work
