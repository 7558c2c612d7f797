"""The real thing at its smallest: nano model, command line, a kill, an export that trains."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mmcv import Config

from sweeps.record import read_sweep, sqlite_url

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
WAIT_S = 600.0
SPEC = """
name: tiny
train:
  config: aqr_model/configs/cmt_aqr_nano.py
  load_from: {checkpoint}
  epochs: 2
  overrides:
    data.train.data_root: {data}
    data.train.ann_file: {data}/nuscenes_infos_synth_train.pkl
    data.val.data_root: {data}
    data.val.ann_file: {data}/nuscenes_infos_synth_val.pkl
    log_config.interval: 1
    checkpoint_config.interval: 2
    model.pts_bbox_head.visualization_interval: 2
objective: {{metric: NDS, noise: 0.005}}
space:
  amplification: {{low: 1.05, high: 2.0}}
  residual_weight: {{low: 0.3, high: 0.9}}
  max_weight_clamp: {{derive: (amplification - residual_weight) / (1 - residual_weight)}}
  aqr_lr_mult: {{low: 0.3, high: 30, log: true}}
search: {{sampler: tpe, seed: 0}}
stopping: {{rule: safe, rungs: [0.5, 1.0], val_shares: [0.5, 1.0]}}
control: false
budget: {{trials: 2}}
resources: {{gpus: 0, cpus: 1, concurrent: 1}}
storage: {{path: {runs}}}
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> Path:
    from aqr_model.data.prepare import prepare
    from aqr_model.data.synthetic import SyntheticConfig, write_dataset

    folder = tmp_path_factory.mktemp("nano")
    config = SyntheticConfig(domain="shifted", train_scenes=4, val_scenes=2, keyframes=2, seed=5)
    write_dataset(folder / "data", config)
    prepare(folder / "data", "v1.0-synth")
    path = folder / "tiny.yaml"
    checkpoint = ROOT / "aqr_model/checkpoints/cmt_nano.pth"
    path.write_text(SPEC.format(data=folder / "data", runs=folder / "runs", checkpoint=checkpoint))
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "launch.cli", *arguments]


def call(*arguments: str) -> str:
    done = subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def record_of(spec: Path):
    directory = spec.parent / "runs" / "tiny"
    try:
        return read_sweep(sqlite_url(directory / "study.db"), "tiny")
    except (FileNotFoundError, KeyError):
        return None


def kill_in_the_middle(spec: Path) -> None:
    """SIGKILL the driver and its Ray once the first trial has passed its first rung."""
    driver = subprocess.Popen(
        command("run", str(spec), "--plain"), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + WAIT_S
        while not ((record := record_of(spec)) and any(t.rungs for t in record.trials)):
            assert driver.poll() is None, "the driver ended by itself"
            assert time.monotonic() < deadline, "no rung in time"
            time.sleep(0.2)
    finally:
        if driver.poll() is None:
            for process in [driver, *psutil.Process(driver.pid).children(recursive=True)]:
                process.kill()
            driver.wait()


def test_killed_resumed_exported_and_trained_again(spec, tmp_path):
    kill_in_the_middle(spec)
    before = record_of(spec)
    directory = str(spec.parent / "runs" / "tiny")
    output = call("resume", directory, "--plain")
    after = record_of(spec)

    assert [trial.number for trial in after.trials] == [0, 1]
    assert all(trial.outcome == "finished" for trial in after.trials), output
    for old in before.trials:
        new = after.trials[old.number]
        assert new.params == old.params
        assert new.rungs[: len(old.rungs)] == old.rungs
        if old.outcome == "finished":
            assert new == old
    assert max(trial.attempts for trial in after.trials) == 2

    best = max(after.trials, key=lambda trial: trial.rungs[-1].metrics["val/nds"])
    exported = tmp_path / "best.py"
    call("export", directory, "--out", str(exported))
    cfg = Config.fromfile(str(exported))
    assert cfg.model.pts_bbox_head.renderer_config.max_weight_clamp == pytest.approx(
        best.params["max_weight_clamp"]
    )
    trained = tmp_path / "again"
    subprocess.run(
        [sys.executable, "-m", "aqr_model.train", str(exported), "--work-dir", str(trained)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as the trial's one CPU
        check=True,
        capture_output=True,
        timeout=WAIT_S,
    )
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    scores = [line for line in lines if "val/nds" in line]
    assert scores[-1]["val/nds"] == best.rungs[-1].metrics["val/nds"]
    assert scores[-1]["val/map"] == best.rungs[-1].metrics["val/map"]


def test_the_tracker_holds_every_trial_once(spec):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{spec.parent / 'runs' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    nested = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) == 3
    assert len(nested) == 2
    for run in nested:
        assert run.info.status == "FINISHED"
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
        assert sorted(steps) == list(range(1, 9))
        names = run.data.metrics
        assert any(re.fullmatch(r"aqr/weight_map_bev_stats/q\d\d", name) for name in names)
        assert "val/ap/car" in names
