"""A sweep on a real Ray cluster with token authentication, by the commands that users type."""

import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from toy_checkout import make_toy_checkout, set_pace

from launch.stack import Head, ray_head
from sweeps.record import read_sweep, sqlite_url

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]
COMMAND_TIMEOUT_S = 600


@pytest.fixture(scope="module")
def token() -> str:
    return secrets.token_hex(32)


@pytest.fixture(scope="module")
def head(token: str) -> Iterator[Head]:
    # Ray's sockets need a short path, shorter than pytest's.
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        with ray_head(Path(folder), num_cpus=2, environment=variables) as running:
            yield running


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_checkout(tmp_path_factory.mktemp("toy") / "checkout")


def command(
    *arguments: str, cwd: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    without = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS", "AQR_ROOT")
    environment = {key: value for key, value in os.environ.items() if key not in without}
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments],
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )


def test_a_submitted_sweep_runs_is_followed_and_is_found_again(
    head: Head, token: str, checkout: Path
) -> None:
    variables = {"RAY_AUTH_TOKEN": token}
    where = ("--address", head.address)
    done = command("submit", "toy.yaml", *where, cwd=checkout, variables=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    job = re.search(r"Submitted as job (toy-\d{8}-\d{6})", done.stdout)
    assert job is not None
    # The driver's lines, live from the cluster, and the leaderboard.
    for line in ("sweep toy starts", "control finished", "3 of 3 trials done", "Leaderboard of"):
        assert line in done.stdout
    assert f"Job {job[1]} succeeded." in done.stdout
    # Results lie below the directory that submitted, as the spec's relative path says.
    assert (checkout / "runs" / "toy" / "report.md").is_file()
    assert (checkout / "runs" / "mlflow.db").is_file()

    found = command("status", "toy", *where, cwd=checkout, variables=variables)
    assert found.returncode == 0, found.stderr
    assert job[1] in found.stdout
    assert "succeeded" in found.stdout
    here = command("status", "toy", cwd=checkout, variables={})
    assert "3 of 3 trials have ended." in here.stdout


def test_what_exceeds_its_budget_is_not_sent(head: Head, token: str, checkout: Path) -> None:
    """By the times of the sweep before it, and the nodes of the real cluster."""
    where, variables = ("--address", head.address), {"RAY_AUTH_TOKEN": token}
    text = (checkout / "toy.yaml").read_text().replace("name: toy", "name: dear")
    assert "budget: {trials: 2}" in text
    for hours, code in ((1e-6, 2), (1.0, 0)):
        spec = text.replace("{trials: 2}", f"{{trials: 2, hours: {hours:f}}}")
        (checkout / "dear.yaml").write_text(spec)
        done = command(
            *("submit", "dear.yaml", "--no-follow", *where), cwd=checkout, variables=variables
        )
        assert done.returncode == code, done.stdout + done.stderr
        if code:
            assert "Nothing was started: 2 searched trials" in done.stderr
            jobs = command("status", *where, cwd=checkout, variables=variables)
            assert "dear" not in jobs.stdout
        else:
            assert re.search(r"Expected: about .* with 2 at once on the cluster", done.stdout)


def test_a_running_job_is_stopped_and_resumed(head: Head, token: str, tmp_path: Path) -> None:
    checkout = make_toy_checkout(tmp_path / "checkout")
    text = (checkout / "toy.yaml").read_text().replace("name: toy", "name: slow")
    (checkout / "slow.yaml").write_text(text.replace("epochs: 2", "epochs: 20"))
    set_pace(checkout, 2.0)  # it must still run when it is told to stop
    directory = checkout / "runs" / "slow"

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        where = ("--address", head.address)
        return command(*arguments, *where, cwd=checkout, variables={"RAY_AUTH_TOKEN": token})

    sent = call("submit", "slow.yaml", "--no-follow")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    again = call("submit", "slow.yaml")
    assert again.returncode == 1
    assert "runs there already" in again.stderr
    wait_for(lambda: any(directory.glob("trials/control-*/spool.jsonl")))
    stopped = call("stop", "slow")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "is stopped; nothing is lost" in stopped.stdout
    twice = call("stop", "slow")
    assert twice.returncode == 2
    assert "has ended already" in twice.stderr
    set_pace(checkout, 0.001)

    resumed = call("submit", "slow.yaml", "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "sweep slow resumes" in resumed.stdout
    assert "control goes on" in resumed.stdout
    record = read_sweep(sqlite_url(directory / "study.db"), "slow")
    assert [trial.number for trial in record.trials] == [0, 1]
    assert all(trial.outcome in ("finished", "stopped") for trial in record.started)


def wait_for(condition: Callable[[], bool], timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RAY_AUTH_TOKEN": "f" * 64}, "does not accept this token"),
        ({"HOME": "/nonexistent"}, "asks for a token"),
    ],
)
def test_a_wrong_or_missing_token_is_one_sentence(
    head: Head, checkout: Path, variables: Mapping[str, str], message: str
) -> None:
    refused = command("status", "--address", head.address, cwd=checkout, variables=variables)
    assert refused.returncode == 1
    assert f"The cluster at {head.address} {message}" in refused.stderr
    assert "Traceback" not in refused.stderr
