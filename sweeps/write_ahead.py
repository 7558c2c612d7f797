"""How a study's SQLite file keeps its promises without waiting for the disk at every value.

On a file system of this machine the file has a write-ahead log: a commit is one write to it, which
a killed process leaves behind whole, and readers and the writer do not wait for each other. The
disk itself, which a power failure asks for, is waited for once a second at most: at once where
commits are rare, as between the scores of real trainings, and a moment later in a burst.

A write-ahead log needs memory that all processes share, which network file systems lack: there the
rollback journal stays, and each commit waits for the disk.
"""

import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

SYNC_S = 1.0
LOCAL_TYPES = frozenset({"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"})
MOUNTS = Path("/proc/self/mountinfo")


def is_local(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether a path is known to lie on a file system that no other machine sees."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:  # not Linux
        return False
    kind, depth = "", -1
    place = path.resolve()
    for line in lines:
        fields = line.split()
        point = Path(_unescaped(fields[4]))
        # Of mounts over each other the last one counts.
        if place.is_relative_to(point) and len(point.parts) >= depth:
            kind, depth = fields[fields.index("-") + 1], len(point.parts)
    return kind in LOCAL_TYPES


def prepare(connection: sqlite3.Connection, database: Path) -> None:
    """Choose the journal for a connection that writes."""
    wanted = "wal" if is_local(database.parent) else "delete"
    with suppress(sqlite3.OperationalError):  # locked or read-only: then it stays as it is
        connection.execute(f"pragma journal_mode={wanted}")
    (mode,) = connection.execute("pragma journal_mode").fetchone()
    # With a write-ahead log a commit need not wait: `DiskWait` does. Otherwise it must.
    connection.execute(f"pragma synchronous={'normal' if mode == 'wal' else 'full'}")


def fold(database: Path) -> None:
    """Put all into the one file, which then can be copied alone and read on a read-only disk.

    While others read it, it stays as it is, which is as right.
    """
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(database, 1.0)) as connection:
        connection.execute("pragma journal_mode=delete")


class DiskWait:
    """Sees that what was committed reaches the disk, and waits for that once a second at most.

    Args:
        database: A SQLite file; None: a server, which sees to it itself.
        clock: Seconds.
    """

    def __init__(self, database: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = None if database is None else database.with_name(f"{database.name}-wal")
        self._clock = clock
        self._synced_at = -SYNC_S
        self._is_due = False

    def note_commit(self) -> None:
        """Something was committed."""
        self._is_due = True
        self.catch_up()

    def catch_up(self) -> None:
        """Wait for the disk, if there is something to wait for and the last time is a while ago."""
        if not self._is_due or self._log is None or self._clock() - self._synced_at < SYNC_S:
            return
        self._synced_at, self._is_due = self._clock(), False
        for path in (self._log, self._log.parent):
            with suppress(FileNotFoundError):  # without a log each commit has waited itself
                _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unescaped(text: str) -> str:
    """The kernel writes spaces and the like in octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
