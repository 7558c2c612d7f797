import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from launch import stack
from launch.stack import LOCALHOST, ServerError, free_port, mlflow_command, mlflow_ui

SERVER = (
    "import http.server as h, sys;"
    "h.HTTPServer(('127.0.0.1', int(sys.argv[1])), h.SimpleHTTPRequestHandler).serve_forever()"
)


def test_a_port_in_use_is_not_taken():
    with socket.socket() as taken:
        taken.bind((LOCALHOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port


def test_the_command_serves_the_store():
    command = mlflow_command("sqlite:////runs/mlflow.db", Path("/a"), host="0.0.0.0", port=5)
    assert command == [
        sys.executable,
        *("-m", "mlflow", "ui", "--backend-store-uri", "sqlite:////runs/mlflow.db"),
        *("--artifacts-destination", "/a", "--host", "0.0.0.0", "--port", "5", "--workers", "1"),
    ]


def test_a_server_answers_inside_the_block_and_is_gone_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(
        stack,
        "mlflow_command",
        lambda *_, port, **__: [sys.executable, "-c", SERVER, str(port)],
    )
    monkeypatch.chdir(tmp_path)
    with mlflow_ui("sqlite://", tmp_path, log=tmp_path / "log") as server:
        with urllib.request.urlopen(server.url) as answer:
            assert answer.status == 200
        assert server.process.poll() is None
    assert server.process.returncode is not None


def test_children_of_a_server_end_with_it(tmp_path, monkeypatch):
    child = tmp_path / "child"
    script = (
        "import subprocess, sys, pathlib;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"pathlib.Path({str(child)!r}).write_text(str(p.pid));" + SERVER
    )
    monkeypatch.setattr(
        stack, "mlflow_command", lambda *_, port, **__: [sys.executable, "-c", script, str(port)]
    )
    with mlflow_ui("sqlite://", tmp_path, log=tmp_path / "log"):
        pid = int(child.read_text())
        assert is_alive(pid)
    for _ in range(1200):
        if not is_alive(pid):
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its server")


def test_a_terminated_owner_takes_its_server_along(tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(
        "import sys, time; from pathlib import Path; from launch import stack\n"
        f"serve = [sys.executable, '-c', {SERVER!r}]\n"
        "stack.mlflow_command = lambda *_, port, **__: [*serve, str(port)]\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "with stack.mlflow_ui('sqlite://', folder, log=folder / 'log') as server:\n"
        "    print(server.process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(stack.__file__).parents[1])}
    owner = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, cwd=tmp_path, env=environment
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert is_alive(pid)
    owner.terminate()
    owner.communicate()
    assert owner.returncode == 128 + signal.SIGTERM
    assert not is_alive(pid)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie waits for a parent that may never look.
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_a_server_that_ends_at_once_says_why(tmp_path, monkeypatch):
    failing = [sys.executable, "-c", "print('the disk is full'); raise SystemExit(3)"]
    monkeypatch.setattr(stack, "mlflow_command", lambda *_, **__: failing)
    with (
        pytest.raises(ServerError, match=r"code 3\. The end of .*log:\nthe disk is full"),
        mlflow_ui("sqlite://", tmp_path, log=tmp_path / "log"),
    ):
        pass
