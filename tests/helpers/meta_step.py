"""A training step of the R50 detector on torch's meta device, where nothing is computed.

The announced reads of the device are answered by stand-ins; any other raises.
"""

import aqr_model  # noqa: F401  (its shims come before any import of mmdet)

# isort: split
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmcv import Config
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.models import build_model
from torch import Tensor, nn

from aqr_model.engine.loop import total_loss
from aqr_model.engine.optim.freezing import Frozen
from aqr_model.preflight.reading import load_config

META = torch.device("meta")
R50 = "aqr_model/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py"
NUM_QUERY = 900


def build(path: str = R50) -> nn.Module:
    """A detector of a config without memory for its weights, in training mode."""
    cfg: Config = load_config(path)
    with META:
        model = build_model(cfg.model)
    Frozen(model, cfg).train_mode()
    return model


def make_metas(batch: int, *, boxes: int = 7) -> list[dict[str, Any]]:
    """Cameras and ground truth, a little more of it in each sample."""
    made = []
    for sample in range(batch):
        truth = torch.rand(boxes + sample, 9) + 1
        made.append(
            {
                "lidar2img": [np.eye(4) + 0.01 * view for view in range(6)],
                "pad_shape": [(320, 800, 3)] * 6,
                "gt_bboxes_3d": LiDARInstance3DBoxes(truth, box_dim=9, origin=(0.5, 0.5, 0.5)),
                "gt_labels_3d": torch.arange(len(truth)) % 10,
                "noise_seed": sample,
            }
        )
    return made


@contextmanager
def stand_ins(batch: int) -> Iterator[Counter[str]]:
    """Answer the announced reads; gives their count."""
    counted: Counter[str] = Counter()

    def read(tensors: list[Tensor], what: str) -> list[Tensor]:
        counted[f"read: {what}"] += 1
        answers = [torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in tensors]
        if what == "queries by number of views":
            answers[0][1] = batch * NUM_QUERY  # one view each
        return answers

    def places(mask: Tensor, what: str) -> tuple[Tensor, ...]:
        counted[f"read: {what}"] += 1
        seen = mask.numel() // 6
        return tuple(torch.zeros(seen, dtype=torch.long, device=META) for _ in mask.shape)

    def match(costs: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.arange(min(costs.shape[1:])).expand(len(costs), -1)
        return rows, rows

    with (
        mock.patch("aqr_model.cmt.loss.criterion.read", read),
        mock.patch("aqr_model.aqr.window_attention.read", read),
        mock.patch("aqr_model.cmt.head.places", places),
        mock.patch("aqr_model.cmt.loss.losses.match", match),
    ):
        yield counted


def step(
    model: nn.Module, batch: int, *, boxes: int = 7, backward: bool = True
) -> dict[str, Tensor]:
    """Forward, losses and backward, from the sparse encoder's output on.

    Args:
        model: From `build`.
        batch: Samples.
        boxes: Of the first sample.
        backward: Also take the gradients.

    Returns:
        The loss terms.
    """
    detector: Any = model
    sparse = torch.empty(batch, 256, 128, 128, device=META)

    def dense_part(*_: Any) -> list[Tensor]:
        return list(detector.pts_neck(detector.pts_backbone(sparse)))

    truths = make_metas(batch, boxes=boxes)
    model.zero_grad()
    with mock.patch.object(model, "extract_pts_feat", dense_part):
        terms = model(
            return_loss=True,
            points=None,
            img=torch.empty(batch, 6, 3, 320, 800, device=META),
            img_metas=truths,
            gt_bboxes_3d=[meta["gt_bboxes_3d"] for meta in truths],
            gt_labels_3d=[meta["gt_labels_3d"] for meta in truths],
        )
    if backward:
        total_loss(terms).backward()
    return terms
