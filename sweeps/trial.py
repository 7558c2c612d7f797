"""One trial in its process: the training in a thread, the hand-over of scores, its log.

The training thread blocks in `Report.rung` until the sweep has decided, so nothing is trained past
a rung before its verdict. Whatever ends the training becomes a result for the driver; Ray sees
neither exceptions nor numbers that are not finite.
"""

import json
import logging
import math
import os
import queue
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ray import tune

from sweeps.record import Outcome, ParamValue, RungResult
from sweeps.spool import SpoolWriter, spool_path

LATEST_NAME = "latest.pth"
LOG_NAME = "trial.log"
NUM_TAIL_LINES = 12
STOP_TIMEOUT_S = 60.0
FRACTION_TOLERANCE = 1e-6

# The keys of our results and of a trial's config; the values are JSON, which Tune leaves alone.
TASK_KEY = "task"
EVENT_KEY = "event"

_THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"),
)


class Report(Protocol):
    """What a training function tells the sweep."""

    def rung(
        self,
        metrics: Mapping[str, float],
        *,
        fraction: float,
        val_share: float,
        epoch: float,
        step: int,
        checkpoint: Path | None,
    ) -> None:
        """Hand over the score at a rung; blocks until the sweep has decided, raises to stop."""
        ...

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Log losses and statistics."""
        ...

    def artifact(self, path: Path) -> None:
        """Name a file for the tracker."""
        ...


class TrainFn(Protocol):
    """Trains one trial; picklable. It lets exceptions of `report` pass."""

    def __call__(
        self,
        params: Mapping[str, ParamValue],
        *,
        report: Report,
        workdir: Path,
        resume_from: Path | None,
    ) -> None:
        """Train to the full budget, from a checkpoint if there is one."""
        ...


class TrialStopped(Exception):
    """Ends a training normally: the sweep has decided that it goes no further."""


class TrialFailed(Exception):
    """A training ended with an error; says where its log is and how it ends."""

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(f"{message}\nlog: {log}\n{_tail(log)}".rstrip())


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all trials of a sweep share.

    Attributes:
        train_fn: The training.
        trials_dir: Holds one directory a trial.
        fidelities: (share of the budget, share of the scenes) of each rung.
        metric: Key of the objective.
        num_threads: For the numerical libraries of one trial.
    """

    train_fn: TrainFn
    trials_dir: Path
    fidelities: tuple[tuple[float, float], ...]
    metric: str
    num_threads: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """One attempt at one trial.

    Attributes:
        checkpoint: The newest one in the record.
        seconds: Training time before this attempt.
    """

    label: str
    params: Mapping[str, ParamValue]
    attempt: int
    checkpoint: str | None
    seconds: float

    def to_json(self) -> str:
        """Write for a trial's config."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an attempt ended by itself."""

    outcome: Outcome
    reason: str
    seconds: float


Event = RungResult | Ending


def to_result(event: Event) -> dict[str, Any]:
    """Put an event into a result for Tune."""
    kind = "rung" if isinstance(event, RungResult) else "ending"
    return {EVENT_KEY: json.dumps({kind: asdict(event)}), "done": isinstance(event, Ending)}


def from_result(result: Mapping[str, Any]) -> Event:
    """Take an event out of a result."""
    event = json.loads(result[EVENT_KEY])
    return RungResult(**event["rung"]) if "rung" in event else Ending(**event["ending"])


