"""The CMT head of the R50 file, without its backbones, on random features."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from aqr_alone import SIZES, Size, ring_of_cameras
from measure import DEVICE
from torch.nn.attention import SDPBackend, sdpa_kernel

import aqr_model  # noqa: F401  (its shims come before any import of mmdet)

# isort: split
from mmdet.models.builder import build_head
from mmdet3d.core.bbox import LiDARInstance3DBoxes

from aqr_model.preflight.reading import load_config

CONFIG = "aqr_model/configs/cmt_voxel0100_r50_800x320_cbgs.py"
NUM_BOXES = 40


def _metas(size: Size) -> list[dict[str, Any]]:
    height, width = size.image
    metas = []
    for matrices in ring_of_cameras(size).numpy():
        boxes = torch.rand(NUM_BOXES, 9) * 4 + 1
        boxes[:, :3] = (torch.rand(NUM_BOXES, 3) - 0.5) * torch.tensor([90.0, 90.0, 4.0])
        metas.append(
            {
                "lidar2img": list(matrices),
                "pad_shape": [(height, width, 3)] * len(matrices),
                "box_type_3d": LiDARInstance3DBoxes,
                "gt_bboxes_3d": LiDARInstance3DBoxes(boxes, box_dim=9),
                "gt_labels_3d": torch.arange(NUM_BOXES) % 10,
            }
        )
    return metas


def head_forward(batch: int, how: str) -> Callable[[], Any]:
    """The forward of a training step: 900 + 400 queries, masked from each other, 22,384 tokens."""
    torch.manual_seed(0)
    given = SIZES["r50"]
    size = Size(batch, given.voxel_m, given.bev, given.camera, given.image, given.windows)
    cfg = load_config(CONFIG).model
    head = build_head(cfg.pts_bbox_head | {"train_cfg": cfg.train_cfg.pts})
    head.init_weights()
    head.to(DEVICE).train()
    bev = torch.randn(batch, head.shared_conv.conv.in_channels, *size.bev, device=DEVICE)
    images = torch.randn(6 * batch, 256, *size.camera[1:], device=DEVICE)
    metas = _metas(size)
    written_out = how == "masked dense"

    def work() -> Any:
        torch.manual_seed(1)
        with sdpa_kernel(SDPBackend.MATH) if written_out else nullcontext():
            return head([bev], [images], metas)

    return work
