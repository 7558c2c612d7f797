"""A sweep on this machine from start to export, by the commands that users type."""

import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_checkout import make_toy_checkout, set_pace

from launch.ports import free_port
from sweeps.record import read_sweep, sqlite_url

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]
CLI = [sys.executable, "-m", "launch.cli"]
WAIT_S = 600.0


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_toy_checkout(tmp_path_factory.mktemp("toy") / "checkout")
    spec = folder / "toy.yaml"
    spec.write_text(spec.read_text().replace("epochs: 2", "epochs: 30"))
    return folder


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *arguments], cwd=cwd, capture_output=True, text=True, timeout=WAIT_S
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.1)


def test_a_sweep_is_run_stopped_resumed_and_exported(checkout: Path) -> None:
    directory = checkout / "runs" / "toy"
    driver = subprocess.Popen(
        [*CLI, "run", "toy.yaml", "--plain"],
        cwd=checkout,
        stdout=subprocess.PIPE,
        text=True,
    )
    # It has a score to lose, and must still run when it is told to stop.
    wait_for(lambda: any(directory.glob("trials/*/latest.pth")))
    set_pace(checkout, 2.0)
    second = call("resume", "toy", cwd=checkout)
    assert second.returncode == 2
    assert "Another driver has the sweep" in second.stderr
    running = call("status", "toy", cwd=checkout)
    assert f"Driven by process {driver.pid} on" in running.stdout
    stopped = call("stop", "toy", cwd=checkout)
    assert stopped.returncode == 0, stopped.stderr
    told, _ = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == 130
    assert "Interrupted; nothing is lost. Go on with  aqr-sweep resume runs/toy" in told
    set_pace(checkout, 0.001)

    resumed = call("resume", "toy", "--plain", cwd=checkout)
    assert resumed.returncode == 0, resumed.stderr
    assert "Leaderboard of toy" in resumed.stdout
    record = read_sweep(sqlite_url(directory / "study.db"), "toy")
    assert [trial.number for trial in record.trials] == [0, 1]
    ended = {trial.label: (trial.outcome, trial.reason) for trial in record.started}
    assert {outcome for outcome, _ in ended.values()} <= {"finished", "stopped"}, ended

    again = call("run", "toy.yaml", cwd=checkout)
    assert again.returncode == 2
    assert "go on with `aqr-sweep resume runs/toy`" in again.stderr


def test_the_exported_config_is_what_the_trial_trained_with(checkout: Path) -> None:
    exported = call("export", "toy", "--out", "best.py", cwd=checkout)
    assert exported.returncode == 0, exported.stderr
    code = (
        "from mmcv import Config; import glob, sys;"
        "new = Config.fromfile('best.py')._cfg_dict.to_dict(); origin = new.pop('provenance');"
        "ran = Config.fromfile(f'runs/toy/trials/{origin[\"label\"]}/config.py');"
        "sys.exit(new != ran._cfg_dict.to_dict())"
    )
    assert (
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=checkout).returncode == 0
    )

    base = checkout / "aqr_model" / "configs" / "base.py"
    before = base.read_text()
    base.write_text(before + "window = (3, 4)\n")
    refused = call("export", "toy", cwd=checkout)
    base.write_text(before)
    assert refused.returncode == 2
    assert "has changed since" in refused.stderr


def test_report_and_status_read_the_study(checkout: Path) -> None:
    (checkout / "runs" / "toy" / "report.md").unlink()
    written = call("report", "runs/toy", cwd=checkout)
    assert written.returncode == 0, written.stderr
    assert "Sweep toy" in (checkout / "runs" / "toy" / "report.md").read_text()
    assert "3 of 3 trials have ended." in call("status", "toy", cwd=checkout).stdout


def test_the_ui_serves_until_interrupted(checkout: Path) -> None:
    command = [*CLI, "ui", "--port", str(free_port())]
    with subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("MLflow shows runs at  http://127.0.0.1:")
        with urllib.request.urlopen(f"{line.split()[4]}/health") as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGINT)
        assert server.wait(WAIT_S) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{line.split()[4]}/health")
