"""What is not finite, by name, on every process."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from aqr_model.engine.distributed import Workers

_MOST_NAMED = 3


def require_finite(
    loss: float,
    grad_norm: float,
    reason: str | None,
    *,
    terms: Sequence[Mapping[str, Any]],
    model: nn.Module,
    workers: Workers,
    step: int,
) -> None:
    """End the training on all processes where a loss or a gradient is not finite.

    Args:
        loss: Mean over the processes, so that all of them agree.
        grad_norm: Of the averaged gradients, likewise.
        reason: Why gradients that are not finite end it; None if the step is just skipped.
        terms: Of the losses of the step's batches, on this process.
        model: Holds the gradients.
        workers: Name the process.
        step: From 0.

    Raises:
        FloatingPointError: With the names of the tensors and their ranks.
    """
    if math.isfinite(loss) and (math.isfinite(grad_norm) or reason is None):
        return
    guilty = [
        f"loss term {name}"
        for name in dict.fromkeys(name for batch in terms for name in batch)
        if not all(_finite(batch[name]) for batch in terms)
    ]
    shared = [
        f"gradient of {name}"
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not _finite(parameter.grad)
    ]
    by_rank = workers.gather(guilty)
    # Gradients are averaged: they are the same everywhere, and say nothing about a process.
    named = [
        f"{name} (rank {rank})" if workers.size > 1 else name
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
