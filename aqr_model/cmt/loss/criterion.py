"""The training loss of CMT: every decoder layer and task, matching and denoising queries."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from aqr_model.aqr.crossings import read, upload
from aqr_model.cmt.boxes.box_codec import join_branches
from aqr_model.cmt.denoising import DenoisingQueries, GroundTruth
from aqr_model.cmt.loss.assigner import HungarianAssigner3D
from aqr_model.cmt.loss.losses import (
    Loss,
    Targets,
    denoising_targets,
    layer_losses,
    matching_targets,
)
from aqr_model.cmt.loss.step_totals import StepTotals, current_totals

Outputs = Sequence[Sequence[dict[str, Any]]]

_NEGATIVE_SHARE = 0.1  # what a negative query counts in the classification's average
_SPHERE = math.pi / 6  # volume of a sphere in its cube: denoising queries that keep their class


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One task's part of the outputs."""

    first: int  # its first class among those of all tasks
    num_classes: int
    outputs: dict[str, Any]
    truths: list[GroundTruth]  # labels from 0


@dataclass(frozen=True, kw_only=True)
class CmtCriterion:
    """Losses summed over tasks, named by layer. N decoder layers.

    They divide by the counts of the batch, or inside `counted_over` by those of the whole step, so
    that the mean over the parts of a step is the loss of one large batch. The public code divides
    by the counts of each process's own batch, except for the denoising boxes.

    Ground truth comes from the host and targets are made there: a step sends the truths, reads the
    matching costs and sends the targets, once each.
    """

    assigner: HungarianAssigner3D
    loss_cls: Loss
    loss_bbox: Loss
    code_weights: tuple[float, ...]
    num_classes: tuple[int, ...]  # of each task
    split: float
    dn_weight: float

    def __call__(self, outputs: Outputs, truths: Sequence[GroundTruth]) -> dict[str, Tensor]:
        """Compute all terms.

        Args:
            outputs: What the head's `forward` returned.
            truths: Ground truth of each sample, labels counted through all tasks.

        Returns:
            `loss_cls`, `loss_bbox` of the last layer, then with `d0.` ... before the name those
            of the others; if the outputs come from training, `dn_loss_cls` ... likewise, also
            without ground truth, so that all processes have the same keys.
        """
        tasks = self._tasks(outputs, truths)
        queries: DenoisingQueries | None = outputs[0][0].get("dn_queries")
        targets = iter(self._targets(tasks, queries))
        matching = _summed(self._matching(task, next(targets)) for task in tasks)
        terms = _named(matching, "")
        if "dn_queries" in outputs[0][0]:
            found = torch.zeros_like(matching)
            if queries is not None:
                found = _summed(self._denoising(task, queries, next(targets)) for task in tasks)
            terms |= _named(self.dn_weight * found, "dn_")
        return terms

    def _targets(self, tasks: Sequence[_Task], queries: DenoisingQueries | None) -> list[Targets]:
        """All tasks' matching targets, then all tasks' denoising targets, on the device."""
        code_weights = torch.tensor(self.code_weights)
        costs, made = iter(self._costs(tasks)), []
        for task in tasks:
            num_layers, _, num_queries, num_classes = task.outputs["cls_logits"].shape
            made.append(
                matching_targets(
                    [next(costs) for truth in task.truths if len(truth.labels)],
                    task.truths,
                    num_queries=num_queries,
                    num_layers=num_layers,
                    num_classes=num_classes,
                    code_weights=code_weights,
                )
            )
        for task in tasks if queries is not None else ():
            assert queries is not None
            made.append(
                denoising_targets(
                    queries,
                    first_class=task.first,
                    num_layers=len(task.outputs["cls_logits"]),
                    num_classes=task.num_classes,
                    code_weights=code_weights,
                )
            )
        device = tasks[0].outputs["cls_logits"].device
        parts = [getattr(target, field.name) for target in made for field in fields(Targets)]
        sent = iter(upload(parts, device, "targets of the losses"))
        return [Targets(**{field.name: next(sent) for field in fields(Targets)}) for _ in made]

    def _costs(self, tasks: Sequence[_Task]) -> list[Tensor]:
        """Matching costs on the host, of each task's samples that have boxes. [N, Q, G] each."""
        device = tasks[0].outputs["cls_logits"].device
        wanted = [
            (task, i, truth)
            for task in tasks
            for i, truth in enumerate(task.truths)
            if len(truth.labels)
        ]
        if not wanted:
            return []
        parts = [part for *_, truth in wanted for part in (truth.boxes, truth.labels)]
        sent = upload(parts, device, "ground truth")
        costs = [
            self.assigner.costs(
                join_branches(task.outputs)[:, i], task.outputs["cls_logits"][:, i], boxes, labels
            )
            for (task, i, _), boxes, labels in zip(wanted, sent[::2], sent[1::2], strict=True)
        ]
        return read(costs, "matching costs")

    def _matching(self, task: _Task, targets: Targets) -> Tensor:
        """(classification, box) of each layer. [N, 2]."""
        logits = task.outputs["cls_logits"]
        _, batch, num_queries, _ = logits.shape
        totals = current_totals()
        if totals is None:
            totals = StepTotals.of_batch(num_samples=batch)
            num_positive = targets.query.shape[1]
        else:  # as long as no sample has more boxes than queries
            num_positive = totals.boxes_of(task.first, task.num_classes)
        num_negative = totals.num_samples * num_queries - num_positive
        averages = (
            totals.share(num_positive + _NEGATIVE_SHARE * num_negative),
            totals.share(num_positive),
        )
        return self._losses(join_branches(task.outputs), logits.flatten(1, 2), targets, averages)

    def _denoising(self, task: _Task, queries: DenoisingQueries, targets: Targets) -> Tensor:
        """(classification, box) of each layer. [N, 2]."""
        slots = join_branches(task.outputs, "dn_")
        layer = torch.arange(len(slots), device=slots.device)[:, None]
        logits = task.outputs["dn_cls_logits"][layer, targets.sample, targets.query]
        totals = current_totals() or StepTotals.of_batch(num_samples=slots.shape[1])
        num_real = queries.num_in_step
        averages = totals.share(num_real * _SPHERE * self.split**3), totals.share(num_real)
        return self._losses(slots, logits, targets, averages)

    def _losses(
        self, slots: Tensor, logits: Tensor, targets: Targets, averages: tuple[float, float]
    ) -> Tensor:
        pair = layer_losses(
            slots,
            logits,
            targets,
            loss_cls=self.loss_cls,
            loss_bbox=self.loss_bbox,
            averages=averages,
        )
        return torch.stack(pair, dim=1)

    def _tasks(self, outputs: Outputs, truths: Sequence[GroundTruth]) -> list[_Task]:
        firsts = [sum(self.num_classes[:i]) for i in range(len(self.num_classes))]
        return [
            _Task(
                first=first,
                num_classes=num,
                outputs=task[0],
                truths=[truth.of_classes(first, num) for truth in truths],
            )
            for first, num, task in zip(firsts, self.num_classes, outputs, strict=True)
        ]


def _summed(tasks: Iterable[Tensor]) -> Tensor:
    """Sum over tasks. [N, 2] each."""
    return torch.stack(list(tasks)).sum(dim=0)


def _named(terms: Tensor, prefix: str) -> dict[str, Tensor]:
    """Name the losses of each layer, the last layer first. [N, 2]."""
    last = len(terms) - 1
    named = {}
    for layer in (last, *range(last)):
        front = "" if layer == last else f"d{layer}."
        named[f"{front}{prefix}loss_cls"] = terms[layer, 0]
        named[f"{front}{prefix}loss_bbox"] = terms[layer, 1]
    return named
