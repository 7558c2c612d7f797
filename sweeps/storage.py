"""The database behind a sweep's record: a SQLite file, or studies on a PostgreSQL server."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from sweeps.database_url import driver_url, is_masked, is_postgresql, query_names, shown_url
from sweeps.patience import (
    MIN_PAUSE_S,
    Passing,
    PatientStorage,
    StorageError,
    StorageHeld,
    brief,
    is_locked,
)
from sweeps.write_ahead import prepare

T = TypeVar("T")

SQLITE_PREFIX = "sqlite:///"
SQLITE_TIMEOUT_S = 60.0
# A server notices within this time that the process of a killed driver has gone.
RELEASE_S = 5.0
# Half a minute and three more questions: how long a peer that has vanished goes unnoticed.
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_CONNECT_TIMEOUT_S = 10

_HOLD = "select pg_try_advisory_lock(hashtextextended(%s, 0))"
_HOLDER = """
select application_name, client_addr from pg_stat_activity join pg_locks using (pid)
where locktype = 'advisory' and granted and objsubid = 1
and (classid::bigint << 32) | objid::bigint = hashtextextended(%s, 0)
"""


def sqlite_url(path: Path) -> str:
    """Storage URL of a study file."""
    return f"{SQLITE_PREFIX}{path.resolve()}"


def open_storage(url: str) -> RDBStorage:
    """Open the storage of a study to read it.

    Raises:
        FileNotFoundError: If there are no studies in it.
        StorageError: If the database cannot be used.
    """
    if url.startswith(SQLITE_PREFIX):
        path = Path(url.removeprefix(SQLITE_PREFIX))
        if not path.is_file():
            raise FileNotFoundError(f"no study at {path}: has this sweep been started?")
    return _open(url, lambda: _existing(url))


def open_for_writing(url: str, name: str) -> "PatientStorage":
    """Open the storage of a study for its one writer, making it if there is none.

    Args:
        url: Of the database.
        name: The sweep's; on a server no second driver can hold the same one.

    Raises:
        StorageHeld: If another driver has the sweep.
        StorageError: If the database cannot be used.
    """
    if url.startswith(SQLITE_PREFIX):
        path = Path(url.removeprefix(SQLITE_PREFIX))
        return _open(url, lambda: _writable_file(url, path))
    return _open(url, lambda: _writable_server(url, name))


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite storage; None: there is a server."""
    return Path(url.removeprefix(SQLITE_PREFIX)) if url.startswith(SQLITE_PREFIX) else None


def check_free(url: str, name: str, *, is_new: bool) -> None:
    """See that a server answers and that nobody has the sweep, before anything is written.

    A study file needs none of this: it lies in the sweep's directory, which its driver locks.

    Args:
        url: Of the database.
        name: The sweep's.
        is_new: It must not be in the database yet.

    Raises:
        StorageHeld: If another driver has the sweep, or another sweep the name.
        StorageError: If the database cannot be used.
    """
    if not is_postgresql(url):
        return
    storage = open_for_writing(url, name)
    try:
        if is_new and any(study.study_name == name for study in storage.get_all_studies()):
            raise StorageHeld(
                f"{shown_url(url)} holds a sweep {name!r} already, which was started from another"
                " directory: resume it from there, or name this one anew"
            )
    finally:
        close(storage)


def close(storage: RDBStorage) -> None:
    """Let go of a storage's connections."""
    storage.remove_session()
    storage.engine.dispose()


def _open(url: str, opens: Callable[[], T]) -> T:
    """Open a database, with what goes wrong as a sentence."""
    if is_masked(url):
        raise StorageError(
            f"the password of the study's database {shown_url(url)} is hidden here: give it in"
            " ~/.pgpass or PGPASSWORD, and none in the URL"
        )
    try:
        return opens()
    except (DBAPIError, StorageInternalError) as error:
        wrapped = error if isinstance(error, DBAPIError) else error.__cause__
        cause = wrapped.orig if isinstance(wrapped, DBAPIError) else wrapped
        if url.startswith(SQLITE_PREFIX) and not is_locked(cause):
            raise  # of a file, what the system says is clear
        raise StorageError(
            f"the study's database {shown_url(url)} cannot be opened: {brief(cause)}"
        ) from error


