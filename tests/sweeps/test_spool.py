import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweeps.spool import MAX_CHUNK_BYTES, SpoolCurves, SpoolWriter, read_spool


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond a size: of a write, what fits is taken, as by a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_spool(path).records]


def line(step: int) -> bytes:
    record = {"kind": "log", "time_ms": 0, "step": step, "values": {"a": float(step)}}
    return json.dumps(record).encode() + b"\n"


def test_a_line_that_does_not_fit_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "spool.jsonl"
    writer = SpoolWriter(path)
    writer.log({"a": 1.0}, step=1)
    size = path.stat().st_size
    with room_for(size + 10), pytest.raises(OSError, match=r"No space left.*spool\.jsonl") as full:
        writer.log({"a": 2.0}, step=2)
    assert full.value.errno == errno.ENOSPC
    assert path.stat().st_size == size
    # There is room again, and whoever writes on begins a line of its own.
    writer.log({"a": 3.0}, step=3)
    assert steps(path) == [1, 3]
    writer.close()


@pytest.mark.parametrize("left", [line(2)[:9], line(2)[:-1], b"\0" * 9])
def test_a_new_writer_removes_what_a_kill_left_of_a_line(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "spool.jsonl"
    path.write_bytes(line(1) + left)
    writer = SpoolWriter(path)
    writer.log({"a": 3.0}, step=3)
    writer.close()
    assert steps(path) == [1, 3]


@pytest.mark.parametrize(
    "broken", [line(2)[:20] + line(2), b"\0\0\0\n", b"\xff\xfe\n", b"\n", b"7\n", b"no json\n"]
)
def test_a_line_that_is_no_record_is_left_out_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: bytes
) -> None:
    path = tmp_path / "spool.jsonl"
    path.write_bytes(line(1) + broken + line(3))
    assert steps(path) == [1, 3]
    assert read_spool(path).offset == path.stat().st_size
    curves = SpoolCurves(path, {"a"})
    assert curves.read() == {"a": [(1, 1.0), (3, 3.0)]}
    (told,) = caplog.messages
    assert f"{path}: the line at byte {len(line(1))} is no record" in told


def test_what_stands_behind_many_broken_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "spool.jsonl"
    path.write_bytes(b"\0" * (MAX_CHUNK_BYTES + 1) + b"\n" + line(1))
    assert steps(path) == [1]
