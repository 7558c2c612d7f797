import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from sweeps import write_ahead
from sweeps.record import Ledger, read_sweep, sqlite_url
from sweeps.write_ahead import SYNC_S, DiskWait, fold, is_local, prepare

MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:25 / /shared rw,relatime - nfs4 server:/shared rw
31 30 254:2 / /shared/with\\040space rw,relatime shared:7 master:1 - xfs /dev/vdb rw
40 22 0:30 / /home rw - tmpfs tmpfs rw
41 40 0:31 / /home rw - fuse.sshfs me@there: rw
"""


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("/sweeps", True),
        ("/shared/sweeps", False),
        ("/sharedbutnot", True),
        ("/shared/with space/sweeps", True),
        ("/home/me", False),  # what is mounted later hides what was there
    ],
)
def test_file_systems_of_this_machine_alone(tmp_path: Path, path: str, local: bool) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert is_local(Path(path), mounts) is local


def test_what_is_not_known_is_not_local(tmp_path: Path) -> None:
    assert not is_local(Path("/sweeps"), tmp_path / "mountinfo")


def mode_of(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("pragma journal_mode").fetchone()[0]


@pytest.mark.parametrize(("local", "mode", "synchronous"), [(True, "wal", 1), (False, "delete", 2)])
def test_a_writer_waits_itself_where_there_is_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool, mode: str, synchronous: int
) -> None:
    monkeypatch.setattr(write_ahead, "is_local", lambda path: local)
    path = tmp_path / "study.db"
    with closing(sqlite3.connect(path)) as before:
        before.execute("pragma journal_mode=wal" if not local else "pragma journal_mode=delete")
        before.execute("create table t (a)")
    with closing(sqlite3.connect(path)) as connection:
        prepare(connection, path)
        assert connection.execute("pragma synchronous").fetchone() == (synchronous,)
        assert mode_of(path) == mode


def test_a_writer_whose_file_is_in_use_keeps_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("create table t (a)")
        reader.execute("begin")
        reader.execute("select * from t").fetchall()
        with closing(sqlite3.connect(path, timeout=0)) as connection:
            prepare(connection, path)
            assert connection.execute("pragma synchronous").fetchone() == (2,)
    assert mode_of(path) == "delete"


def test_an_ended_sweep_is_one_file(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "study.db")
    ledger = Ledger(url, "s", mode="max")
    ledger.set_attr("a", 1)
    assert (tmp_path / "study.db-wal").stat().st_size > 0
    ledger.close()
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]
    copy = tmp_path / "copy.db"
    shutil.copy(tmp_path / "study.db", copy)
    assert read_sweep(sqlite_url(copy), "s").attrs["a"] == 1


def test_a_reader_keeps_the_log_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    ledger = Ledger(sqlite_url(path), "s", mode="max")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("begin")
        reader.execute("select * from studies").fetchall()
        ledger.set_attr("a", 1)
        ledger.close()
    assert mode_of(path) == "wal"
    assert read_sweep(sqlite_url(path), "s").attrs["a"] == 1
    fold(path)
    assert mode_of(path) == "delete"


DRIVER = """
import sys
from sweeps.record import Ledger
ledger = Ledger(sys.argv[1], "s", mode="max")
number = 0
while True:
    number += 1
    ledger.set_attr("number", number)
    print(number, flush=True)
"""


def test_what_was_said_to_be_written_survives_a_kill(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "study.db")
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as driver:
        assert driver.stdout is not None
        lines = [driver.stdout.readline() for _ in range(20)]  # a burst: no disk has seen most
        driver.kill()
        said = int([*lines, *driver.stdout.read().splitlines()][-1])
    assert 20 <= said <= read_sweep(url, "s").attrs["number"] <= said + 1
    Ledger(url, "s", mode="max").close()
    assert mode_of(tmp_path / "study.db") == "delete"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_disk_is_waited_for_at_once_and_then_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(write_ahead, "_sync", lambda path: synced.append(path.name))
    clock = Clock()
    wait = DiskWait(tmp_path / "study.db", clock=clock)
    wait.catch_up()
    assert synced == []
    wait.note_commit()
    assert synced == ["study.db-wal", tmp_path.name]
    for clock.now in (100.1, 100.5):
        wait.note_commit()
        wait.catch_up()
    assert len(synced) == 2
    clock.now = 100.0 + SYNC_S
    wait.catch_up()
    assert len(synced) == 4
    clock.now = 200.0
    wait.catch_up()  # nothing was committed since
    assert len(synced) == 4
    wait.note_commit()
    assert len(synced) == 6


def test_a_server_and_a_file_without_a_log_see_to_it_themselves(tmp_path: Path) -> None:
    DiskWait(None).note_commit()
    DiskWait(tmp_path / "study.db", clock=time.monotonic).note_commit()
