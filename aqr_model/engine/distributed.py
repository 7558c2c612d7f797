"""Several processes that train one model: who they are, what they exchange, how they fail.

``torchrun --nproc_per_node N -m aqr_model.train CONFIG`` starts them, and :func:`launched` joins
them from its environment variables. A caller with processes of its own (a sweep's gang) calls
``torch.distributed.init_process_group`` in each of them and then ``train``, which finds the group.

Tensors of the model go through the group as it is (nccl or gloo). Everything else (counts, scores,
decisions) goes through a second group over gloo, which may wait for days: rank 0 stands still at a
rung until a sweep has decided.
"""

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

_PATIENCE = timedelta(days=30)
_FAREWELL = timedelta(seconds=30)
_FAILURE = "aqr_model/failure"
_SEEN = "aqr_model/failure_seen"


class WorkerFailed(RuntimeError):
    """Another process of the training ended with an error; says which, and how."""


@dataclass(kw_only=True)
class Workers:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: Of this process; 0 reports and saves.
        size: Number of processes.
        control: Group for everything but the model's tensors; None without other processes.
    """

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process reports and saves."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Give all processes the values of all, by rank. All must call it."""
        if self.control is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def to_main(self, value: T) -> list[T]:
        """Give rank 0 the values of all, by rank, and the others nothing. All must call it."""
        if self.control is None:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, dst=0, group=self.control)
        return values or []

    def from_main(self, value: T | None) -> T:
        """Give all processes the value of rank 0. All must call it."""
        box: list[Any] = [value]
        if self.control is not None:
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def mean(self, tensor: Tensor) -> Tensor:
        """Average a tensor over the processes. All must call it."""
        if self.control is None:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.size

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the buffers of rank 0, batch norms' statistics above all."""
        if self.control is not None:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, model: nn.Module, *, find_unused: bool) -> nn.Module:
        """Average the gradients of a model over the processes.

        torch's own class: the forward of mmcv 1.7's ``MMDistributedDataParallel`` reads an
        attribute that torch 2 has dropped, and what it adds, the unpacking of DataContainers, is
        done before. As in mmdet3d's training, each process keeps its own statistics of batch norms
        (``broadcast_buffers=False``), and `share_buffers` makes them one before they are used.

        Args:
            model: On its device.
            find_unused: Accept that parameters stay without gradient.
        """
        if self.control is None:
            return model
        return DistributedDataParallel(
            model,
            find_unused_parameters=find_unused,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,  # no second copy of all gradients
        )


@contextmanager
def together() -> Iterator[Workers]:
    """Take part in the process group there is; without one, train alone.

    If one process fails, all end, with the message of the first. The others wait in an exchange
    with it, whose connections close when its group is gone: so the group must not be used after an
    error, and what holds it (the wrapped model) must be a local of a function called inside.

    Raises:
        WorkerFailed: In a process that did not fail by itself.
    """
    if not dist.is_initialized():
        yield Workers()
        return
    control: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
    workers = Workers(rank=dist.get_rank(), size=dist.get_world_size(), control=control)
    store = dist.distributed_c10d._get_default_store()
    try:
        yield workers
    except BaseException as error:
        own = f"rank {workers.rank} of {workers.size}: {_described(error)}"
        first = _first_failure(store, own)
        # The wrapped model lives in the frames of the traceback, and the group in the model.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        workers.control = control = None
        dist.destroy_process_group()
        _see_off(store, workers)
        # What a lost connection raises has no type of its own.
        if first == own or (
            type(error) is not RuntimeError and not isinstance(error, dist.DistError)
        ):
            raise
        raise WorkerFailed(first) from error
    dist.destroy_process_group(control)


def local_device() -> torch.device:
    """The GPU of this process, by torchrun's ``LOCAL_RANK`` or the current one; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def launched() -> Iterator[bool]:
    """Join the processes that torchrun started; without it there is nothing to join.

    Yields:
        Whether this process is the one that reports.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield True
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "nccl"
    dist.init_process_group(backend)
    try:
        yield dist.get_rank() == 0
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    """Let gradients add up inside without averaging them over processes."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _described(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _first_failure(store: dist.Store, own: str) -> str:
    """Put this failure down unless another was first; return the first."""
    try:
        return store.compare_set(_FAILURE, "", own).decode()
    except (RuntimeError, dist.DistError):  # the process that holds the store has gone
        return own


def _see_off(store: dist.Store, workers: Workers) -> None:
    """Let rank 0, whose process may hold the store, outlive the others' look into it."""
    try:
        if store.add(_SEEN, 1) == workers.size:
            store.set(_SEEN + "/all", "")
        if workers.is_main:
            store.wait([_SEEN + "/all"], _FAREWELL)
    except (RuntimeError, dist.DistError):
        return  # they are gone already: nobody is left to wait for
