"""Number formats: what may be rounded, and what must keep all of float32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute matrix products inside in full float32, whatever TF32 or autocast allow around.

    TF32 rounds each factor to 10 bits. In a sum of hundreds of kernels that is more than a query's
    weight changes.
    """
    backend = torch.backends.cuda.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "ieee"
    try:
        with autocast(device, None):
            yield
    finally:
        backend.fp32_precision = before


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Compute in a format where torch's autocast allows it; None keeps float32 throughout."""
    if not torch.amp.is_autocast_available(device.type):  # the meta device computes nothing
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
