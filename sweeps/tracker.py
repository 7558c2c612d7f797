"""Follows a sweep and keeps MLflow in line with it, from a thread of the driver.

Nothing here waits for MLflow while trials run: the driver's thread leaves a picture of the sweep,
the other thread brings MLflow to it whenever MLflow can be reached.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.listeners import Listener, SweepContext
from sweeps.record import SweepRecord, TrialRecord, read_sweep
from sweeps.spec import load_copy
from sweeps.tracking import ATTR, Mirror, Snapshot

if TYPE_CHECKING:
    from sweeps.record import Ledger, RungResult
    from sweeps.stopping import Verdict

POLL_S, MAX_BACKOFF_S = 2.0, 60.0
_log = logging.getLogger(__name__)


class Tracker(Listener):
    """Listens to a sweep and keeps MLflow in line with it, from a thread of its own.

    Use it as a context manager around the sweep and the writing of its report.

    Args:
        tags: More tags for every run, such as `mlflow.source.git.commit`.
        warn: Told once when MLflow cannot be reached, and when something is left at the end.
        poll_s: Pause between two looks at the spools.
        timeout_s: Longest wait for MLflow when the context is left.
    """

    def __init__(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        warn: Callable[[str], None] = _log.warning,
        poll_s: float = POLL_S,
        timeout_s: float = 60.0,
    ) -> None:
        self._tags, self._warn = dict(tags or {}), warn
        self._poll_s, self._timeout_s = poll_s, timeout_s
        self._ledger: Ledger | None = None
        self._mirror: Mirror | None = None
        self._snapshot: Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._closing = False
        self._deadline = 0.0
        self._recorded: dict[str, str] = {}
        self._error: Exception | None = None
        self._warned = False

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def on_start(self, sweep: SweepContext) -> None:
        """Begin to follow the sweep."""
        record = sweep.ledger.read()
        if ATTR not in record.attrs:
            identity = {"id": uuid.uuid4().hex, "tags": self._tags}
            sweep.ledger.set_attr(ATTR, identity)
            record = replace(record, attrs={**record.attrs, ATTR: identity})
        self._ledger = sweep.ledger
        self._mirror = Mirror(sweep.spec, sweep.directory, record)
        self._snapshot = Snapshot(record=record)
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def on_trial_start(self, trial: TrialRecord) -> None:
        """Show the trial."""
        self._show(trial)

    def on_rung(self, trial: TrialRecord, rung: "RungResult", verdict: "Verdict") -> None:
        """Show how far the trial is; the scores come through its spool."""
        self._show(trial)

    def on_trial_end(self, trial: TrialRecord) -> None:
        """Show the trial's end."""
        self._show(trial)

    def on_tick(self) -> None:
        """Write the ids of new runs to the study, which has one writer: the driver's thread."""
        if self._mirror is None or self._ledger is None:
            return
        known = dict(self._mirror.run_ids)
        new = {key: run_id for key, run_id in known.items() if self._recorded.get(key) != run_id}
        self._recorded.update(new)
        if "" in new:
            self._ledger.set_attr("mlflow_run_id", new.pop(""))
        if new:
            self._ledger.set_mlflow_run_ids(new)

    def on_end(self, record: SweepRecord, *, interrupted: bool) -> None:
        """Show the sweep's end; `close` waits for the rest to arrive."""
        self.on_tick()
        self._ledger = None
        if self._snapshot is not None:
            attrs = self._snapshot.record.attrs
            ended = replace(record, attrs={**record.attrs, ATTR: attrs[ATTR]})
            self._snapshot = Snapshot(
                record=ended, session="interrupted" if interrupted else "over"
            )
        self._wake.set()

    def close(self, timeout_s: float | None = None) -> int:
        """Wait until everything has arrived, but not for ever.

        Returns:
            Spooled lines that did not arrive; they stay in the spools for `flush_spools`.
        """
        if self._thread is None or self._mirror is None or self._snapshot is None:
            return 0
        if self._snapshot.session == "running":  # The sweep broke: nobody said that it ended.
            self._snapshot = replace(self._snapshot, session="interrupted")
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        self._deadline = time.monotonic() + wait_s
        self._closing = True
        self._wake.set()
        self._thread.join(wait_s)
        left = self._mirror.backlog(self._snapshot.record)
        if self._thread.is_alive() or self._error is not None:
            self._warn(
                f"MLflow at {self._mirror.uri} has not taken everything ({left} spooled lines are"
                f" left): {_brief(self._error)}. Nothing is lost: `resume` or `report` sends them."
            )
        self._thread = None
        return left

    def _show(self, trial: TrialRecord) -> None:
        if self._snapshot is not None:
            record = _with_trial(self._snapshot.record, trial)
            self._snapshot = replace(self._snapshot, record=record)
        self._wake.set()

    def _run(self) -> None:
        pause_s = self._poll_s
        while True:
            closing = self._closing
            self._wake.clear()
            arrived = self._try()
            if closing and (arrived or time.monotonic() >= self._deadline):
                return
            pause_s = self._poll_s if arrived else min(2 * pause_s, MAX_BACKOFF_S)
            if closing:
                time.sleep(min(self._poll_s, max(0.0, self._deadline - time.monotonic())))
            elif arrived:
                self._wake.wait(pause_s)
            else:
                self._wait_for_closing(pause_s)

    def _wait_for_closing(self, pause_s: float) -> None:
        """Wait after a failure: news of trials is no reason to knock again sooner."""
        end = time.monotonic() + pause_s
        while not self._closing and (rest_s := end - time.monotonic()) > 0:
            self._wake.wait(rest_s)
            if not self._closing:
                self._wake.clear()

    def _try(self) -> bool:
        assert self._mirror is not None
        assert self._snapshot is not None
        try:
            self._mirror.bring(self._snapshot)
        except Exception as error:  # noqa: BLE001  whatever is wrong with MLflow, the sweep goes on
            self._error = error
            if not self._warned:
                self._warned = True
                self._warn(
                    f"MLflow at {self._mirror.uri} cannot be written: {_brief(error)}. The sweep"
                    " goes on, its data wait in the spools."
                )
            return False
        self._error = None
        return True


