"""The training loss of CMT: every decoder layer and task, matching and denoising queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aqr_model.cmt.boxes.box_codec import join_branches
from aqr_model.cmt.denoising import DenoisingQueries, GroundTruth
from aqr_model.cmt.loss import losses
from aqr_model.cmt.loss.assigner import HungarianAssigner3D
from aqr_model.cmt.loss.step_totals import current_totals

Outputs = Sequence[Sequence[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class CmtCriterion:
    """Losses summed over tasks, named by layer. N decoder layers.

    They divide by the counts of the batch, or inside `counted_over` by those of the whole step, so
    that the mean over the parts of a step is the loss of one large batch. The public code divides
    by the counts of each process's own batch, except for the denoising boxes.
    """

    assigner: HungarianAssigner3D
    loss_cls: losses.Loss
    loss_bbox: losses.Loss
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
        terms = _named(self._matching(outputs, truths), "")
        if "dn_queries" in outputs[0][0]:
            terms |= _named(self._denoising(outputs, outputs[0][0]["dn_queries"]), "dn_")
        return terms

    def _matching(self, outputs: Outputs, truths: Sequence[GroundTruth]) -> Tensor:
        """(classification, box) of each layer. [N, 2]."""
        return _sum_tasks(
            losses.matching_losses(
                join_branches(task),
                task["cls_logits"],
                [truth.of_classes(first, num) for truth in truths],
                assigner=self.assigner,
                loss_cls=self.loss_cls,
                loss_bbox=self.loss_bbox,
                code_weights=torch.tensor(self.code_weights, device=task["cls_logits"].device),
                first_class=first,
                totals=current_totals(),
            )
            for first, num, task in self._tasks(outputs)
        )

    def _denoising(self, outputs: Outputs, queries: DenoisingQueries | None) -> Tensor:
        """(classification, box) of each layer, weighted. [N, 2]."""
        logits = outputs[0][0]["cls_logits"]
        if queries is None:
            return logits.new_zeros(len(logits), 2)
        return self.dn_weight * _sum_tasks(
            losses.denoising_losses(
                join_branches(task, "dn_"),
                task["dn_cls_logits"],
                queries,
                first_class=first,
                split=self.split,
                loss_cls=self.loss_cls,
                loss_bbox=self.loss_bbox,
                code_weights=torch.tensor(self.code_weights, device=logits.device),
                totals=current_totals(),
            )
            for first, _, task in self._tasks(outputs)
        )

    def _tasks(self, outputs: Outputs) -> list[tuple[int, int, dict[str, Any]]]:
        """(first class, number of classes, outputs) of each task."""
        firsts = [sum(self.num_classes[:i]) for i in range(len(self.num_classes))]
        tasks = [task[0] for task in outputs]
        return list(zip(firsts, self.num_classes, tasks, strict=True))


def _sum_tasks(tasks: Any) -> Tensor:
    """Pairs of scalars by layer and task, summed over tasks. [N, 2]."""
    return torch.stack(
        [torch.stack([torch.stack(pair) for pair in layers]) for layers in tasks]
    ).sum(dim=0)


def _named(terms: Tensor, prefix: str) -> dict[str, Tensor]:
    """Name the losses of each layer, the last layer first. [N, 2]."""
    last = len(terms) - 1
    named = {}
    for layer in (last, *range(last)):
        front = "" if layer == last else f"d{layer}."
        named[f"{front}{prefix}loss_cls"] = terms[layer, 0]
        named[f"{front}{prefix}loss_bbox"] = terms[layer, 1]
    return named
