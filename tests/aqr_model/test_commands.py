"""The commands from end to end, as a user types them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gang
import pytest
import torch
from mmcv import Config
from typer.testing import CliRunner

from aqr_model import evaluate, publish, train
from aqr_model.engine.evaluator import Evaluator, set_epoch
from aqr_model.engine.plan import PlanError
from aqr_model.engine.resuming import require_no_resume, resume_path
from aqr_model.engine.setup import build_detector
from aqr_model.engine.weights.states import read_state
from aqr_model.preflight.options import parse_options
from launch.ports import free_port

PRETRAINED = "aqr_model/checkpoints/cmt_nano.pth"
SHORT = {
    "total_epochs": 0.5,
    "evaluation": {"rungs": [1.0], "val_shares": [1.0]},
    "load_from": PRETRAINED,
}


def run(module, *arguments):
    """Run a command; it must succeed."""
    ended = CliRunner().invoke(module.app, [str(argument) for argument in arguments])
    assert ended.exit_code == 0, ended.output
    return ended


def scores_in(text: str) -> dict[str, float]:
    lines = [line.split() for line in text.splitlines() if line.startswith("val/")]
    return {name: float(value) for name, value in lines}


@pytest.fixture(scope="module")
def config(tmp_path_factory, nano_cfg):
    path = tmp_path_factory.mktemp("commands") / "config.py"
    nano_cfg(**SHORT).dump(str(path))
    return path


@pytest.fixture(scope="module")
def trained(config):
    """The folder of a training by the command line."""
    options = ["log_config.interval=1", "optimizer.lr=2e-4"]
    seeded = ["--seed", "3", "--deterministic", "--work-dir", config.parent / "trained"]
    run(train, config, *seeded, "--cfg-options", *options)
    return config.parent / "trained"


# --- train ------------------------------------------------------------------------------------


def test_options_reach_the_training(trained):
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [record for record in records if "train/loss" in record]
    assert [record["step"] for record in losses] == [1, 2]
    # In two steps the cycle has no time to rise: it begins at its peak, six times the rate.
    assert losses[0]["train/lr/transformer"] == pytest.approx(6 * 2e-4)
    meta = torch.load(trained / "final.pth", weights_only=True)["meta"]
    assert meta == {"step": 2, "seed": 3, "averaged": False}
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("name", ["--resume", "--auto-resume"])
def test_a_training_goes_on_by_either_name(config, trained, tmp_path, name):
    longer = ["--cfg-options", "total_epochs=0.75", "data.samples_per_gpu=2"]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "latest.pth").write_bytes((trained / "latest.pth").read_bytes())
    run(train, config, "--work-dir", folder, name, "--seed", "3", *longer)
    assert read_state(folder / "latest.pth").step == 3


def test_without_a_state_auto_resume_starts_anew(config, tmp_path):
    cfg = Config.fromfile(str(config))
    assert resume_path(cfg, tmp_path, resume=True) is None


def test_resume_from_of_a_config_is_obeyed(config, trained, tmp_path):
    """The last epochs of another training, as `fade` configs have it."""
    fade = tmp_path / "fade.py"
    state = trained / "latest.pth"
    fade.write_text(f"_base_ = [{str(config)!r}]\nresume_from = {str(state)!r}\ntotal_epochs = 1\n")
    run(train, fade, "--work-dir", tmp_path / "run", "--seed", "3")
    assert read_state(tmp_path / "run" / "latest.pth").step == 4
    records = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"step": 2' not in records, "the first two steps are not trained again"
    cfg = Config.fromfile(str(fade))
    # Cut and started again, it goes on where it was cut.
    assert resume_path(cfg, tmp_path / "run", resume=True) == tmp_path / "run" / "latest.pth"
    assert resume_path(cfg, tmp_path / "run", resume=False) == state
    # Whoever trains without the command would ignore it.
    with pytest.raises(PlanError, match=r"`python -m aqr_model\.train` alone.*`load_from`"):
        train.train(cfg, workdir=tmp_path / "other", report=None)
    require_no_resume(Config.fromfile(str(config)))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "resume_from: must name a training state (latest.pth), but"),
        ({"state_dict": {}, "meta": {}, "optimizer": {}}, "can start from them by `load_from`"),
    ],
)
def test_what_cannot_be_resumed_from_says_what_to_write(config, tmp_path, made, said):
    if made is not None:
        torch.save(made, tmp_path / "epoch_15.pth")
    given = ["--cfg-options", f"resume_from={tmp_path}/epoch_15.pth", "--work-dir", str(tmp_path)]
    ended = CliRunner().invoke(train.app, [str(config), *given])
    assert ended.exit_code == 2
    assert said in ended.stderr


def test_options_are_read_as_mmcv_reads_them():
    """Against mmcv's own action on its own parser."""
    from argparse import ArgumentParser

    from mmcv import DictAction

    pairs = ["a.b=1", "c=[1,(2,3.5)]", "d=x,y", "e=None", "f=true", "g='a b'", "h=1e-4", "i=a=b"]
    parser = ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    assert parse_options(pairs) == parser.parse_args(["--cfg-options", *pairs]).cfg_options
    assert parse_options(["lr=-1", "x=1", "x=2"]) == {"lr": -1, "x": 2}
    assert parse_options([]) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--cfg-options", "seed"], "must be KEY=VALUE, but got 'seed'"),
        (["--cfg-options", "seed=[1,(2]"], "Imbalanced brackets"),
        (["--cfg-options", "seed.x=1"], "must set keys of the config"),
        (["seed=1"], "unexpected arguments: seed=1"),
        (["--cfg-options", "model.type=NoSuch"], "`type` that is registered, but NoSuch is not"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(config, given, said):
    ended = CliRunner().invoke(train.app, [str(config), *given])
    assert ended.exit_code == 2
    assert said in ended.stderr


# --- evaluate ---------------------------------------------------------------------------------


def test_evaluate_prints_and_keeps_what_the_devkit_says(config, trained, tmp_path):
    ended = run(evaluate, config, trained / "final.pth", "--out", tmp_path, "--batch-size", "4")
    printed = scores_in(ended.stdout)
    cfg = Config.fromfile(str(config))
    cfg.load_from = str(trained / "final.pth")
    model = build_detector(cfg)
    set_epoch(model, 0.5, 0.5)
    alone = Evaluator(cfg, device=torch.device("cpu")).score(model)
    assert printed == {name: round(value, 4) for name, value in alone.items()}
    summary = json.loads((tmp_path / "metrics_summary.json").read_text())
    assert summary["nd_score"] == pytest.approx(alone["val/nds"])
    kept = json.loads((tmp_path / "results_nusc.json").read_text())["results"]
    assert len(kept) == 6


def test_evaluate_takes_options_and_a_share(config, trained, synthetic_root):
    half = run(evaluate, config, trained / "final.pth", "--share", "0.5")
    low = run(
        evaluate,
        config,
        trained / "final.pth",
        *("--share", "0.5", "--cfg-options", "model.pts_bbox_head.bbox_coder.max_num=1"),
    )
    assert scores_in(low.stdout)["val/map"] < scores_in(half.stdout)["val/map"]


def test_evaluate_tells_how_far_other_scenes_would_move_the_score(config, trained):
    found = scores_in(run(evaluate, config, trained / "final.pth", "--bootstrap", "12").stdout)
    assert 0 < found["val/nds_standard_error"] < 0.2
    ended = CliRunner().invoke(
        evaluate.app, [str(config), str(trained / "final.pth"), "--bootstrap", "1"]
    )
    assert (ended.exit_code, "at least 2" in ended.stderr) == (2, True)


def test_evaluate_refuses_a_backbone(config, trained, tmp_path):
    weights = torch.load(trained / "final.pth", weights_only=True)["state_dict"]
    torch.save({k: v for k, v in weights.items() if k[:13] == "img_backbone."}, tmp_path / "b.pth")
    ended = CliRunner().invoke(evaluate.app, [str(config), str(tmp_path / "b.pth")])
    assert ended.exit_code == 2
    assert "must hold a whole detector, but holds img_backbone alone" in ended.stderr


@pytest.mark.integration
def test_processes_share_the_samples_of_an_evaluation(config, trained, tmp_path):
    alone = scores_in(run(evaluate, config, trained / "final.pth").stdout)
    counted = Config.fromfile(str(config))
    counted.custom_imports = {"imports": ["counting"]}
    counted.data.val.pipeline.insert(0, {"type": "WriteDown", "path": str(tmp_path / "seen.txt")})
    counted.dump(str(tmp_path / "counted.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), "-m", "aqr_model.evaluate"]
    command += [str(tmp_path / "counted.py"), str(trained / "final.pth"), "--out", str(tmp_path)]
    ran = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=gang.TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout.count("val/nds ") == 1, "one process prints"
    assert scores_in(ran.stdout) == pytest.approx(alone, abs=2e-4)
    seen = (tmp_path / "seen.txt").read_text().split()
    assert len(seen) == len(set(seen)) == 6, "each sample is detected once"
    assert len(json.loads((tmp_path / "results_nusc.json").read_text())["results"]) == 6


# --- publish ----------------------------------------------------------------------------------


def test_publish_scores_the_file_that_it_writes(config, trained, synthetic_root, tmp_path):
    out = tmp_path / "base.pth"
    ended = run(publish, config, trained / "final.pth", out)
    record = json.loads(out.with_suffix(".json").read_text())
    assert json.loads(ended.stdout) == record
    assert record["steps"] == 2
    manifest = json.loads((synthetic_root / "manifest.json").read_text())
    assert record["data"] == manifest["settings"]
    content = torch.load(out, weights_only=True)
    assert {v.dtype for v in content["state_dict"].values() if v.is_floating_point()} == {
        torch.float16
    }
    assert out.stat().st_size < 0.6 * (trained / "final.pth").stat().st_size
    assert scores_in(run(evaluate, config, out).stdout) == record["scores"]


def test_types_that_a_config_trusts_are_read_to_publish_too(config, trained, tmp_path):
    content = torch.load(trained / "final.pth", weights_only=True)
    content["meta"]["folder"] = Path("work_dirs")
    torch.save(content, tmp_path / "weights.pth")
    said = CliRunner().invoke(
        publish.app, [str(config), str(tmp_path / "weights.pth"), str(tmp_path / "base.pth")]
    )
    assert said.exit_code == 2
    (line,) = re.findall(r"`(load_types = .*)`", said.output)
    (tmp_path / "own.py").write_text(f"{config.read_text()}{line}\n")
    run(publish, tmp_path / "own.py", tmp_path / "weights.pth", tmp_path / "base.pth")