def flush_spools(directory: Path, *, timeout_s: float = 60.0) -> int:
    """Send what a finished or killed sweep still has in its spools.

    Args:
        directory: The sweep's directory.
        timeout_s: How long to try.

    Returns:
        Spooled lines that did not arrive.
    """
    spec = load_copy(directory)
    storage = spec.storage.model_copy(update={"path": str(directory.resolve().parent)})
    spec = spec.model_copy(update={"storage": storage})  # wherever the directory is now
    record = read_sweep(spec.storage_url, spec.name)
    if ATTR not in record.attrs:
        return 0
    mirror = Mirror(spec, directory, record)
    # A sweep with open trials may have a driver that runs just now.
    over = all(trial.outcome is not None for trial in record.started)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            mirror.bring(Snapshot(record=record, session="over" if over else "unknown"))
        except Exception as error:  # noqa: BLE001  the same edge as in the thread
            if time.monotonic() >= deadline:
                _log.warning("MLflow at %s cannot be written: %s", mirror.uri, _brief(error))
                return mirror.backlog(record)
            time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
        else:
            return 0


def _with_trial(record: SweepRecord, trial: TrialRecord) -> SweepRecord:
    if trial.role == "control":
        first, *repeats = _among(record.controls, trial)
        return replace(record, control=first, control_repeats=tuple(repeats))
    return replace(record, trials=_among(record.trials, trial))


def _among(trials: Sequence[TrialRecord], trial: TrialRecord) -> tuple[TrialRecord, ...]:
    """The trials with the newest state of one of them, by number."""
    others = [each for each in trials if each.label != trial.label]
    return tuple(sorted([*others, trial], key=lambda each: each.number))


def _brief(error: Exception | None) -> str:
    if error is None:
        return "it takes too long to answer"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
