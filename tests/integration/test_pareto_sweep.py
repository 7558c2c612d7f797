"""A sweep with several objectives by the commands that users type, against the trainer's diary."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_checkout import make_toy_checkout

from sweeps.pareto import front_of
from sweeps.record import SweepRecord, read_sweep, sqlite_url

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]
CLI = [sys.executable, "-m", "launch.cli"]
WAIT_S = 600.0
# What the sweep counts of a training and its diary does not: handing over a score.
CALL_S = 0.5
SPEC = """\
name: pareto
train: {config: aqr_model/configs/toy.py, load_from: data/base.pth, epochs: 2}
objective:
  metric: NDS
  noise: 0.0001
  also:
    - {metric: time, mode: min, noise: 0.01}
    - {metric: AP, classes: [pedestrian, bicycle], noise: 0.0001}
space:
  residual_weight: {low: 0.1, high: 0.9}
  gaussian_sigma: {low: 0.5, high: 1.5}
search: {sampler: tpe, startup: 4}
stopping: {rule: fast, rungs: [0.5, 1.0]}
budget: {trials: 8}
"""


def call(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [*CLI, *arguments], cwd=cwd, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_toy_checkout(tmp_path_factory.mktemp("toy") / "checkout")
    training = Path(__file__).with_name("pareto_training.py")
    shutil.copy(training, folder / "aqr_model" / "train.py")
    (folder / "pareto.yaml").write_text(SPEC)
    plan = call("plan", "pareto.yaml", cwd=folder)
    assert "also time, training seconds, min; noise 0.01 s" in plan
    assert "also AP(pedestrian, bicycle), max; noise 0.0001" in plan
    assert "best the Pareto front of all 3" in plan
    told = call("run", "pareto.yaml", "--plain", cwd=folder)
    assert "Front of" in told
    return folder


@pytest.fixture(scope="module")
def record(checkout: Path) -> SweepRecord:
    return read_sweep(sqlite_url(checkout / "runs" / "pareto" / "study.db"), "pareto")


def diary_of(checkout: Path, label: str) -> list[dict[str, float]]:
    path = checkout / "runs" / "pareto" / "trials" / label / "diary.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def slow_front(rows: dict[str, tuple[float, float, float]]) -> set[str]:
    """From (NDS, seconds, AP) and the definition alone."""
    return {
        one
        for one, (nds, seconds, ap) in rows.items()
        if not any(
            a >= nds and b <= seconds and c >= ap and (a, b, c) != (nds, seconds, ap)
            for a, b, c in rows.values()
        )
    }


def test_the_front_is_that_of_what_was_trained(checkout: Path, record: SweepRecord) -> None:
    front = front_of(record)
    assert front is not None
    rows = {}
    for trial in record.started:
        diary = diary_of(checkout, trial.label)
        assert len(diary) == len(trial.rungs)
        # Before the first score the sweep counts what a new process loads, too.
        loading = trial.rungs[0].seconds - diary[0]["seconds"]
        for entry, rung in zip(diary, trial.rungs, strict=True):
            beyond = rung.seconds - entry["seconds"]
            assert 0 <= loading <= beyond <= loading + CALL_S
            assert all(rung.metrics[key] == entry[key] for key in rung.metrics)
        if trial.role == "search" and len(diary) == 2:
            ap = (diary[-1]["val/ap/pedestrian"] + diary[-1]["val/ap/bicycle"]) / 2
            # By the sweep's own clock, from here on.
            rows[trial.label] = (diary[-1]["val/nds"], trial.rungs[-1].seconds, ap)
    assert len(rows) >= 3
    assert {place.trial.label for place in front.members} == slow_front(rows)
    for place in front.places:
        assert place.values == pytest.approx(rows[place.trial.label])


def test_a_stopped_trial_was_behind_on_every_objective(record: SweepRecord) -> None:
    assert all(trial.outcome in ("finished", "stopped") for trial in record.started)
    for trial in record.searched:
        if trial.outcome == "stopped":
            assert trial.reason.startswith("NDS: rank ")
            assert "; time: rank " in trial.reason
            assert "; AP(pedestrian, bicycle): rank " in trial.reason


def test_every_reader_shows_the_same_front(checkout: Path, record: SweepRecord) -> None:
    front = front_of(record)
    assert front is not None
    names = [place.trial.label.rsplit("-", 1)[0] for place in front.members]
    directory = checkout / "runs" / "pareto"
    page = (directory / "front.html").read_text()
    text = (directory / "report.md").read_text()
    for shown in (page, text, call("status", "pareto", cwd=checkout)):
        assert f"Front of {len(names)} by NDS, time, AP(pedestrian, bicycle): {names[0]} (" in shown
    with (directory / "leaderboard.csv").open() as file:
        table = {row["label"]: row for row in csv.DictReader(file)}
    for place in front.places:
        row = table[place.trial.label]
        assert row["front"] == place.standing
        assert float(row["time"]) == place.values[1]
        assert float(row["ap_pedestrian_bicycle"]) == pytest.approx(place.values[2])
    assert "Best by NDS is" in call("report", "pareto", cwd=checkout)


def test_the_export_is_the_best_of_the_front_and_names_the_others(
    checkout: Path, record: SweepRecord
) -> None:
    front = front_of(record)
    assert front is not None
    best, *others = front.members
    told = call("export", "pareto", "--out", "best.py", cwd=checkout)
    assert f"{best.trial.label.rsplit('-', 1)[0]} is the best NDS of the front" in told
    for place in others:
        assert f"aqr-sweep export pareto --trial {place.trial.number}" in told
        call(
            *("export", "pareto", "--trial", str(place.trial.number), "--out", "other.py"),
            cwd=checkout,
        )
    origin = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import best; print(best.provenance)"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert f"'front': {[place.trial.label for place in front.members]}" in origin.stdout
    assert "'on_front': True" in origin.stdout


def test_mlflow_has_the_front(checkout: Path, record: SweepRecord) -> None:
    from mlflow.tracking import MlflowClient

    front = front_of(record)
    assert front is not None
    client = MlflowClient(sqlite_url(checkout / "runs" / "mlflow.db"))
    experiment = client.get_experiment_by_name("pareto")
    assert experiment is not None
    runs = {run.data.tags["label"]: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs["sweep"]
    assert parent.data.tags["front"] == ", ".join(p.trial.label for p in front.members)
    assert parent.data.metrics["front/size"] == len(front.members)
    assert parent.data.metrics["front/time"] == min(p.values[1] for p in front.members)
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert "front.html" in files
    for place in front.places:
        final = runs[place.trial.label].data.metrics
        assert final["final/time"] == place.values[1]
        assert final["final/ap_pedestrian_bicycle"] == pytest.approx(place.values[2])
