"""What crosses between host and device in a training step: every read, every upload, by name.

A read makes the host wait until the device has done all that was asked of it; on a GPU it is what
keeps a step from running ahead. So all crossings go through the functions here, and
:func:`crossings` counts them, on a CPU as well, where nothing would be slow enough to notice.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

_counters: list[Counter[str]] = []


@contextmanager
def crossings() -> Iterator[Counter[str]]:
    """Count the crossings inside, by direction and name: ``read: matching costs`` and so on."""
    counter: Counter[str] = Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def _note(direction: str, what: str) -> None:
    for counter in _counters:
        counter[f"{direction}: {what}"] += 1


def read(tensors: Sequence[Tensor], what: str) -> list[Tensor]:
    """Bring tensors to the host, with one wait for all of them.

    Args:
        tensors: On one device.
        what: A name for the count.

    Returns:
        On the CPU; a tensor that is there already is returned as it is.
    """
    return read_later(tensors, what)()


def read_later(tensors: Sequence[Tensor], what: str) -> Callable[[], list[Tensor]]:
    """Send tensors to the host, which waits for them only where it asks for them.

    Args:
        tensors: On one device.
        what: A name for the count.

    Returns:
        Gives what `read` returns; a second call gives the same.
    """
    _note("read", what)
    copies = [tensor.detach().to("cpu", non_blocking=True) for tensor in tensors]
    if not any(tensor.is_cuda for tensor in tensors):
        return lambda: copies
    # Only the last copy is waited for: those before it are done by then.
    arrived = torch.cuda.current_stream(tensors[0].device).record_event()

    def ask() -> list[Tensor]:
        arrived.synchronize()
        return copies

    return ask


def places(mask: Tensor, what: str) -> tuple[Tensor, ...]:
    """Indices of the true entries, one tensor a dimension; the host waits for their number.

    Args:
        mask: bool. [...]
        what: A name for the count.

    Returns:
        As many tensors as the mask has dimensions. Each [N]
    """
    _note("read", what)
    return mask.nonzero(as_tuple=True)


def upload(tensors: Sequence[Tensor], device: torch.device, what: str) -> list[Tensor]:
    """Send host tensors to a device without waiting for it.

    Args:
        tensors: On the CPU; pinned ones are sent as they are.
        device: Where to.
        what: A name for the count.
    """
    _note("upload", what)
    if device.type == "cuda":
        # From pageable memory the copy would wait for the device.
        tensors = [tensor if tensor.is_pinned() else tensor.pin_memory() for tensor in tensors]
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers that never change, on the device and in the type of a tensor; sent there once."""
    return _constant(tuple(values), like.device, like.dtype)


@cache
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    _note("upload", "a constant, once")
    with torch.inference_mode(False):  # a tensor made in inference mode could not be trained with
        return torch.tensor(values, dtype=dtype).to(device)
