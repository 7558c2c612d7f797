import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from sweeps import patience, storage
from sweeps.patience import PatientStorage, StorageError
from sweeps.record import Ledger, read_sweep
from sweeps.storage import open_for_writing, open_storage, sqlite_url
from sweeps.trials import RungResult, TrialRecord


@pytest.fixture
def url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "study.db")


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    ledger = Ledger(url, "s", mode="max")
    yield ledger
    ledger.close()


def add(ledger: Ledger, x: float, *, value: float | None = None) -> TrialRecord:
    return ledger.add_trial(
        role="search" if value is None else "known",
        params={"x": x, "seed": 0},
        sampled={"x": x},
        distributions={"x": FloatDistribution(0, 1)},
        seed=0,
        config_hash="0123abcd",
        value=value,
    )


def rung(nds: float) -> RungResult:
    return RungResult(
        fraction=1.0,
        val_share=1.0,
        epoch=1.0,
        step=100,
        metrics={"val/nds": nds},
        checkpoint="/somewhere/rung.pth",
        seconds=10,
    )


def locked_error() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorname = "SQLITE_BUSY"
    return error


class Commits:
    """Fails some of a ledger's commits, before or after the database has carried them out."""

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store: PatientStorage = ledger._storage
        self.fails: Callable[[int], bool] = lambda number: False
        self.after = True
        self.number = self.num_failed = 0
        self._commit = self.store.engine.dialect.do_commit
        monkeypatch.setattr(self.store.engine.dialect, "do_commit", self._do)

    def _do(self, connection: Any) -> None:
        self.number += 1
        fails = self.fails(self.number)
        self.num_failed += fails
        if not fails or self.after:
            self._commit(connection)
        if fails:
            raise locked_error()


