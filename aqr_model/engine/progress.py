"""Losses, learning rates and speed of a training, averaged between records."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from aqr_model.aqr.crossings import read
from aqr_model.engine.distributed import Workers
from aqr_model.engine.plan import Plan


class Log(Protocol):
    """The part of a report that takes values."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Hand over values of a step."""
        ...


class Progress:
    """Means over steps, batches and processes; rank 0 hands them over.

    Args:
        report: Takes the values; None in the other processes.
        plan: Gives the interval.
        workers: The processes; all must record the same steps.
        rates: Today's learning rate of each named group.
        scale: Today's loss scale; None without fp16.
    """

    def __init__(
        self,
        report: Log | None,
        plan: Plan,
        workers: Workers,
        *,
        rates: Callable[[], Mapping[str, float]],
        scale: Callable[[], float] | None,
    ) -> None:
        self.report, self.plan, self.workers = report, plan, workers
        self.rates, self.scale = rates, scale
        self._begin()

    def is_due(self, step: int) -> bool:
        """Whether `record` hands over means at this step."""
        return (step + 1) % self.plan.log_interval == 0 or step + 1 == self.plan.total_steps

    def record(self, step: int, terms: Sequence[Mapping[str, Any]], values: Tensor) -> None:
        """Take one step's values; hand over their means every ``log_interval`` steps.

        Args:
            step: From 0.
            terms: Of the losses, of each batch of the step.
            values: Loss and norm of the gradients, means over batches and processes; the norm is
                not finite where a loss scale was too high and the step was skipped. [2]
        """
        for batch in terms:
            for name, value in batch.items():
                if isinstance(value, Tensor):
                    self._sums[name] = self._sums.get(name, 0.0) + value.detach() / len(terms)
        self._pairs.append(values)
        if self.is_due(step):
            self._flush(step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside, such as scoring, out of the seconds of a step."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def _begin(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._pairs: list[Tensor] = []
        self._since = time.perf_counter()

    def _flush(self, step: int) -> None:
        sums = torch.stack([value.float() for value in self._sums.values()])
        found = [self.workers.mean(sums) / len(self._pairs), torch.stack(self._pairs)]
        means, pairs = (tensor.tolist() for tensor in read(found, "losses for the log"))
        if self.report is not None:
            values = {f"train/{name}": mean for name, mean in zip(self._sums, means, strict=True)}
            self.report.log(values | self._of_training(step, pairs), step=step + 1)
        self._begin()

    def _of_training(self, step: int, pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
        rates = self.rates()
        values = {f"train/lr/{name}": rate for name, rate in rates.items()}
        values |= {"train/lr/min": min(rates.values()), "train/lr/max": max(rates.values())}
        values["train/loss"] = sum(loss for loss, _ in pairs) / len(pairs)
        norms = [norm for _, norm in pairs if math.isfinite(norm)]
        if norms:
            values["train/grad_norm"] = sum(norms) / len(norms)
        if self.scale is not None:
            values["train/loss_scale"] = self.scale()
            values["train/skipped_steps"] = float(len(pairs) - len(norms))
        values["train/epoch"] = self.plan.epoch(step + 1)
        values["train/s_per_step"] = (time.perf_counter() - self._since) / len(pairs)
        return values
