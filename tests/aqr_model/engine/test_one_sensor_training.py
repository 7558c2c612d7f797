"""Trainings with one sensor, from data to scores; the other sensor's files are not touched."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from aqr_model import evaluate
from aqr_model.engine.setup import build_detector
from aqr_model.engine.weights.files import CheckpointError
from aqr_model.train import train

SENSORS = ("lidar", "camera")


class Report:
    """Keeps the scores and the losses; may end the training at a score."""

    def __init__(self, stop_at: int | None = None):
        self.rungs, self.losses, self.stop_at = [], [], stop_at

    def rung(self, metrics, *, step, **_):
        self.rungs.append((step, dict(metrics)))
        if len(self.rungs) == self.stop_at:
            raise KeyboardInterrupt

    def log(self, values, *, step):
        assert not any(name.startswith("aqr/") for name in values)
        self.losses.append(values["train/loss"])

    def artifact(self, path):
        raise AssertionError(f"nothing is drawn without AQR, but {path} is")


@pytest.fixture(params=SENSORS)
def cfg(request, nano_cfg, synthetic_root, tmp_path):
    """A nano config on a data set that has no files of the other sensor."""
    root = tmp_path / "data"
    absent = "CAM_*" if request.param == "lidar" else "LIDAR_*"
    shutil.copytree(synthetic_root, root, ignore=shutil.ignore_patterns(absent))
    made = nano_cfg(f"cmt_{request.param}_nano.py")
    made.data.train.data_root = made.data.val.data_root = str(root)
    return made


def test_training_scores_resumes_and_evaluates(cfg, tmp_path, caplog):
    whole, first, second = Report(), Report(stop_at=2), Report()
    train(cfg, workdir=tmp_path / "whole", report=whole)
    assert [step for step, _ in whole.rungs] == [2, 4, 6]
    assert all(math.isfinite(value) for value in [*whole.losses, *whole.rungs[-1][1].values()])
    assert "got no gradient" not in caplog.text

    with pytest.raises(KeyboardInterrupt):
        train(cfg, workdir=tmp_path / "cut", report=first)
    latest = tmp_path / "cut" / "latest.pth"
    train(cfg, workdir=tmp_path / "cut", report=second, resume_from=latest)
    assert second.rungs == whole.rungs[1:]
    ends = [
        torch.load(tmp_path / name / "final.pth", weights_only=True)["state_dict"]
        for name in ("whole", "cut")
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])

    config = tmp_path / "config.py"
    cfg.dump(str(config))
    result = CliRunner().invoke(evaluate.app, [str(config), str(tmp_path / "whole" / "final.pth")])
    assert result.exit_code == 0, result.output
    printed = dict(line.split() for line in result.stdout.splitlines() if line.startswith("val/"))
    assert printed["val/nds"] == f"{whole.rungs[-1][1]['val/nds']:.4f}"


@pytest.mark.parametrize("sensor", SENSORS)
def test_weights_load_into_the_detector_they_came_from_alone(sensor, nano_cfg, tmp_path):
    cfg = nano_cfg(f"cmt_{sensor}_nano.py")
    torch.manual_seed(1)
    model = build_detector(cfg)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    cfg.load_from = str(tmp_path / "weights.pth")
    torch.manual_seed(2)
    loaded = build_detector(cfg).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    cfg.load_from = str(Path("aqr_model/checkpoints/cmt_nano.pth"))
    with pytest.raises(CheckpointError, match="left over"):
        build_detector(cfg)
