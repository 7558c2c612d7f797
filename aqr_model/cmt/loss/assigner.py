"""One-to-one assignment of queries to ground truth by the Hungarian algorithm."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.core.bbox.match_costs.builder import MATCH_COST, build_match_cost
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from aqr_model.aqr.crossings import constant
from aqr_model.cmt.boxes.box_codec import encode_boxes

_MATCHED_SLOTS = 8  # velocity takes no part in the matching


@MATCH_COST.register_module()
class BBox3DL1Cost:
    """L1 distance between regression slots."""

    def __init__(self, weight: float = 1.0) -> None:
        """Take the cost's weight."""
        self.weight = weight

    def __call__(self, slots: Tensor, targets: Tensor) -> Tensor:
        """Cost of every pair: [R, D] and [G, D] to [R, G]."""
        return torch.cdist(slots, targets, p=1) * self.weight


@BBOX_ASSIGNERS.register_module()
class HungarianAssigner3D:
    """Match queries to boxes by focal and L1 cost.

    Q queries, G ground-truth boxes, K classes, N decoder layers.
    """

    def __init__(
        self,
        cls_cost: dict[str, Any],
        reg_cost: dict[str, Any],
        iou_cost: dict[str, Any] | None = None,
        pc_range: Sequence[float] | None = None,
        code_weights: Sequence[float] | None = None,
    ) -> None:
        """Build the costs.

        Args:
            cls_cost: Classification cost.
            reg_cost: Cost on the first eight slots.
            iou_cost: Must weigh 0; public configs carry it to please DETR's interface.
            pc_range: Unused; public configs carry it.
            code_weights: Multiply both sides of the regression cost. [10]
        """
        if iou_cost is not None and iou_cost.get("weight", 0.0) != 0.0:
            raise ValueError(
                "`iou_cost` must weigh 0: CMT matches without IoU, but got weight"
                f" {iou_cost['weight']}."
            )
        self.cls_cost = build_match_cost(cls_cost)
        self.reg_cost = build_match_cost(reg_cost)
        self.code_weights = None if code_weights is None else list(code_weights)

    @torch.no_grad()
    def costs(self, slots: Tensor, logits: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Cost of every pair.

        Args:
            slots: Predicted. [..., Q, 10]
            logits: Predicted. [..., Q, K]
            boxes: Ground truth, gravity centres. [G, 9]
            labels: Ground truth. [G]

        Returns:
            [..., Q, G]
        """
        # A box without extent has no finite logarithm: it is matched by what else is known.
        targets = encode_boxes(boxes).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        rows, targets = slots.flatten(0, -2), targets.to(slots.dtype)
        if self.code_weights is not None:
            weights = constant(self.code_weights, slots)
            rows, targets = rows * weights, targets * weights
        cost = self.cls_cost(logits.flatten(0, -2), labels)
        cost = cost + self.reg_cost(rows[:, :_MATCHED_SLOTS], targets[:, :_MATCHED_SLOTS])
        return cost.unflatten(0, slots.shape[:-1])


def match(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Match every decoder layer by itself, on the host.

    Args:
        costs: Of every pair. [N, Q, G]

    Returns:
        queries: Matched queries, M = min(Q, G). [N, M]
        truths: Their ground truth. [N, M]

    Raises:
        FloatingPointError: If a cost is not finite.
    """
    if not costs.isfinite().all():
        raise FloatingPointError(
            "Predictions must be finite to be matched, but NaN or infinity came from the decoder:"
            " training has diverged."
        )
    pairs = np.array([linear_sum_assignment(cost) for cost in costs.numpy()])  # [N, 2, M]
    queries, truths = torch.from_numpy(pairs).unbind(1)
    return queries, truths
