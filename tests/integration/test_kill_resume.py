"""A sweep whose driver is killed, and killed again, against what its trainings really did."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from growing import whole_lines

from sweeps.record import SweepRecord, TrialRecord, read_sweep, sqlite_url

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
NUM_TRIALS, NUM_STEPS, STEPS_PER_CHECKPOINT = 5, 12, 3
WAIT_S = 480.0


class Sweep:
    """The sweep under test, seen from outside."""

    def __init__(self, path: Path) -> None:
        self.sweeps, self.logs = path / "sweeps", path / "logs"
        self.logs.mkdir()

    @contextmanager
    def driver(self, command: str) -> Iterator[subprocess.Popen[str]]:
        """Start a driver; whatever is left of it at the end is killed."""
        paths = [str(ROOT), str(ROOT / "tests" / "sweeps")]
        process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("sweep_driver.py")),
                command,
                str(self.sweeps),
                str(self.logs),
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            kill_all(process)
            process.communicate()

    def finish(self, command: str) -> None:
        with self.driver(command) as process:
            output, _ = process.communicate(timeout=WAIT_S)
            assert process.returncode == 0, output

    def record(self) -> SweepRecord:
        return read_sweep(sqlite_url(self.sweeps / "small" / "study.db"), "small")

    def lines(self) -> dict[str, list[str]]:
        return {path.name: whole_lines(path) for path in self.logs.iterdir()}

    def wait_until(self, process: subprocess.Popen[str], holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not holds():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.02)

    def is_midway(self, num_ended: int) -> bool:
        """Enough trainings have ended, and one stands between its first score and its end."""
        logs = self.lines().values()
        ended = sum(f"end {NUM_STEPS}" in lines for lines in logs)
        halfway = any(
            "acknowledged 6" in lines and f"end {NUM_STEPS}" not in lines for lines in logs
        )
        return ended >= num_ended and halfway


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL a driver and its Ray, the driver first."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)


def without_hours(record: SweepRecord) -> SweepRecord:
    return replace(record, attrs={k: v for k, v in record.attrs.items() if k != "spent"})


def started(record: SweepRecord) -> dict[str, TrialRecord]:
    return {trial.label: trial for trial in record.started}


def test_a_killed_sweep_loses_and_repeats_nothing(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    for command, num_ended in (("run", 1), ("resume", 3)):
        with sweep.driver(command) as process:
            sweep.wait_until(process, lambda n=num_ended: sweep.is_midway(n))
            kill_all(process)
        at_kill, logs_at_kill = started(sweep.record()), sweep.lines()
        for label, lines in logs_at_kill.items():
            scored = {rung.step for rung in at_kill[label].rungs}
            acknowledged = {int(line.split()[1]) for line in lines if "acknowledged" in line}
            assert acknowledged <= scored
        for label, trial in at_kill.items():
            assert (trial.outcome is None) == (trial.state == "running"), label

    sweep.finish("resume")
    record, logs = sweep.record(), sweep.lines()
    end = started(record)

    assert [trial.number for trial in record.trials] == list(range(NUM_TRIALS))
    assert record.control is not None
    assert len(end) == NUM_TRIALS + 1
    assert all(trial.outcome == "finished" for trial in end.values())
    assert set(logs) == set(end)
    for label, before in at_kill.items():
        after = end[label]
        assert after.params == before.params
        assert after.rungs[: len(before.rungs)] == before.rungs
        if before.outcome is not None:
            assert after == before
            assert logs[label] == logs_at_kill[label]
    assert any(trial.attempts > 1 for trial in end.values())
    for label, lines in logs.items():
        steps = Counter(int(line.split()[1]) for line in lines if line.startswith("step "))
        assert set(steps) == set(range(1, NUM_STEPS + 1)), label
        num_interruptions = sum(line.startswith("begin ") for line in lines) - 1
        repeated = sum(steps.values()) - NUM_STEPS
        assert repeated <= STEPS_PER_CHECKPOINT * num_interruptions, label

    # A sweep that has ended stays as it is; only the hours that its drivers took go on.
    sweep.finish("resume")
    assert without_hours(sweep.record()) == without_hours(record)
    assert sweep.lines() == logs


def test_an_interrupted_sweep_says_so_and_resumes(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    with sweep.driver("run") as process:
        sweep.wait_until(process, lambda: sweep.is_midway(1))
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, output
    assert "was interrupted: resume continues it" in output
    assert "Traceback" not in output
    assert any(trial.state == "running" for trial in sweep.record().started)
    sweep.finish("resume")
    record = sweep.record()
    assert [trial.number for trial in record.trials] == list(range(NUM_TRIALS))
    assert all(trial.outcome == "finished" for trial in record.started)
