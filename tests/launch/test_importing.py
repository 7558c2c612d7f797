from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from launch.cli import app

DATA = Path(__file__).parents[1] / "data" / "logs"
USERS = Path(__file__).parents[3] / "shared" / "data" / "logs"
AQR, CONTROL = DATA / "aqr_two_epochs.log", DATA / "control_two_epochs.log.json"


def call(*arguments):
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


def read(path):
    return YAML(typ="safe").load(path.read_text())


def test_the_command_has_an_example():
    shown = call("--help")
    assert shown.exit_code == 0
    assert "aqr-sweep import" in shown.output


def test_runs_become_known_points_with_what_they_are(tmp_path):
    out = tmp_path / "known.yaml"
    done = call(AQR, CONTROL, "--out", out)
    assert done.exit_code == 0
    assert "aqr_two_epochs.log: 10 parameters, NDS 0.6750" in done.output
    assert "camera_window is 9: this code made one more of 8" in done.output
    assert "max_weight_clamp is 1.5, the maximum of every BEV map printed" in done.output
    assert read(out) == {
        "known": [
            {
                "params": {
                    "residual_weight": 0.6,
                    "gaussian_sigma": 1.2,
                    "render_method": "gaussian",
                    "camera_window": 9,
                    "bev_window": 5,
                    "base_lr": 2e-5,
                    "aqr_lr_mult": 4.0,
                    "transformer_lr_mult": 0.8,
                    "task_heads_lr_mult": 0.5,
                    "max_weight_clamp": 1.5,
                },
                "NDS": 0.675,
                "epochs": 2,
                "semantics": "legacy",
                "source": "aqr_two_epochs.log",
            }
        ],
        "controls": [{"NDS": 0.69, "epochs": 2, "source": "control_two_epochs.log.json"}],
    }


def test_another_score_can_be_taken(tmp_path):
    out = tmp_path / "known.yaml"
    assert call(AQR, "--out", out, "--metric", "mAP").exit_code == 0
    assert read(out)["known"][0]["mAP"] == 0.635
    assert "controls" not in read(out)


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        ("feature_modulator=dict(lr_mult=4.0)", "feature_modulator=dict(lr_mult=1.0)", "differ"),
        ("residual_weight=0.6", "residual_weight=1.6", "1.6 is none of its values"),
        ("residual_weight=0.6", "residual_weight='most'", "'most' is none of its values"),
        ("'gaussian'", "'triangle'", "'triangle' is none of its values"),
    ],
)
def test_what_is_no_value_of_a_knob_is_left_out_and_said(tmp_path, before, after, note):
    log, out = tmp_path / "run.log", tmp_path / "known.yaml"
    text = AQR.read_text()
    assert before in text
    log.write_text(text.replace(before, after))
    done = call(log, "--out", out)
    assert note in " ".join(done.output.split())
    assert len(read(out)["known"][0]["params"]) == 9


def test_an_unfinished_run_is_known_at_the_epoch_it_was_scored_at(tmp_path):
    log, out = tmp_path / "run.log", tmp_path / "known.yaml"
    first, *_ = AQR.read_text().partition("2026-01-05 10:05:00,000 - mmdet - INFO - Epoch [2]")
    log.write_text(first)
    done = call(log, "--out", out)
    assert "scored after 1 of 2 epochs" in done.output
    (point,) = read(out)["known"]
    assert (point["NDS"], point["epochs"]) == (0.65, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("loss went down\n", "must be a training log of mmcv"),
        ("Epoch [1][5/9]\tlr: 1e-5, loss: 9.0\n", "has no evaluation with NDS"),
    ],
)
def test_what_gives_no_point_is_one_sentence(tmp_path, text, message):
    log, out = tmp_path / "run.log", tmp_path / "known.yaml"
    if text is not None:
        log.write_text(text)
    done = call(log, "--out", out)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert not out.exists()


def test_a_file_that_is_there_is_kept(tmp_path):
    out = tmp_path / "known.yaml"
    out.write_text("mine\n")
    done = call(AQR, "--out", out)
    assert done.exit_code == 2
    assert "exists already" in done.output
    assert out.read_text() == "mine\n"


@pytest.mark.skipif(not USERS.is_dir(), reason=f"the users' own logs are not at {USERS}")
def test_the_users_runs_are_imported(tmp_path):
    out = tmp_path / "known.yaml"
    assert call(*sorted(USERS.glob("*.log")), "--out", out).exit_code == 0
    known = read(out)
    (point,), (control,) = known["known"], known["controls"]
    assert (point["NDS"], point["epochs"], point["semantics"]) == (0.6849, 1, "legacy")
    recorded = {"max_weight_clamp": 1.5, "residual_weight": 0.7, "aqr_lr_mult": 8.0}
    assert point["params"].items() >= {**recorded, "base_lr": 1.4e-5}.items()
    assert control == {"NDS": 0.6908, "epochs": 1, "source": "control_without_aqr.log"}
