"""A trial's spool: what it logs, one JSON record a line, appended where the trial runs.

Statistics and losses go here and never through Ray; the tracker reads on from a byte offset when it
can. Kinds of records: `attempt`, `log`, `rung`, `artifact`, `flag`. After a resume, steps may come
again; the later line holds.
"""

import errno
import json
import logging
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPOOL_NAME = "spool.jsonl"
MAX_CHUNK_BYTES = 4 << 20
# A power failure forgets no more than this of a spool at a score; a killed process nothing.
SYNC_S = 1.0
# What is kept of a curve: all of the newest points, older ones ever more sparsely.
MAX_POINTS, NUM_NEWEST = 1024, 256

logger = logging.getLogger(__name__)
# What was said about a line, by spool and offset: it may be read again and again.
_complaints: set[tuple[Path, int]] = set()


@dataclass(frozen=True, kw_only=True)
class SpoolChunk:
    """Some records of a spool.

    Attributes:
        records: In the order they were written.
        offset: Where to read on, in bytes.
    """

    records: tuple[dict[str, Any], ...]
    offset: int


def spool_path(trial_dir: Path) -> Path:
    """The spool of a trial."""
    return trial_dir / SPOOL_NAME


class SpoolWriter:
    """Appends to a spool; each record is one write, so readers see whole lines.

    Its methods raise OSError if a record does not fit on the disk; none of it is left there then.
    """

    def __init__(self, path: Path) -> None:
        _cut_torn_line(path)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._synced_at = time.monotonic()

    def attempt(self, number: int) -> None:
        """Mark where an attempt at training begins."""
        self._append("attempt", attempt=number)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Add values of an optimizer step."""
        self._append("log", step=step, values={key: float(v) for key, v in values.items()})

    def rung(
        self,
        metrics: Mapping[str, float],
        *,
        fraction: float,
        val_share: float,
        epoch: float,
        step: int,
    ) -> None:
        """Add a score, and see that all before it is on the disk, if that was not seen just now."""
        self._append(
            "rung",
            fraction=fraction,
            val_share=val_share,
            epoch=epoch,
            step=step,
            metrics=dict(metrics),
        )
        if time.monotonic() - self._synced_at >= SYNC_S:
            os.fsync(self._file.fileno())
            self._synced_at = time.monotonic()

    def artifact(self, path: Path) -> None:
        """Name a file for the tracker."""
        self._append("artifact", path=str(path.resolve()))

    def flag(self, rule: str, reason: str, *, stop: bool) -> None:
        """Add what a health rule says of the trial."""
        self._append("flag", rule=rule, reason=reason, stop=stop)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, kind: str, **values: Any) -> None:
        record = {"kind": kind, "time_ms": time.time_ns() // 1_000_000, **values}
        line = json.dumps(record).encode() + b"\n"
        written = self._file.write(line)
        if written != len(line):
            # A full disk takes a part and no error tells it; the next line must not join that part.
            self._file.truncate(self._file.tell() - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


def read_spool(path: Path, offset: int = 0) -> SpoolChunk:
    """Read whole lines from an offset on, some megabytes at most; nothing if there is no spool.

    A line that is no record is left out and logged once: one broken line, such as a power failure
    leaves, must not keep the others.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(MAX_CHUNK_BYTES)
            if b"\n" not in data:
                data += file.readline()
    except FileNotFoundError:
        return SpoolChunk(records=(), offset=offset)
    whole = data[: data.rfind(b"\n") + 1]
    records, end = [], offset
    for line in whole.splitlines(keepends=True):
        record = _record_of(line)
        if record is not None:
            records.append(record)
        elif (path, end) not in _complaints:
            _complaints.add((path, end))
            logger.warning("%s: the line at byte %d is no record and is left out", path, end)
        end += len(line)
    if whole and not records:  # to the caller this would be the end of the spool
        return read_spool(path, end)
    return SpoolChunk(records=tuple(records), offset=end)


def _record_of(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


class SpoolCurves:
    """Some metrics of a spool and its flags, read on as the spool grows.

    Attributes:
        curves: (step, value) of each metric, by rising step; no more than some hundred points each.
        flags: The reason of each health rule that has spoken.
    """

    def __init__(self, path: Path, metrics: Collection[str]) -> None:
        self._path, self._metrics, self._offset = path, frozenset(metrics), 0
        self._is_new_attempt = False
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.flags: dict[str, str] = {}

    def read(self) -> dict[str, list[tuple[int, float]]]:
        """Take in what has been written since; the curves as they are now."""
        while (chunk := read_spool(self._path, self._offset)).records:
            self._offset = chunk.offset
            for record in chunk.records:
                self._take(record)
        return self.curves

    def _take(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "attempt":
            self._is_new_attempt = True
        elif record["kind"] == "flag":
            self.flags[record["rule"]] = record["reason"]
        elif record["kind"] == "log":
            if self._is_new_attempt:
                self._forget_from(record["step"])
            for name in self._metrics & record["values"].keys():
                points = self.curves.setdefault(name, [])
                points.append((record["step"], record["values"][name]))
                if len(points) > MAX_POINTS:
                    points[:-NUM_NEWEST] = points[:-NUM_NEWEST:2]

    def _forget_from(self, step: int) -> None:
        """An attempt repeats steps of the one before."""
        self._is_new_attempt = False
        for name, points in self.curves.items():
            self.curves[name] = [point for point in points if point[0] < step]


def _cut_torn_line(path: Path) -> None:
    """Remove the half line that a killed writer may have left."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