def _existing(url: str) -> RDBStorage:
    if url.startswith(SQLITE_PREFIX):
        return RDBStorage(url, engine_kwargs=_sqlite_options())
    options = _server_options(url)
    engine = create_engine(driver_url(url), **options)
    try:
        there = inspect(engine).has_table("studies")
    finally:
        engine.dispose()
    if not there:
        raise FileNotFoundError(f"no study in {shown_url(url)}: has this sweep been started?")
    return RDBStorage(driver_url(url), engine_kwargs=options, skip_table_creation=True)


def _sqlite_options() -> dict[str, Any]:
    return {"connect_args": {"timeout": SQLITE_TIMEOUT_S}}


def _writable_file(url: str, path: Path) -> PatientStorage:
    if not path.exists():
        _create_tables(path)
    events = [(lambda connection, record: prepare(connection, path), "connect")]
    return PatientStorage(url, engine_kwargs={**_sqlite_options(), "pool_events": events})


def _create_tables(path: Path) -> None:
    """Make an empty SQLite storage, which appears under its name only when it is whole.

    Optuna completes half-made tables when it opens them; a reader that came upon them would do so
    at the same time as their maker, and one of the two would fail.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # what a kill left
    close(RDBStorage(f"{SQLITE_PREFIX}{partial}"))
    partial.replace(path)


def _server_options(url: str) -> dict[str, Any]:
    name = f"aqr-sweep, process {os.getpid()} on {socket.gethostname()}"
    wanted = {"application_name": name[:63], "connect_timeout": _CONNECT_TIMEOUT_S, **_KEEPALIVE}
    return {"connect_args": {k: v for k, v in wanted.items() if k not in query_names(url)}}


def _writable_server(url: str, name: str) -> PatientStorage:
    """Make the tables, then hold the sweep by the connection that writes."""
    for attempt in range(5):
        try:
            close(RDBStorage(driver_url(url), engine_kwargs=_server_options(url)))
            break
        except (ProgrammingError, IntegrityError):
            # Another sweep makes the same tables at this moment.
            if attempt == 4:
                raise
            time.sleep(0.5)
    return PatientStorage(
        driver_url(url),
        engine_kwargs={
            **_server_options(url),
            # One connection: who has lost it has lost the sweep, and writes no more until it has
            # both again.
            "pool_size": 1,
            "max_overflow": 0,
            "pool_events": [(_Hold(url, name), "connect")],
        },
        skip_table_creation=True,
        skip_compatibility_check=True,  # done above; it needs a second connection
    )


class _Hold:
    """Holds a sweep on a server for as long as the writer's connection lives."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self._had_it = False

    def __call__(self, connection: Any, record: Any) -> None:
        """Take the sweep with a new connection.

        Raises:
            StorageHeld: If another driver has it.
        """
        try:
            self._take(connection)
        except BaseException:
            connection.close()
            raise
        self._had_it = True

    def _take(self, connection: Any) -> None:
        # So a server notices, too, that a driver's machine has gone.
        for setting, value in _KEEPALIVE.items():
            call = "select set_config(%s, %s, false)"
            connection.execute(call, (f"tcp_{setting}", str(value)))
        key = f"aqr-sweep/{self._name}"
        deadline = time.monotonic() + RELEASE_S
        while not connection.execute(_HOLD, (key,)).fetchone()[0]:
            if time.monotonic() >= deadline:
                holder = connection.execute(_HOLDER, (key,)).fetchone()
                raise self._refusal(holder)
            time.sleep(MIN_PAUSE_S)
        connection.commit()

    def _refusal(self, holder: tuple[Any, ...] | None) -> Exception:
        who = "no name" if holder is None else f"{holder[0]}, from {holder[1] or 'the server'}"
        # Our own connection that has broken may take the server a while to notice.
        if self._had_it:
            return Passing(f"its lock on the sweep is with {who}", at_once=False)
        return StorageHeld(
            f"another driver has the sweep {self._name!r} in {shown_url(self._url)} ({who}): wait"
            " for it, or stop it"
        )


__all__ = [
    "PatientStorage",
    "StorageError",
    "StorageHeld",
    "check_free",
    "close",
    "open_for_writing",
    "open_storage",
    "sqlite_file",
    "sqlite_url",
]
