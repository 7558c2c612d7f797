"""Losses of matching and denoising queries, for each decoder layer."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aqr_model.cmt.boxes.box_codec import encode_boxes
from aqr_model.cmt.denoising import DenoisingQueries, GroundTruth
from aqr_model.cmt.loss.assigner import HungarianAssigner3D
from aqr_model.cmt.loss.step_totals import StepTotals

Loss = Callable[..., Tensor]
_NEGATIVE_SHARE = 0.1  # what a negative query counts in the classification's average
_SPHERE = math.pi / 6  # volume of a sphere in its cube: denoising queries that keep their class


def matching_losses(
    slots: Tensor,
    logits: Tensor,
    truths: Sequence[GroundTruth],
    *,
    assigner: HungarianAssigner3D,
    loss_cls: Loss,
    loss_bbox: Loss,
    code_weights: Tensor,
    first_class: int = 0,
    totals: StepTotals | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Losses of one task's matching queries; each layer is matched by itself.

    N layers, B batch, Q queries, K classes of the task.

    Args:
        slots: [N, B, Q, 10]
        logits: [N, B, Q, K]
        truths: The task's ground truth, labels in [0, K), one for each sample.
        assigner: Matches queries to truths.
        loss_cls: Focal loss; class K is background.
        loss_bbox: L1 loss.
        code_weights: [10]
        first_class: The task's first class among those of all tasks.
        totals: Counts of the whole step, if this batch is a part of it. They take every box as
            matched, which holds while no sample has more boxes than queries.

    Returns:
        (classification, box) of each layer.
    """
    num_layers, batch, num_queries, num_classes = logits.shape
    labels = torch.full((num_layers, batch, num_queries), num_classes, device=logits.device)
    layer = torch.arange(num_layers, device=logits.device)[:, None]
    # Empty first entries: without ground truth the branches still get a (zero) gradient, which
    # distributed training waits for.
    predicted, targets = [slots[:, 0, :0]], [slots.new_zeros(num_layers, 0, 10)]
    for i, truth in enumerate(truths):
        if not len(truth.labels):
            continue
        queries, matched = assigner.match(slots[:, i], logits[:, i], truth.boxes, truth.labels)
        labels[layer, i, queries] = truth.labels[matched]
        predicted.append(slots[layer, i, queries])
        targets.append(encode_boxes(truth.boxes)[matched])
    predicted, targets = torch.cat(predicted, dim=1), torch.cat(targets, dim=1)  # [N, M, 10]
    targets, weights = _drop_infinite(targets, code_weights)
    if totals is None:
        totals = StepTotals.of_batch(num_samples=batch)
        num_positive = predicted.shape[1]
    else:
        num_positive = totals.boxes_of(first_class, num_classes)
    num_negative = totals.num_samples * num_queries - num_positive
    average = totals.share(num_positive + _NEGATIVE_SHARE * num_negative)
    box_average = totals.share(num_positive)
    return [
        (
            loss_cls(logits[n].flatten(0, 1), labels[n].flatten(), avg_factor=average),
            loss_bbox(predicted[n], targets[n], weights[n], avg_factor=box_average),
        )
        for n in range(num_layers)
    ]


def denoising_losses(
    slots: Tensor,
    logits: Tensor,
    queries: DenoisingQueries,
    *,
    first_class: int,
    split: float,
    loss_cls: Loss,
    loss_bbox: Loss,
    code_weights: Tensor,
    totals: StepTotals | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Losses of one task's denoising queries.

    Every query is classified in every task; only boxes of the task's own classes are regressed.
    N layers, B batch, P slots, K classes of the task.

    Args:
        slots: [N, B, P, 10]
        logits: [N, B, P, K]
        queries: Their targets.
        first_class: The task's first class among those of all tasks.
        split: Longest noise vector that keeps the class.
        loss_cls: Focal loss; class K is background.
        loss_bbox: L1 loss.
        code_weights: [10]
        totals: Counts of the whole step, if this batch is a part of it.

    Returns:
        (classification, box) of each layer.
    """
    num_classes = logits.shape[-1]
    logits = logits[:, queries.sample, queries.slot]
    slots = slots[:, queries.sample, queries.slot]
    local = queries.labels - first_class
    in_task = (local >= 0) & (local < num_classes)
    labels = torch.where(in_task & ~queries.is_background, local, num_classes)
    targets, weights = _drop_infinite(encode_boxes(queries.boxes), code_weights)
    weights = weights * in_task[:, None]
    totals = totals or StepTotals.of_batch(num_samples=len(logits))
    average = totals.share(queries.num_in_step * _SPHERE * split**3)
    box_average = totals.share(queries.num_in_step)
    return [
        (
            loss_cls(layer_logits, labels, avg_factor=average),
            loss_bbox(layer_slots, targets, weights, avg_factor=box_average),
        )
        for layer_logits, layer_slots in zip(logits, slots, strict=True)
    ]


def _drop_infinite(targets: Tensor, code_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Give rows that are not finite no weight. [..., 10], [10] to two of [..., 10]."""
    finite = targets.isfinite().all(dim=-1, keepdim=True)
    return torch.where(finite, targets, 0.0), finite * code_weights
