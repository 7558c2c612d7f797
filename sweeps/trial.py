"""One trial in its process: the training in a thread, the hand-over of scores, its log.

The training thread blocks in `Report.rung` until the sweep has decided, so nothing is trained past
a rung before its verdict. Whatever ends the training becomes a result for the driver; Ray sees
neither exceptions nor numbers that are not finite.
"""

import json
import logging
import math
import queue
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from ray import get_runtime_context, tune
from ray.exceptions import RayActorError
from ray.util.placement_group import get_current_placement_group

from sweeps.gang import Gang
from sweeps.health import HealthRule
from sweeps.logs import LOG_NAME, log_path, logged_to
from sweeps.memory import OutOfMemory, advice_for, num_killed
from sweeps.seat import heed_sigterm
from sweeps.silence import Watchdog
from sweeps.spool import SpoolWriter, spool_path
from sweeps.task import TASK_KEY, Ending, Event, Mark, Task, to_result
from sweeps.training import (
    GangFailed,
    ProcessLost,
    Report,
    TrainFn,
    TrialFailed,
    TrialPreempted,
    TrialStopped,
)
from sweeps.trials import Outcome, RungResult
from sweeps.watch import HealthWatch
from sweeps.worker import Training, use_threads

__all__ = [
    "LATEST_NAME",
    "LOG_NAME",
    "Attempt",
    "Job",
    "Report",
    "SweepTrainable",
    "TrainFn",
    "TrialFailed",
    "TrialPreempted",
    "TrialStopped",
    "find_rung",
]

LATEST_NAME = "latest.pth"
STOP_TIMEOUT_S = 60.0
FRACTION_TOLERANCE = 1e-6
# The training's own losses carry it in their names, as mmdet3d's detectors sum them by.
LOSS_SIGN = "loss"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all trials of a sweep share.

    Attributes:
        train_fn: The training.
        trials_dir: Holds one directory a trial.
        fidelities: (share of the budget, share of the scenes) of each rung.
        metric: Key of the objective.
        num_threads: For the numerical libraries of one process.
        health: What is looked for between rungs.
        epochs: The training budget, by which the rules measure time; None: nothing is judged.
        silence_s: A training that reports nothing for so long is taken to hang; None: never.
    """

    train_fn: TrainFn
    trials_dir: Path
    fidelities: tuple[tuple[float, float], ...]
    metric: str
    num_threads: int
    health: tuple[HealthRule, ...] = ()
    epochs: float | None = None
    silence_s: float | None = None


class Attempt:
    """A training in its thread, advanced from rung to rung.

    Args:
        job: What all trials share.
        task: Which trial.
        gang: Trains in the processes of a gang; None: in this one.
        mark: Tells, if this process dies, where it was.
    """

    def __init__(
        self, job: Job, task: Task, gang: Gang | None = None, mark: Mark | None = None
    ) -> None:
        self._job, self._task, self._gang, self._mark = job, task, gang, mark
        self._workdir = job.trials_dir / task.label
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()
        self._go_on: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=task.label, daemon=True)
        self._is_stopping = threading.Event()
        self._seconds, self._resumed_at = task.seconds, 0.0
        self._watch = HealthWatch(job.health, job.epochs, job.trials_dir, task)
        # In a gang rank 0 watches over itself: this process only leads.
        limit_s = None if gang is not None else job.silence_s
        self._watchdog = Watchdog(self._workdir, attempt=task.attempt, limit_s=limit_s)

    @property
    def flags(self) -> Mapping[str, str]:
        """What the health rules have said; complete while the training waits or has ended."""
        return self._watch.flags

    def next(self) -> Event:
        """Train to the next rung or the end.

        Raises:
            ProcessLost: If a process of the gang is gone; another attempt can go on.
            TrialPreempted: If the training had to leave; likewise.
        """
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go_on.put(True)
        event = self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

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
        self._watchdog.rest()
        self._events.put(RungResult(**{**asdict(rung), "seconds": self._seconds}))
        goes_on = self._go_on.get()
        self._resumed_at = time.monotonic()
        self._watchdog.heard()
        if not goes_on:
            raise TrialStopped

    def heard(self) -> None:
        """Called by the training thread: it reported something."""
        self._watchdog.heard()

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
        self._resumed_at = time.monotonic()
        try:
            event = self._train_on_disk()
        except Exception as error:  # noqa: BLE001  without an event the trial would wait for ever
            # Mostly neither log nor spool can be written: nothing is trained.
            event = _failed(error, self.seconds())
        self._events.put(event)

    def _train_on_disk(self) -> Ending | Exception:
        log = log_path(self._workdir)
        spool = SpoolWriter(spool_path(self._workdir))
        try:
            if self._mark is not None:
                self._mark.leave(self._workdir)
            with logged_to(log), self._watchdog:
                return self._train(spool, log)
        finally:
            spool.close()
            Mark.path(self._workdir).unlink(missing_ok=True)

    def _train(self, spool: SpoolWriter, log: Path) -> Ending | Exception:
        """The outer edge of a trial: whatever ends the training is recorded and goes no further."""
        outcome: Outcome = "finished"
        reason = ""
        try:
            self._call(spool)
        except (ProcessLost, TrialPreempted) as notice:
            logger.warning("%s", notice)
            return notice  # not an end: Ray gives the trial another process
        except TrialStopped as stop:
            # Where the sweep stopped it, the driver knows already, and has its reason.
            outcome, reason = "stopped", str(stop) or "stopped by the sweep"
        except FloatingPointError as error:
            traceback.print_exc()
            outcome, reason = "diverged", str(error) or "a value was not finite"
        except (GangFailed, OutOfMemory) as error:
            logger.error("%s", error)
            outcome, reason = "failed", str(error)
        except BaseException as error:  # noqa: BLE001
            traceback.print_exc()
            message = "".join(traceback.format_exception_only(error)).strip()
            advice = advice_for(error)
            said = message if advice is None else f"{advice}. {message}"
            outcome, reason = "failed", str(TrialFailed(said, log))
        return Ending(outcome=outcome, reason=reason, seconds=self.seconds())

    def _call(self, spool: SpoolWriter) -> None:
        """Train, in this process or in the gang's."""
        task = self._task
        if task.doom is not None:
            raise OutOfMemory(task.doom)
        spool.attempt(task.attempt)
        resume_from = _newest(self._workdir / LATEST_NAME, task.checkpoint)
        self._watch.read()
        report = _TrialReport(attempt=self, job=self._job, spool=spool, watch=self._watch)
        train_fn, workdir = self._job.train_fn, self._workdir
        if self._gang is None:
            train_fn(task.params, report=report, workdir=workdir, resume_from=resume_from)
            return
        training = Training(
            train_fn=train_fn,
            params=task.params,
            workdir=workdir,
            resume_from=resume_from,
            attempt=task.attempt,
            silence_s=self._job.silence_s,
        )
        self._gang.train(training, report, self.check)


