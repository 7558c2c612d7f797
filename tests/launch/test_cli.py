import fcntl
import subprocess
import sys

import pytest
from own_config import write_config
from typer.testing import CliRunner

from launch.cli import app

SPEC = """\
name: demo
train: {config: own.py, epochs: 2}
objective: {metric: NDS, noise: 0.002}
space:
  residual_weight: {low: 0.3, high: 0.9}
  model.pts_bbox_head.enable_aqr: {choices: [true, false]}
search: {sampler: random}
stopping: {rungs: [0.5, 1.0], val_shares: [0.25, 1.0]}
budget: {trials: 3}
"""
BAD = """\
name: demo
train: {config: gone.py, epochs: 0}
objective: {metric: NDS, noise: 0.002}
space:
  residual_weigth: {low: 0.3, high: 0.9}
  gaussian_sigma: {low: 2.0, high: 0.6}
buget: {trials: 3}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_config(tmp_path)
    (tmp_path / "good.yaml").write_text(SPEC)
    (tmp_path / "bad.yaml").write_text(BAD)
    monkeypatch.chdir(tmp_path)
    for name in ("AQR_ROOT", "AQR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(app, arguments)


def test_help_loads_nothing_heavy():
    code = (
        "import sys, launch.cli; from typer.testing import CliRunner;"
        "assert CliRunner().invoke(launch.cli.app, ['--help']).exit_code == 0;"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'mmcv', 'numpy', 'aqr_model'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name",
    [
        "plan",
        "run",
        "resume",
        "submit",
        "status",
        "stop",
        "report",
        "export",
        "import",
        "schema",
        "ui",
    ],
)
def test_each_command_has_an_example(name):
    shown = call(name, "--help")
    assert shown.exit_code == 0
    assert f"aqr-sweep {name}" in shown.output


def test_all_mistakes_of_a_spec_come_at_once_with_their_places(folder):
    refused = call("run", "bad.yaml")
    assert refused.exit_code == 2
    lines = refused.stderr.splitlines()
    expected = [
        ("bad.yaml:1:1: budget: must be given", ""),
        ("bad.yaml:2:9: train.config: must be a config file, but there is none at ", "gone.py"),
        ("bad.yaml:2:26: train.epochs: must be > 0", "but got 0"),
        ("bad.yaml:5:3: space.residual_weigth: unknown knob", "did you mean 'residual_weight'?"),
        ("bad.yaml:6:20: space.gaussian_sigma.low: `low <= high` must hold", "(low=2, high=0.6)"),
        ("bad.yaml:7:1: buget: unknown key 'buget'", "did you mean 'budget'?"),
        ("6 mistakes; nothing was started.", ""),
    ]
    for line, (start, part) in zip(lines, expected, strict=True):
        assert line.startswith(start)
        assert part in line
    assert "Traceback" not in refused.output
    assert not (folder / "runs").exists()


def test_files_that_a_spec_names_must_be_there(folder):
    for name in ("train", "val"):
        (folder / "data" / f"{name}.pkl").unlink()
    (folder / "good.yaml").write_text(SPEC.replace("epochs: 2", "load_from: start.pth, epochs: 2"))
    refused = call("plan", "good.yaml")
    assert refused.exit_code == 2
    assert "data.train.ann_file 'data/train.pkl' and data.val.ann_file" in refused.stderr
    assert "make data" in refused.stderr
    assert "train.load_from: must name a checkpoint file, but 'start.pth'" in refused.stderr
    assert refused.stderr.splitlines()[-1] == "2 mistakes; nothing was started."


def test_an_info_file_that_cannot_be_read_is_said(folder):
    (folder / "data" / "train.pkl").write_bytes(b"")
    refused = call("plan", "good.yaml")
    assert refused.exit_code == 2
    assert "data/train.pkl must be an info file" in refused.stderr
    assert "aqr_model.data.prepare" in refused.stderr


# mmcv leaves a temporary file open when a config raises.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_config_that_does_not_load_is_a_mistake_of_the_spec(folder):
    (folder / "own.py").write_text("model = dict(\n")
    refused = call("plan", "good.yaml")
    assert refused.exit_code == 2
    assert "own.py must be a config that loads, but it raises SyntaxError" in refused.stderr


def test_a_plan_tells_what_would_run(folder):
    shown = call("plan", "good.yaml")
    assert shown.exit_code == 0, shown.stderr
    text = " ".join(shown.output.split())
    for part in (
        "the control (AQR off) + 3, chosen by random, seed 0",
        "at most 4 full trainings",
        "unknown until the first trial",
        "runs/demo",
        "embedded, runs/mlflow.db",
        "residual_weight 0.3 to 0.9 ...modulator_config.residual_weight",
        "enable_aqr one of True, False",
        "50% 1 50 25% stops or goes on",
        "100% 2 100 100% has its result",
        "aqr-sweep run good.yaml",
    ):
        assert part in text
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "none.yaml"), "There is no spec none.yaml."),
        (("status", "none"), "There is no sweep at none"),
        (("report", "good.yaml"), "There is no sweep at runs/demo"),
        (("resume", "none"), "`aqr-sweep run SPEC` starts one."),
        (("ui",), "There is nothing to show yet: runs has no mlflow.db."),
        (("status",), "Name a sweep, or a cluster with --address."),
        (("status", "--address", "127.0.0.1:9"), "No Ray cluster answers at http://127.0.0.1:9"),
    ],
)
def test_what_is_not_there_is_one_sentence(folder, arguments, message):
    refused = call(*arguments)
    assert refused.exit_code in (1, 2)
    assert message in refused.stderr
    assert "Traceback" not in refused.output


def test_a_sweep_without_trials_says_so(folder):
    directory = begun(folder)
    assert "has no trials yet" in call("status", "demo").stderr
    refused = call("run", "good.yaml")
    assert refused.exit_code == 2
    assert "exists in runs/demo: go on with `aqr-sweep resume runs/demo`" in refused.stderr
    assert "there is nothing to stop" in call("stop", str(directory)).stderr


def test_a_driver_on_another_machine_is_not_stopped_from_here(folder):
    lock = begun(folder) / "driver.lock"
    with lock.open("w") as file:
        file.write("process 1 on elsewhere\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = call("stop", "demo")
    assert "is driven by process 1 on elsewhere, not from this machine" in refused.stderr


def begun(folder):
    directory = folder / "runs" / "demo"
    directory.mkdir(parents=True)
    (directory / "spec.yaml").write_text(SPEC)
    return directory
