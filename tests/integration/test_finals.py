"""Finals whose driver is killed in their midst: nothing repeated twice, nothing lost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from growing import whole_lines
from test_kill_resume import NUM_STEPS, ROOT, WAIT_S, kill_all

from sweeps.finalists import best_trials
from sweeps.record import SweepRecord, read_sweep, sqlite_url

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]
NUM_TRIALS = 3


def start(command: str, path: Path) -> subprocess.Popen[str]:
    paths = [str(ROOT), str(ROOT / "tests" / "sweeps")]
    driver = Path(__file__).with_name("finals_driver.py")
    return subprocess.Popen(
        [sys.executable, str(driver), command, str(path / "sweeps"), str(path / "logs")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def record_of(path: Path) -> SweepRecord:
    return read_sweep(sqlite_url(path / "sweeps" / "small" / "study.db"), "small")


def logs_of_finals(path: Path) -> dict[str, list[str]]:
    return {
        file.name: whole_lines(file)
        for file in (path / "logs").iterdir()
        if file.name >= f"t{NUM_TRIALS:03d}"
    }


def is_midway(lines: list[str]) -> bool:
    """A training has a score in the study, and is not at its end."""
    return f"acknowledged {NUM_STEPS // 2}" in lines and f"step {NUM_STEPS}" not in lines


def test_finals_that_are_killed_repeat_nothing_and_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    num_seen = 0
    for command in ("run", "resume"):
        process = start(command, tmp_path)
        try:
            deadline = time.monotonic() + WAIT_S
            while True:
                finals = logs_of_finals(tmp_path)
                if len(finals) > num_seen and any(map(is_midway, finals.values())):
                    break
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline, finals
                time.sleep(0.02)
        finally:
            kill_all(process)
            process.communicate()
        num_seen = len(finals)
    at_kill = record_of(tmp_path)

    process = start("resume", tmp_path)
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, output
    record = record_of(tmp_path)

    chosen = [trial.number for trial in best_trials(record.searched, 2, "max")]
    assert sorted((trial.repeats or 0, trial.seed) for trial in record.finalists) == sorted(
        (number, seed) for number in chosen for seed in (4, 5)
    )
    assert [trial.seed for trial in record.controls] == [3, 4, 5]
    assert [trial.number for trial in record.trials] == list(range(NUM_TRIALS + 4))
    assert all(trial.outcome == "finished" for trial in record.started)
    for before in at_kill.started:
        after = next(trial for trial in record.started if trial.label == before.label)
        assert after.params == before.params
        assert after.rungs[: len(before.rungs)] == before.rungs
        if before.outcome is not None:
            assert after == before
    # What really trained, whatever the sweep says: each training once to its end, or to its last
    # score, which a kill may follow at once.
    logs = {file.name: file.read_text().splitlines() for file in (tmp_path / "logs").iterdir()}
    assert set(logs) == {trial.label for trial in record.started}
    for label, lines in logs.items():
        assert lines.count(f"step {NUM_STEPS}") >= 1, label
        assert lines.count(f"end {NUM_STEPS}") <= 1, label