@pytest.fixture
def commits(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Commits:
    monkeypatch.setattr(patience, "MIN_PAUSE_S", 0.001)
    return Commits(ledger, monkeypatch)


@pytest.mark.parametrize("after", [True, False])
def test_a_write_whose_answer_is_lost_stands_once(
    ledger: Ledger, url: str, commits: Commits, after: bool
) -> None:
    dice = random.Random(0)
    commits.fails, commits.after = lambda number: dice.random() < 0.5, after
    trials = [add(ledger, x) for x in (0.25, 0.25, 0.5)]  # two of them alike
    known = add(ledger, 0.75, value=0.3)
    for trial in trials:
        ledger.start_attempt(trial.label)
        ledger.append_rung(trial.label, rung(0.4), objective=0.4)
    ledger.finish(
        trials[0].label, outcome="finished", reason="", told=0.4, seconds=10.0, gpu_hours=0.0
    )
    ledger.set_attr("spent", {"hours": 1.0})
    commits.fails = lambda number: False
    assert commits.num_failed > 5
    record = read_sweep(url, "s")
    assert record.trials == tuple(ledger.trials.values())
    assert [trial.number for trial in record.trials] == [0, 1, 2, 3]
    assert record.trials[3] == known
    assert record.attrs["spent"] == {"hours": 1.0}
    first = ledger._storage.get_trial(ledger._id(trials[0]))
    assert (first.state, first.value) == (TrialState.COMPLETE, 0.4)


def test_a_new_trial_is_looked_for_only_where_its_answer_was_lost(
    ledger: Ledger, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    like = PatientStorage._like

    def spy(self: PatientStorage, *args: Any) -> int | None:
        looked.append(args)
        return like(self, *args)

    monkeypatch.setattr(PatientStorage, "_like", spy)
    add(ledger, 0.25)
    assert not looked
    commits.fails = lambda number: len(looked) == 0
    add(ledger, 0.5)
    assert len(looked) == 1


@contextmanager
def held(path: Path) -> Iterator[None]:
    base = sqlite3.connect(path, isolation_level=None)
    base.execute("begin exclusive")
    try:
        yield
    finally:
        base.close()


def test_a_file_that_is_locked_for_longer_than_sqlite_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "SQLITE_TIMEOUT_S", 0.05)
    url = sqlite_url(tmp_path / "study.db")
    ledger = Ledger(url, "s", mode="max")
    waiting, sleep = threading.Event(), time.sleep

    def wait(seconds: float) -> None:
        waiting.set()
        sleep(0.05)

    monkeypatch.setattr(time, "sleep", wait)
    done: list[TrialRecord] = []
    with caplog.at_level(logging.WARNING, logger="sweeps.patience"):
        with held(tmp_path / "study.db"):
            thread = threading.Thread(target=lambda: done.append(add(ledger, 0.5)))
            thread.start()
            assert waiting.wait(60)
            assert not done
        thread.join(60)
    assert [trial.number for trial in read_sweep(url, "s").trials] == [0]
    assert "does not answer (database is locked): waiting, at most 600 s" in caplog.text
    ledger.close()


def test_patience_ends_with_a_sentence_and_goes_on_later(
    ledger: Ledger, url: str, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.05)
    monkeypatch.setattr(patience, "MAX_PAUSE_S", 0.01)
    commits.fails, commits.after = lambda number: True, False
    with pytest.raises(StorageError, match=r"has not answered for 0 s .database is locked.*resume"):
        add(ledger, 0.5)
    # Nobody waits again for a database that was given up.
    start = commits.number
    with pytest.raises(StorageError):
        ledger.set_attr("spent", {})
    assert commits.number == start + 1
    commits.fails = lambda number: False
    add(ledger, 0.5)
    assert [trial.number for trial in read_sweep(url, "s").trials] == [0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SQLITE_FULL", "database or disk is full"),
        ("SQLITE_IOERR_WRITE", "disk I/O error"),
        ("SQLITE_READONLY", "attempt to write a readonly database"),
    ],
)
def test_a_disk_that_takes_no_more_is_said_and_not_waited_for(
    ledger: Ledger, commits: Commits, name: str, text: str
) -> None:
    def refuse(connection: Any) -> None:
        error = sqlite3.OperationalError(text)
        error.sqlite_errorname = name
        raise error

    commits._commit = refuse
    sentence = rf"study .*study.db could not be written \({text}; \d+ MB are left there\): .*resume"
    with pytest.raises(StorageError, match=sentence):
        ledger.set_attr("spent", {})
    with pytest.raises(StorageError, match=sentence):
        add(ledger, 0.5)


def test_what_cannot_be_explained_is_told_as_it_came(ledger: Ledger, commits: Commits) -> None:
    def corrupt(connection: Any) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorname = "SQLITE_CORRUPT"
        raise error

    commits._commit = corrupt
    with pytest.raises(Exception, match=r"during the commit.*image is malformed"):
        ledger.set_attr("spent", {})


def test_ctrl_c_ends_the_waiting(
    ledger: Ledger, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    commits.fails = lambda number: True
    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ledger.set_attr("spent", {})


def test_reading_what_is_not_there_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with pytest.raises(FileNotFoundError, match="has this sweep been started"):
        open_storage(sqlite_url(path))
    assert not path.exists()


def test_a_hidden_password_is_asked_for() -> None:
    url = "postgresql://me:***@db.example/sweeps"
    for opens in (open_storage, lambda url: open_for_writing(url, "s")):
        with pytest.raises(StorageError, match=r"hidden here: give it in ~/.pgpass or PGPASSWORD"):
            opens(url)


def test_a_server_that_is_away_is_one_sentence_without_the_password() -> None:
    with pytest.raises(StorageError) as caught:
        Ledger("postgresql://me:secret@127.0.0.1:1/sweeps", "s", mode="max")
    text = str(caught.value)
    assert text.startswith("the study's database postgresql://me:***@127.0.0.1:1/sweeps cannot be")
    assert "Connection refused" in text
    assert "secret" not in text
    assert "\n" not in text
