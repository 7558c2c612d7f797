"""A training that hangs is ended: its process writes down where each thread stands, and exits.

Nothing else in the process need run for that, not even Python: the timer is faulthandler's own
thread. To Ray it is a process that died, so that the trial is tried again from its newest
checkpoint; `account_of` then says why it died.
"""

import faulthandler
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

_SIGN = "Timeout ("  # how faulthandler begins, before the time as H:MM:SS


class Watchdog:
    """Ends this process if nothing is heard from the training for too long; a context.

    Args:
        workdir: Of the trial; the stacks are written there.
        attempt: At the trial; each has its own file.
        limit_s: Seconds; None: it never ends the process.
    """

    def __init__(self, workdir: Path, *, attempt: int, limit_s: float | None) -> None:
        self._path, self._limit_s = stacks_path(workdir, attempt), limit_s
        self._file: BinaryIO | None = None

    def __enter__(self) -> "Watchdog":
        if self._limit_s is not None:
            self._file = self._path.open("wb")
            try:
                self.heard()
            except (OverflowError, ValueError):  # no timer takes such a limit
                self._close()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self.rest()
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)

    def heard(self) -> None:
        """Count from now."""
        if self._file is not None and self._limit_s is not None:
            faulthandler.dump_traceback_later(self._limit_s, exit=True, file=self._file)

    def rest(self) -> None:
        """Count no more, until something is heard: the training waits for the sweep."""
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()


def stacks_path(workdir: Path, attempt: int) -> Path:
    """Where an attempt that hung has left its stacks."""
    return workdir / f"stacks{attempt}.txt"


def account_of(workdir: Path, attempt: int) -> str | None:
    """What an attempt that hung has left; None if it did not hang."""
    path = stacks_path(workdir, attempt)
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return None
    if not text.startswith(_SIGN):
        return None
    limit = text.removeprefix(_SIGN).partition(")")[0]
    return (
        f"the training reported nothing for {limit} h and was ended "
        f"(`resources.silence_minutes`); where its threads stood: {path}"
    )
