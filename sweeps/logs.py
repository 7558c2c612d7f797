"""The log file of a trial's process."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

LOG_NAME = "trial.log"
NUM_TAIL_LINES = 12


def log_path(workdir: Path, rank: int = 0) -> Path:
    """Where a trial's process of some rank logs."""
    return workdir / (LOG_NAME if rank == 0 else f"trial.rank{rank}.log")


def tail(log: Path) -> str:
    """The last lines of a log, as far as it can be read."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-NUM_TAIL_LINES:])


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
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
