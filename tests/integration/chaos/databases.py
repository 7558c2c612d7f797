"""A PostgreSQL server of one's own, and a line to it that loses answers."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from launch.ports import free_port

USER, PASSWORD = "sweeper", "not/for?show"
_PROGRAMS = ("initdb", "pg_ctl", "postgres")


@dataclass(kw_only=True)
class Postgres:
    """A server, its data in a folder of its own."""

    folder: Path
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        """As a user writes it, with the password in it."""
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        quoted = PASSWORD.replace("/", "%2F").replace("?", "%3F")
        return f"postgresql://{USER}:{quoted}@127.0.0.1:{port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = self.folder / "log"
        self._run("pg_ctl", "start", "-w", "-D", str(self.data), "-o", options, "-l", str(log))

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "stop", "-w", "-D", str(self.data), "-m", mode)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def is_running(self) -> bool:
        return (self.data / "postmaster.pid").exists()

    def create(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        login = ("-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}")
        self._run("initdb", "-D", str(self.data), *login, "--no-sync")
        secret.unlink()

    def _run(self, *command: str) -> None:
        # The server refuses to run as root.
        become = ["runuser", "-u", _other_user(), "--"] if os.getuid() == 0 else []
        done = subprocess.run(
            [*become, *command],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout


def _other_user() -> str:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    pytest.skip("PostgreSQL does not run as root, and there is no other user to run it")


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server that runs; skips the test where its programs are not installed."""
    lacking = [program for program in _PROGRAMS if shutil.which(program) is None]
    if lacking:
        pytest.skip(f"no PostgreSQL server is installed: {', '.join(lacking)} not found")
    # Not below pytest's folder, which is closed to the server's user.
    folder = Path(tempfile.mkdtemp(prefix="aqr-postgres-"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, _other_user())
        server = Postgres(folder=folder)
        server.create()
        server.start()
        try:
            yield server
        finally:
            if server.is_running:
                server.stop("immediate")
    finally:
        shutil.rmtree(folder)


class LossyLine:
    """A port that leads to a server, and breaks right after some of its commits.

    The server has carried such a commit out; whoever asked for it never hears so. It is each one
    that enters a trial, and of all others one in so many.

    Attributes:
        num_lost: Answers that were withheld.
        num_trials: Those among them that told of a new trial.
    """

    def __init__(self, server_port: int, *, every: int) -> None:
        self._server_port, self._every = server_port, every
        self._num_commits = self.num_lost = self.num_trials = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        muted = threading.Event()
        server = socket.create_connection(("127.0.0.1", self._server_port))
        with client, server, suppress(OSError):
            threading.Thread(target=_answer, args=(server, client, muted), daemon=True).start()
            enters = False
            while data := client.recv(1 << 16):
                enters = enters or b"INSERT INTO trials " in data
                if b"COMMIT\0" in data:
                    # Before the first trial a driver opens its database, and ends if it cannot.
                    self._num_commits += enters or self._num_commits > 0
                    if enters or self._num_commits % self._every == self._every - 1:
                        muted.set()
                        server.sendall(data)
                        self.num_lost += 1
                        self.num_trials += enters
                        time.sleep(0.1)  # it commits meanwhile
                        return
                    enters = False
                server.sendall(data)


def _answer(server: socket.socket, client: socket.socket, muted: threading.Event) -> None:
    with suppress(OSError):
        while (data := server.recv(1 << 16)) and not muted.is_set():
            client.sendall(data)


def num_sessions(url: str) -> int:
    """Sessions of sweeps on a server."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity where application_name like 'aqr-sweep%'"
        ).fetchone()
    assert row is not None
    return row[0]