class Attempt:
    """A training in its thread, advanced from rung to rung.

    Args:
        job: What all trials share.
        task: Which trial.
    """

    def __init__(self, job: Job, task: Task) -> None:
        self._job, self._task = job, task
        self._workdir = job.trials_dir / task.label
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._go_on: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=task.label, daemon=True)
        self._is_stopping = threading.Event()
        self._seconds, self._resumed_at = task.seconds, 0.0

    def next(self) -> Event:
        """Train to the next rung or the end."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go_on.put(True)
        return self._events.get()

    def stop(self) -> bool:
        """End the training at its next report; False if it does not end in time."""
        self._is_stopping.set()
        self._go_on.put(False)
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)
        return not self._thread.is_alive()

    def hand_over(self, rung: RungResult) -> None:
        """Called by the training thread: give up a score and wait.

        Raises:
            TrialStopped: If the trial goes no further.
        """
        self._seconds = self.seconds()
        self._events.put(RungResult(**{**asdict(rung), "seconds": self._seconds}))
        goes_on = self._go_on.get()
        self._resumed_at = time.monotonic()
        if not goes_on:
            raise TrialStopped

    def check(self) -> None:
        """Called by the training thread now and then.

        Raises:
            TrialStopped: If the trial goes no further.
        """
        if self._is_stopping.is_set():
            raise TrialStopped

    def seconds(self) -> float:
        """Training time over all attempts, waiting for decisions left out."""
        return self._seconds + time.monotonic() - self._resumed_at

    def _run(self) -> None:
        log = self._workdir / LOG_NAME
        spool = SpoolWriter(spool_path(self._workdir))
        self._resumed_at = time.monotonic()
        try:
            with _logged_to(log):
                ending = self._train(spool, log)
        finally:
            spool.close()
        self._events.put(ending)

    def _train(self, spool: SpoolWriter, log: Path) -> Ending:
        """The outer edge of a trial: whatever ends the training is recorded and goes no further."""
        outcome: Outcome = "finished"
        reason = ""
        try:
            spool.attempt(self._task.attempt)
            resume_from = _newest(self._workdir / LATEST_NAME, self._task.checkpoint)
            report = _TrialReport(attempt=self, job=self._job, spool=spool)
            self._job.train_fn(
                self._task.params, report=report, workdir=self._workdir, resume_from=resume_from
            )
        except TrialStopped:
            # The driver knows already, and has its reason.
            outcome, reason = "stopped", "stopped by the sweep"
        except FloatingPointError as error:
            traceback.print_exc()
            outcome, reason = "diverged", str(error) or "a value was not finite"
        except BaseException as error:  # noqa: BLE001
            traceback.print_exc()
            message = "".join(traceback.format_exception_only(error)).strip()
            outcome, reason = "failed", str(TrialFailed(message, log))
        return Ending(outcome=outcome, reason=reason, seconds=self.seconds())


@dataclass(frozen=True, kw_only=True)
class _TrialReport:
    """The `Report` of a trial in a sweep."""

    attempt: Attempt
    job: Job
    spool: SpoolWriter

    def rung(
        self,
        metrics: Mapping[str, float],
        *,
        fraction: float,
        val_share: float,
        epoch: float,
        step: int,
        checkpoint: Path | None,
    ) -> None:
        values = {key: float(value) for key, value in metrics.items()}
        if self.job.metric not in values:
            raise ValueError(f"a rung must report {self.job.metric}, but got {sorted(values)}")
        for key, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{key} is {value} at {fraction:.0%} of the budget")
        if find_rung(self.job.fidelities, fraction, val_share) is None:
            raise ValueError(
                f"a rung must be one of {list(self.job.fidelities)} (fraction, val_share), "
                f"but got ({fraction:g}, {val_share:g})"
            )
        self.spool.rung(values, fraction=fraction, val_share=val_share, epoch=epoch, step=step)
        self.attempt.hand_over(
            RungResult(
                fraction=fraction,
                val_share=val_share,
                epoch=epoch,
                step=step,
                metrics=values,
                checkpoint=None if checkpoint is None else str(checkpoint.resolve()),
                seconds=0.0,
            )
        )

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self.attempt.check()
        self.spool.log(values, step=step)

    def artifact(self, path: Path) -> None:
        self.spool.artifact(path)


def find_rung(
    fidelities: tuple[tuple[float, float], ...], fraction: float, val_share: float
) -> int | None:
    """Which rung a score belongs to; None if it is none."""
    for index, (rung_fraction, rung_share) in enumerate(fidelities):
        near = abs(rung_fraction - fraction) + abs(rung_share - val_share)
        if near <= FRACTION_TOLERANCE:
            return index
    return None


class SweepTrainable(tune.Trainable):
    """Tune's view of an attempt. A sweep subclasses it with its `job`."""

    job: ClassVar[Job]

    def setup(self, config: dict[str, Any]) -> None:
        """Take up the first trial of this process."""
        # Before the training's libraries load: one process takes its own cores and no others.
        os.environ.update({name: str(self.job.num_threads) for name in _THREAD_VARIABLES})
        self._attempt = Attempt(self.job, Task(**json.loads(config[TASK_KEY])))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in the same process, if the last one has ended."""
        if not self._attempt.stop():
            return False
        self._attempt = Attempt(self.job, Task(**json.loads(new_config[TASK_KEY])))
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next rung or the end."""
        return to_result(self._attempt.next())

    def cleanup(self) -> None:
        """End the training that is left."""
        self._attempt.stop()


def _newest(latest: Path, checkpoint: str | None) -> Path | None:
    """The checkpoint to go on from: the newest of those there are.

    Raises:
        FileNotFoundError: If the record names a checkpoint and none is left.
    """
    named = [] if checkpoint is None else [Path(checkpoint)]
    there = [path for path in (latest, *named) if path.is_file()]
    if named and not there:
        raise FileNotFoundError(f"the trial's checkpoint {checkpoint} must exist to go on from")
    return max(there, key=lambda path: path.stat().st_mtime_ns, default=None)


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Append what the process prints and logs to a file, native libraries included."""
    with path.open("a", buffering=1, errors="replace") as file, _descriptors_to(file.fileno()):
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(min(level, logging.INFO))
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            root.removeHandler(handler)
            root.setLevel(level)


@contextmanager
def _descriptors_to(fileno: int) -> Iterator[None]:
    """Point the process's standard output and error at a file."""
    kept = [os.dup(fd) for fd in (1, 2)]
    for fd in (1, 2):
        os.dup2(fileno, fd)
    try:
        yield
    finally:
        for kept_fd, fd in zip(kept, (1, 2), strict=True):
            os.dup2(kept_fd, fd)
            os.close(kept_fd)


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-NUM_TAIL_LINES:])
