"""What one optimizer step holds in all of its batches, so that its parts add up to the whole.

A step may come in parts: one batch a process, and several batches one after another. The losses of
a part divide by counts. If those are the part's own, the mean over the parts is not the loss of the
whole; if they are the whole's, divided by the number of parts, it is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StepTotals:
    """Counts of a step, over all of its batches.

    Attributes:
        num_batches: Parts of the step: batches of a process times processes.
        num_samples: Samples of all batches.
        boxes_of_class: Boxes by label; the first entry counts those of no class (-1).
        by_batch: Of each batch its boxes, and those of its fullest sample.
        equal_slots: Whether all batches have the denoising slots that the fullest sample of the
            step needs. Then the step gives the same gradients however it is split; else each batch
            has the slots of its own fullest sample, as in the public code, and fewer queries.
    """

    num_batches: int
    num_samples: int
    boxes_of_class: tuple[int, ...]
    by_batch: tuple[tuple[int, int], ...]
    equal_slots: bool = False

    @classmethod
    def of_batch(cls, *, num_samples: int, boxes: int = 0, largest: int = 0) -> "StepTotals":
        """A step of one batch, whose boxes the caller has counted."""
        by_batch = ((boxes, largest),)
        return cls(num_batches=1, num_samples=num_samples, boxes_of_class=(), by_batch=by_batch)

    @classmethod
    def count(
        cls,
        batches: Sequence[Sequence[Tensor]],
        *,
        num_classes: int | None = None,
        equal_slots: bool = False,
    ) -> "StepTotals":
        """Count labels.

        Args:
            batches: For each batch the labels of its samples. Each [G]
            num_classes: Of the detector; None for as many as there are.
            equal_slots: See the attribute.
        """
        samples = [labels.cpu() for batch in batches for labels in batch]
        joined = torch.cat(samples) + 1
        counts = torch.bincount(joined, minlength=0 if num_classes is None else num_classes + 1)
        return cls(
            num_batches=len(batches),
            num_samples=len(samples),
            boxes_of_class=tuple(counts.tolist()),
            by_batch=tuple((sum(map(len, each)), max(map(len, each))) for each in batches),
            equal_slots=equal_slots,
        )

    @classmethod
    def merge(cls, parts: Sequence["StepTotals"]) -> "StepTotals":
        """Join the counts of several processes."""
        return cls(
            num_batches=sum(part.num_batches for part in parts),
            num_samples=sum(part.num_samples for part in parts),
            boxes_of_class=tuple(
                map(sum, zip(*(part.boxes_of_class for part in parts), strict=True))
            ),
            by_batch=tuple(batch for part in parts for batch in part.by_batch),
            equal_slots=parts[0].equal_slots,
        )

    def largest_of(self, own: int) -> int:
        """Boxes of the fullest sample that decides on a batch's denoising slots.

        Args:
            own: Boxes of the batch's own fullest sample.
        """
        return max(largest for _, largest in self.by_batch) if self.equal_slots else own

    def boxes_of(self, first: int, num_classes: int) -> int:
        """Boxes of ``num_classes`` classes from ``first``."""
        return sum(self.boxes_of_class[first + 1 : first + 1 + num_classes])

    def share(self, count: float) -> float:
        """What one batch divides by: a count of the whole step, at least 1, spread over batches."""
        return max(count, 1) / self.num_batches


_CURRENT: ContextVar[StepTotals | None] = ContextVar("step_totals", default=None)


@contextmanager
def counted_over(totals: StepTotals | None) -> Iterator[None]:
    """Let the losses inside divide by the counts of a whole step; None leaves each batch its own.

    A context and not an argument: between the detector and the losses lies mmdet3d's interface of
    a head, which has no place for it.
    """
    token = _CURRENT.set(totals)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_totals() -> StepTotals | None:
    """The counts that are in force."""
    return _CURRENT.get()
