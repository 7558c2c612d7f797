"""The watchdog ends real processes, which these tests start."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sweeps.silence import Watchdog, account_of, stacks_path

PRELUDE = """
import ctypes, sys, threading, time
from pathlib import Path
from sweeps.silence import Watchdog

def train():
    hang()

watchdog = Watchdog(Path(sys.argv[1]), attempt=2, limit_s=float(sys.argv[2]))
"""


def run(folder: Path, script: str, *, limit_s: float = 1.0) -> int:
    code = PRELUDE + textwrap.dedent(script)
    command = [sys.executable, "-c", code, str(folder), str(limit_s)]
    return subprocess.run(command, timeout=60, check=False).returncode


@pytest.mark.parametrize(
    "hang",
    [
        "lambda: threading.Lock().acquire() and threading.Event().wait()",
        # In C, and with the interpreter held: no other thread of Python runs.
        "lambda: ctypes.PyDLL(None).sleep(120)",
    ],
)
def test_a_training_that_hangs_is_ended_and_says_where(tmp_path: Path, hang: str) -> None:
    script = f"""
    hang = {hang}
    with watchdog:
        thread = threading.Thread(target=train, daemon=True)
        thread.start()
        thread.join()
    """
    assert run(tmp_path, script) == 1
    assert "in train" in stacks_path(tmp_path, 2).read_text()
    account = account_of(tmp_path, 2)
    assert account is not None
    assert "reported nothing for 0:00:01 h" in account
    assert str(stacks_path(tmp_path, 2)) in account
    assert account_of(tmp_path, 1) is None


def test_one_that_reports_or_waits_for_the_sweep_goes_on(tmp_path: Path) -> None:
    script = """
    with watchdog:
        for _ in range(12):
            time.sleep(0.25)
            watchdog.heard()
        watchdog.rest()
        time.sleep(2.5)
    time.sleep(2.5)
    """
    assert run(tmp_path, script, limit_s=2.0) == 0
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_watched_without_a_limit(tmp_path: Path) -> None:
    with Watchdog(tmp_path, attempt=1, limit_s=None) as watchdog:
        watchdog.heard()
        watchdog.rest()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limit_s", "error"), [(1e12, OverflowError), (-1.0, ValueError)])
def test_a_limit_that_no_timer_takes_leaves_nothing(
    tmp_path: Path, limit_s: float, error: type[Exception]
) -> None:
    with pytest.raises(error), Watchdog(tmp_path, attempt=1, limit_s=limit_s):
        pass
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_no_account(tmp_path: Path) -> None:
    stacks_path(tmp_path, 1).write_bytes(b"\xff\xfe")
    stacks_path(tmp_path, 2).mkdir()
    assert account_of(tmp_path, 1) is None
    assert account_of(tmp_path, 2) is None
