"""Servers beside a sweep, each a process of its own: MLflow's UI, and a Ray head for trying things.

Every server runs in its own session, so that ending it ends all of its children and nothing else.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from launch import ports
from launch.ports import LOCALHOST

START_TIMEOUT_S = 180.0  # a busy machine takes minutes to load Ray
STOP_TIMEOUT_S = 15.0
LOG_TAIL_LINES = 15
# Ports that Ray chooses itself are told from process to process, with a deadline of seconds.
_PORT_OPTIONS = (
    "--port",
    "--ray-client-server-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
)
# A UI needs none of the seven processes that would run jobs, and tells nobody that it is used.
_UI_ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Ray's own deadlines for the parts of a node; a busy machine exceeds the defaults.
_PATIENCE = {
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_agent_register_timeout_ms": "180000",
}


class ServerError(RuntimeError):
    """A server that did not come up."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that runs.

    Attributes:
        url: Where it answers.
        process: Its first process, the leader of its session.
        log: What it printed.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@dataclass(frozen=True, kw_only=True)
class Head:
    """A Ray head on this machine.

    Attributes:
        address: Of the Jobs API and the dashboard.
        process: The blocking `ray start`.
    """

    address: str
    process: subprocess.Popen[bytes]


def free_port(preferred: int = 0) -> int:
    """The preferred port if nothing listens there, else another one."""
    if preferred:
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOCALHOST, preferred))
            return preferred
    return ports.free_port()


def mlflow_command(backend_uri: str, artifacts: Path, *, host: str, port: int) -> list[str]:
    """The command that serves an embedded MLflow store.

    Args:
        backend_uri: SQLAlchemy URL of the store.
        artifacts: Directory of the artifacts.
        host: Interface to listen on.
        port: Port to listen on.
    """
    return [
        *(sys.executable, "-m", "mlflow", "ui"),
        *("--backend-store-uri", backend_uri),
        *("--artifacts-destination", str(artifacts)),
        *("--host", host, "--port", str(port)),
        *("--workers", "1"),
    ]


@contextmanager
def mlflow_ui(
    backend_uri: str, artifacts: Path, *, log: Path, host: str = LOCALHOST, port: int = 5000
) -> Iterator[Server]:
    """Serve MLflow's UI until the block ends.

    Args:
        backend_uri: SQLAlchemy URL of the store.
        artifacts: Directory of the artifacts.
        log: File for the server's output.
        host: Interface to listen on.
        port: Wished port; another one is taken if it is in use.

    Yields:
        The server, once it answers.

    Raises:
        ServerError: If it does not come up; the message ends with its log.
    """
    port = free_port(port)
    command = mlflow_command(backend_uri, artifacts, host=host, port=port)
    with _session(command, log=log, environment=_UI_ENVIRONMENT) as process:
        url = f"http://{LOCALHOST if host == '0.0.0.0' else host}:{port}"
        _wait_for_answer(f"{url}/health", process, log)
        yield Server(url=url, process=process, log=log)


@contextmanager
def ray_head(
    temp_dir: Path, *, num_cpus: int, environment: Mapping[str, str] | None = None
) -> Iterator[Head]:
    """Run a Ray head with free ports until the block ends; other Ray processes are left alone.

    Args:
        temp_dir: Ray's files; its path must be short, since it holds sockets.
        num_cpus: CPUs that the head offers.
        environment: Variables besides this process's own, such as `RAY_AUTH_MODE`.

    Yields:
        The head, once its Jobs API answers.

    Raises:
        ServerError: If it does not come up; the message ends with its log.
    """
    temp_dir.mkdir(parents=True, exist_ok=True)
    log = temp_dir / "head.log"
    port = free_port()
    # A job's `python` is then the one that runs the head.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    variables = {"PATH": path, **_PATIENCE, **(environment or {})}
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address", LOCALHOST),
        *("--dashboard-host", LOCALHOST, "--dashboard-port", str(port)),
        *(word for option in _PORT_OPTIONS for word in (option, str(free_port()))),
        *("--num-cpus", str(num_cpus), "--temp-dir", str(temp_dir)),
        "--disable-usage-stats",
    ]
    with _session(command, log=log, environment=variables) as process:
        address = f"http://{LOCALHOST}:{port}"
        _wait_for_answer(f"{address}/api/version", process, log)
        yield Head(address=address, process=process)


@contextmanager
def _session(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with _ending_on_terminate():
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        try:
            yield process
        finally:
            _end_session(process)


@contextmanager
def _ending_on_terminate() -> Iterator[None]:
    """Let SIGTERM unwind the stack: by default it would end us and leave the server behind."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    _signal_session(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass
    _signal_session(process.pid, signal.SIGKILL)  # what outlived its leader
    process.wait()


def _signal_session(leader: int, number: signal.Signals) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return


def _wait_for_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"The server ended with code {process.returncode}.{_tail(log)}")
        if _answers(url):
            return
        time.sleep(0.2)
    raise ServerError(f"No answer at {url} after {START_TIMEOUT_S:.0f} s.{_tail(log)}")


def _answers(url: str) -> bool:
    """Whether a server speaks there, a refusal included."""
    try:
        with urllib.request.urlopen(url, timeout=2.0):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return f" The end of {log}:\n" + "\n".join(lines)
