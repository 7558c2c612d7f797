"""What is not finite, by name, on every process."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from aqr_model.aqr.crossings import read_later
from aqr_model.engine.distributed import Workers

_MOST_NAMED = 3


class FiniteCheck:
    """Ends a training whose loss or gradients are not finite.

    The values of a step are looked at when the next step's forward has been sent to the device: a
    host that looked at once would wait for the device, and then the device for the host. A loss
    scaler keeps gradients that are not finite from the weights meanwhile, on the device itself, and
    nothing is saved, scored or logged before `settle`.

    Args:
        model: Holds the gradients.
        workers: All must call the same methods.
        overflow_reason: Says why gradients that are not finite end the training; None if the step
            is just skipped.
    """

    def __init__(
        self, model: nn.Module, workers: Workers, overflow_reason: Callable[[], str | None]
    ) -> None:
        self._model, self._workers, self._overflow_reason = model, workers, overflow_reason
        self._open: Callable[[], None] | None = None

    def watch(self, step: int, terms: Sequence[Mapping[str, Any]], values: Tensor) -> None:
        """Take the values of a step, to be looked at later.

        Args:
            step: From 0.
            terms: Of the losses of the step's batches, on this process.
            values: Loss and norm of the gradients, means over the processes, so that all of them
                agree. [2]
        """
        values_later = read_later([values], "loss and norm of the gradients")

        def look() -> None:
            loss, grad_norm = values_later()[0].tolist()
            self._require(step, terms, loss, grad_norm)

        self._open = look

    def settle(self) -> None:
        """Look at the last step, while its gradients are still there.

        Raises:
            FloatingPointError: With the names of the tensors and their ranks.
        """
        if self._open is not None:
            look, self._open = self._open, None
            look()

    @contextmanager
    def blamed_first(self) -> Iterator[None]:
        """What fails inside may do so because of values that were not finite before: say that."""
        try:
            yield
        except Exception:
            self.settle()
            raise

    def _require(
        self, step: int, terms: Sequence[Mapping[str, Any]], loss: float, grad_norm: float
    ) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        reason = self._overflow_reason()
        if math.isfinite(loss) and reason is None:
            return
        guilty = [
            f"loss term {name}"
            for name in dict.fromkeys(name for batch in terms for name in batch)
            if not all(_finite(batch[name]) for batch in terms)
        ]
        shared = [
            f"gradient of {name}"
            for name, parameter in self._model.named_parameters()
            if parameter.grad is not None and not _finite(parameter.grad)
        ]
        by_rank = self._workers.gather(guilty)
        # Gradients are averaged: they are the same everywhere, and say nothing about a process.
        named = [
            f"{name} (rank {rank})" if self._workers.size > 1 else name
            for rank, names in enumerate(by_rank)
            for name in names
        ] + shared
        said = "" if reason is None or not math.isfinite(loss) else f" ({reason})"
        raise FloatingPointError(
            f"loss and gradients must be finite, but at step {step} loss is {loss} "
            f"and the gradient norm {grad_norm}{said}; not finite: "
            f"{', '.join(named[:_MOST_NAMED]) or 'their sum'}"
        )


def _finite(value: Tensor | Sequence[Tensor]) -> bool:
    tensors = [value] if isinstance(value, Tensor) else value
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