class NoAttempt:
    """Stands for an attempt that cannot begin in this process.

    Tune hears of it as of any other, since it forgets trials whose process cannot be set up.

    Args:
        event: What its first `next` gives, or raises if it is an exception.
    """

    def __init__(self, event: Ending | ProcessLost) -> None:
        self._event = event

    @property
    def flags(self) -> Mapping[str, str]:
        """Nothing was trained that the health rules could speak of."""
        return {}

    def next(self) -> Event:
        """Say why.

        Raises:
            ProcessLost: If the attempt could begin in another process.
        """
        if isinstance(self._event, ProcessLost):
            raise self._event
        return self._event

    def stop(self) -> bool:
        """There is nothing to end."""
        return True


@dataclass(frozen=True, kw_only=True)
class _TrialReport:
    """The `Report` of a trial in a sweep."""

    attempt: Attempt
    job: Job
    spool: SpoolWriter
    watch: HealthWatch

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
        self.attempt.heard()
        for key, value in values.items():
            # A training that goes on with such a loss would waste the rest of its budget.
            if LOSS_SIGN in key and not math.isfinite(value):
                raise FloatingPointError(f"{key} is {value:g} at step {step}")
        self.spool.log(values, step=step)
        self.watch.look(self.spool, values, step=step)

    def artifact(self, path: Path) -> None:
        self.attempt.heard()
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
        use_threads(self.job.num_threads)
        heed_sigterm()
        group = get_current_placement_group()
        is_gang = group is not None and group.bundle_count > 1
        self._gang = Gang(group, self.job.num_threads) if is_gang and group else None
        self._attempt = self._new_attempt(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in the same processes, if the last one has ended."""
        if self._attempt.stop():
            self._attempt = self._new_attempt(new_config)
        else:
            # Tune gives up a trial that is refused here; one that loses its process gets another.
            lost = ProcessLost(f"the training before it does not end in {STOP_TIMEOUT_S:g} s")
            self._attempt = NoAttempt(lost)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next rung or the end."""
        try:
            event = self._attempt.next()
        except TrialPreempted as notice:
            # Ray does not count the end of such a process as a failure.
            raise RayActorError(error_msg=f"preempted: {notice}", preempted=True) from notice
        return to_result(event, self._attempt.flags)

    def cleanup(self) -> None:
        """End the training that is left."""
        self._attempt.stop()
        if self._gang is not None:
            self._gang.close()

    def _new_attempt(self, config: dict[str, Any]) -> Attempt | NoAttempt:
        task = Task(**json.loads(config[TASK_KEY]))
        mark = None
        if self._gang is None:  # a gang looks after its processes itself
            mark = Mark(node=get_runtime_context().get_node_id(), num_killed=num_killed())
        try:
            return Attempt(self.job, task, self._gang, mark)
        except OSError as error:  # its directory cannot be made
            return NoAttempt(_failed(error, task.seconds))


def _failed(error: Exception, seconds: float) -> Ending:
    """The end of a trial that an error kept from its training."""
    return Ending(outcome="failed", reason=f"{type(error).__name__}: {error}", seconds=seconds)


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
