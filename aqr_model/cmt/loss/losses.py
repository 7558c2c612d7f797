"""Classification and box losses of all decoder layers at once, from targets made on the host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from mmdet.models.builder import LOSSES
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from aqr_model.cmt.boxes.box_codec import encode_boxes
from aqr_model.cmt.denoising import DenoisingQueries, GroundTruth
from aqr_model.cmt.loss.assigner import match

Loss = Callable[..., Tensor]


@LOSSES.register_module()
class SigmoidFocalLoss(nn.Module):
    """mmdet's `FocalLoss` without its CUDA operator, which mmcv compiles no longer.

    Args:
        use_sigmoid: Must be True, as there.
        gamma: Exponent of the modulating factor.
        alpha: Weight of the positive class, 1 - alpha of the negative.
        reduction: Unused: the caller sums.
        loss_weight: Of the whole.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, equation 5; torchvision.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not use_sigmoid:
            raise ValueError("`use_sigmoid` of FocalLoss must be True, but got False.")
        self.gamma, self.alpha, self.loss_weight = gamma, alpha, loss_weight

    def forward(self, logits: Tensor, labels: Tensor, *, reduction_override: str) -> Tensor:
        """Loss of each logit. R rows, K classes.

        Args:
            logits: [R, K]
            labels: K means background. [R]
            reduction_override: Must be `none`.

        Returns:
            [R, K]
        """
        assert reduction_override == "none"
        classes = torch.arange(logits.shape[-1], device=logits.device)
        truth = (labels[:, None] == classes).to(logits.dtype)
        return self.loss_weight * sigmoid_focal_loss(logits, truth, self.alpha, self.gamma)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What one task's predictions should be. N layers, R rows that are classified, M with a box.

    All of one dtype on one device; `rows` finds the R predictions among [B, queries].
    """

    labels: Tensor  # K means background. [N, R]
    sample: Tensor  # of those with a box. [M]
    query: Tensor  # [N, M]
    boxes: Tensor  # regression slots. [N, M, 10]
    weights: Tensor  # of the slots; 0 where a target is not finite. [N, M, 10]


def matching_targets(
    costs: Sequence[Tensor],
    truths: Sequence[GroundTruth],
    *,
    num_queries: int,
    num_layers: int,
    num_classes: int,
    code_weights: Tensor,
) -> Targets:
    """Match each layer by itself, on the host.

    N layers, B batch, Q queries, K classes of the task, G boxes of a sample.

    Args:
        costs: Of the samples with boxes, in their order. Each [N, Q, G]
        truths: The task's ground truth, labels in [0, K), one for each sample.
        num_queries: Q.
        num_layers: N.
        num_classes: K.
        code_weights: [10]

    Returns:
        Rows are all queries, sample by sample.
    """
    labels = torch.full((num_layers, len(truths), num_queries), num_classes)
    layer = torch.arange(num_layers)[:, None]
    samples, found, boxes = [], [], []
    pending = iter(costs)
    for sample, truth in enumerate(truths):
        if not len(truth.labels):
            continue
        queries, matched = match(next(pending))
        labels[layer, sample, queries] = truth.labels[matched]
        samples.append(torch.full((queries.shape[1],), sample))
        found.append(queries)
        boxes.append(encode_boxes(truth.boxes)[matched])
    empty = torch.zeros(num_layers, 0, dtype=torch.long)
    return _targets(
        labels.flatten(1),
        torch.cat([torch.zeros(0, dtype=torch.long), *samples]),
        torch.cat([empty, *found], dim=1),
        torch.cat([torch.zeros(num_layers, 0, 10), *boxes], dim=1),
        code_weights,
    )


def denoising_targets(
    queries: DenoisingQueries,
    *,
    first_class: int,
    num_layers: int,
    num_classes: int,
    code_weights: Tensor,
) -> Targets:
    """Targets of one task's denoising queries, on the host.

    Every query is classified in every task; only boxes of the task's own classes are regressed.

    Args:
        queries: R real queries.
        first_class: The task's first class among those of all tasks.
        num_layers: N.
        num_classes: K.
        code_weights: [10]

    Returns:
        Rows are the real queries; so are those with a box, whose weight is 0 outside the task.
    """
    local = queries.labels - first_class
    in_task = (local >= 0) & (local < num_classes)
    labels = torch.where(in_task & ~queries.is_background, local, num_classes)
    return _targets(
        labels.expand(num_layers, -1),
        queries.sample,
        queries.slot.expand(num_layers, -1),
        encode_boxes(queries.boxes).expand(num_layers, -1, -1),
        code_weights * in_task[:, None],
    )


def layer_losses(
    slots: Tensor,
    logits: Tensor,
    targets: Targets,
    *,
    loss_cls: Loss,
    loss_bbox: Loss,
    averages: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Losses of each layer. N layers, B batch, Q queries.

    Args:
        slots: [N, B, Q, 10]
        logits: Of the R rows that are classified. [N, R, K]
        targets: On the same device.
        loss_cls: Focal loss; class K is background.
        loss_bbox: L1 loss.
        averages: What classification and box losses are divided by.

    Returns:
        Classification and box loss. [N] each
    """
    num_layers = len(slots)
    of_class = loss_cls(
        logits.flatten(0, 1), targets.labels.flatten(), reduction_override="none"
    ).view(num_layers, -1)
    layer = torch.arange(num_layers, device=slots.device)[:, None]
    predicted = slots[layer, targets.sample, targets.query]
    if predicted.shape[1]:
        of_box = loss_bbox(
            predicted.flatten(0, 1),
            targets.boxes.flatten(0, 1),
            targets.weights.flatten(0, 1),
            reduction_override="none",
        ).view(num_layers, -1)
    else:  # the branches still get a (zero) gradient, which distributed training waits for
        of_box = predicted.flatten(1)
    return of_class.sum(1) / averages[0], of_box.sum(1) / averages[1]


def _targets(
    labels: Tensor, sample: Tensor, query: Tensor, boxes: Tensor, weights: Tensor
) -> Targets:
    """Give boxes that are not finite no weight."""
    finite = boxes.isfinite().all(dim=-1, keepdim=True)
    return Targets(
        labels=labels,
        sample=sample,
        query=query,
        boxes=torch.where(finite, boxes, 0.0),
        weights=finite * weights,
    )
