"""One process of a gang: a training in a thread, and what the leader asks it."""

import os
import queue
import socket
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray

from sweeps.logs import log_path, logged_to
from sweeps.memory import OutOfMemory, advice_for, num_killed
from sweeps.seat import Seat, heed_sigterm, take_seat
from sweeps.silence import Watchdog
from sweeps.training import (
    GangFailed,
    PeerFailed,
    TrainFn,
    TrialFailed,
    TrialPreempted,
    TrialStopped,
)
from sweeps.trials import ParamValue

_THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"),
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every process of a gang is called with.

    Attributes:
        attempt: At the trial.
        silence_s: Rank 0 ends itself if it has reported nothing for so long; None: never.
    """

    train_fn: TrainFn
    params: Mapping[str, ParamValue]
    workdir: Path
    resume_from: Path | None
    attempt: int = 1
    silence_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker is.

    Attributes:
        gpus: Ray's names of its GPUs.
        num_killed: Processes that the kernel has killed there for memory, so far.
    """

    node: str
    address: str
    pid: int
    gpus: tuple[str, ...]
    num_killed: int | None


@dataclass(frozen=True, kw_only=True)
class Call:
    """Rank 0 calls its report."""

    method: Literal["rung", "log", "artifact"]
    args: tuple[Any, ...]
    named: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class End:
    """A worker's training is over.

    Attributes:
        error: What it raised, as an exception that can travel; None if it came to its end.
        is_echo: It ended because of another process.
    """

    error: Exception | None = None
    is_echo: bool = False

    @property
    def is_cause(self) -> bool:
        """Whether nothing is gained by waiting for the others: this is what went wrong."""
        is_told = isinstance(self.error, TrialStopped | TrialPreempted)
        return self.error is not None and not self.is_echo and not is_told


def use_threads(number: int) -> None:
    """Bound the threads of numerical libraries that load later in this process."""
    os.environ.update({name: str(number) for name in _THREAD_VARIABLES})


class Worker:
    """One process of a gang; the training runs in a thread, the main thread talks.

    Args:
        num_threads: For numerical libraries.
    """

    def __init__(self, num_threads: int) -> None:
        use_threads(num_threads)
        heed_sigterm()
        self._events: queue.SimpleQueue[Call | End] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._listener: socket.socket | None = None
        self._watchdog: Watchdog | None = None

    def place(self) -> Place:
        """Say where this is."""
        context = ray.get_runtime_context()
        return Place(
            node=context.get_node_id(),
            address=ray.util.get_node_ip_address(),
            pid=os.getpid(),
            gpus=tuple(str(gpu) for gpu in ray.get_gpu_ids()),
            num_killed=num_killed(),
        )

    def listen(self) -> int:
        """Open the port at which rank 0 will gather the others; it stays ours until then."""
        if self._listener is not None:
            self._listener.close()
        self._listener = socket.create_server(("", 0), backlog=256)
        return self._listener.getsockname()[1]

    def begin(self, training: Training, seat: Seat, visible_gpus: str) -> None:
        """Start the training."""
        if visible_gpus:
            # All of the gang's on this node: nccl's direct copies need to see both ends.
            os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus
        if self._listener is not None:
            # The training takes the socket over and closes it.
            seat = replace(seat, listener=self._listener.detach())
            self._listener = None
        take_seat(seat)
        threading.Thread(target=self._run, args=(training, seat), daemon=True).start()

    def next(self, answer: Exception | None = None, *, is_answer: bool = False) -> Call | End:
        """Wait for the next event, after the answer to the last."""
        if is_answer:
            self._answers.put(answer)
        return self._events.get()

    def say(self, method: Literal["rung", "log", "artifact"], *args: Any, **named: Any) -> None:
        """Called by the training thread of rank 0: report, and take the answer."""
        if self._watchdog is not None:
            self._watchdog.rest()
        self._events.put(Call(method=method, args=args, named=named))
        answer = self._answers.get()
        if self._watchdog is not None:
            self._watchdog.heard()
        if answer is not None:
            raise answer

    def _run(self, training: Training, seat: Seat) -> None:
        log = log_path(training.workdir, seat.rank)
        try:
            training.workdir.mkdir(parents=True, exist_ok=True)
            # The others report nothing; where one of them hangs, rank 0 waits for it.
            limit_s = training.silence_s if seat.rank == 0 else None
            watchdog = Watchdog(training.workdir, attempt=training.attempt, limit_s=limit_s)
            self._watchdog = watchdog
            with logged_to(log), watchdog:
                end = self._train(training, seat, log)
        except Exception as error:  # noqa: BLE001  without an end the gang would wait for ever
            # Mostly there is no log, hence no training: the disk is full or gone.
            who = f"rank {seat.rank} of {seat.size}"
            end = End(error=GangFailed(f"{who}: {type(error).__name__}: {error}"))
        self._events.put(end)

    def _train(self, training: Training, seat: Seat, log: Path) -> End:
        """The outer edge of a worker: whatever ends its training goes to the leader."""
        try:
            training.train_fn(
                training.params,
                report=_ReportOfFirst(self) if seat.rank == 0 else _Silence(),
                workdir=training.workdir,
                resume_from=training.resume_from,
            )
        except (TrialStopped, TrialPreempted) as notice:
            return End(error=notice)
        except BaseException as error:  # noqa: BLE001
            traceback.print_exc()
            return _end_of(error, seat, log)
        return End()


def _end_of(error: BaseException, seat: Seat, log: Path) -> End:
    """An error as plain text, since not every exception can travel."""
    said = "".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, FloatingPointError):
        return End(error=FloatingPointError(str(error)))
    if isinstance(error, PeerFailed):
        return End(error=GangFailed(said), is_echo=True)
    who = f"rank {seat.rank} of {seat.size}"
    advice = advice_for(error)
    if advice is not None:
        return End(error=OutOfMemory(f"{who}: {advice}. {TrialFailed(said, log)}"))
    # Processes that have lost their peer see that connection fail, by an error without a name.
    return End(error=GangFailed(f"{who}: {TrialFailed(said, log)}"), is_echo=_is_lost(error))


def _is_lost(error: BaseException) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    return "DistError" in names or (type(error) is RuntimeError and "onnection" in str(error))


@dataclass(frozen=True)
class _ReportOfFirst:
    """The report of rank 0, carried out by the leader."""

    worker: Worker

    def rung(self, metrics: Mapping[str, float], **named: Any) -> None:
        # The score of a model on a GPU may come as a tensor, which the leader could not unpack.
        self.worker.say("rung", {key: float(value) for key, value in metrics.items()}, **named)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self.worker.say("log", {key: float(value) for key, value in values.items()}, step=step)

    def artifact(self, path: Path) -> None:
        self.worker.say("artifact", path)


class _Silence:
    """The report of the other ranks."""

    def rung(self, metrics: Mapping[str, float], **named: Any) -> None:
        pass

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        pass

    def artifact(self, path: Path) -> None:
        pass
