import pytest
from own_config import write_config
from typer.testing import CliRunner

from launch.cli import app
from launch.forecasting import cluster_slots
from sweeps.record import Ledger, RungResult
from sweeps.spec import load_copy, parse_spec

# 100 samples in batches of 2, 2 epochs: 100 iterations of 36 s are an hour.
SPEC = """\
name: demo
train: {config: own.py, epochs: 2, seconds_per_iter: 36}
objective: {metric: NDS}
space:
  residual_weight: {low: 0.3, high: 0.9}
control: {seeds: 2}
finalists: {top: 1, seeds: 2}
stopping: {rule: none, rungs: [0.5, 1.0]}
budget: {trials: 6, hours: 20}
resources: {cpus: 1, concurrent: 1}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_config(tmp_path)
    (tmp_path / "demo.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    for name in ("AQR_ROOT", "AQR_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(app, arguments)


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_plan_shows_the_forecast(folder):
    shown = call("plan", "demo.yaml")
    assert shown.exit_code == 0, shown.output
    text = words(shown.output)
    for part in (
        "noise measured by 2 seeds of the control",
        "the control (AQR off, 2 seeds) + 6, chosen by gp, seed 0",
        "the best 1 and the control again, with 2 new seeds each",
        # One of the control's new seeds is there already: 2 + 6 + 2 + 1.
        "at most 11 full trainings, about 11 expected",
        "about 11:00 h; 1:00 h a training: by train.seconds_per_iter",
        "no new trial after 20 hours, less what the finals will take",
        "100% 2 100 100% has its result 6.0 trials",
    ):
        assert part in text
    assert "risk" not in text  # nothing is stopped


def test_a_plan_names_the_risk_of_stopping_the_best(folder):
    (folder / "demo.yaml").write_text(SPEC.replace("rule: none", "rule: fast"))
    assert "that the best trial is stopped, at a noise of 0.002" in words(
        call("plan", "demo.yaml").output
    )


def test_what_exceeds_the_budget_does_not_start(folder):
    (folder / "demo.yaml").write_text(SPEC.replace("hours: 20", "hours: 9"))
    shown = call("plan", "demo.yaml")
    assert shown.exit_code == 0
    assert "exceeds its budget and will not start" in words(shown.output)
    refused = call("run", "demo.yaml")
    assert refused.exit_code == 2
    text = words(refused.stderr)
    assert "Nothing was started: 6 searched trials" in text
    assert "about 11 hours" in text
    assert "but budget.hours is 9" in text
    assert "set budget.hours to 11, or budget.trials to 4." in text
    assert not (folder / "runs").exists()


def test_a_budget_of_hours_alone_needs_room_for_the_control_a_trial_and_the_finals(folder):
    (folder / "demo.yaml").write_text(SPEC.replace("trials: 6, hours: 20", "hours: 8"))
    shown = call("plan", "demo.yaml")
    assert "+ as many as the budget holds, chosen by" in words(shown.output)
    # 2 of the control, 3 of the finals: 3 trials fit into 8 hours.
    assert "3.0 trials" in shown.output
    (folder / "demo.yaml").write_text(SPEC.replace("trials: 6, hours: 20", "hours: 5"))
    assert call("run", "demo.yaml").exit_code == 2


@pytest.mark.parametrize(
    ("accumulated", "gpus", "iterations"), [(None, 0, 100), (4, 0, 24), (4, 3, 8), (None, 5, 20)]
)
def test_an_iteration_is_a_step_of_the_optimizer(folder, accumulated, gpus, iterations):
    """As `aqr_model.engine.plan.make_plan` counts them, for 100 samples in 2 epochs."""
    from mmcv import Config

    from aqr_model.engine.plan import make_plan

    extra = (
        "" if accumulated is None else f"optimizer_config = dict(cumulative_iters={accumulated})"
    )
    write_config(folder, extra)
    resources = f"resources: {{cpus: {max(1, gpus)}, gpus: {gpus}, concurrent: 1}}"
    (folder / "demo.yaml").write_text(
        SPEC.replace("resources: {cpus: 1, concurrent: 1}", resources)
    )
    cfg = Config({"data": {"samples_per_gpu": 2}, "total_epochs": 2, "evaluation": {"rungs": [1]}})
    plan = make_plan(cfg, 100, num_parts=(accumulated or 1) * max(1, gpus))
    assert plan.total_steps == iterations
    assert f"2 a trial, {iterations} iterations" in words(call("plan", "demo.yaml").output)


class Cluster:
    """A cluster that tells its nodes and takes jobs."""

    def __init__(self, monkeypatch, *nodes):
        from launch import jobs

        self.sent = []
        monkeypatch.setattr(jobs, "connect", lambda address: self)
        monkeypatch.setattr(jobs, "nodes_of", lambda client: list(nodes))
        monkeypatch.setattr(jobs, "submit", lambda client, request: self.take(request))

    def take(self, request):
        self.sent.append(request)
        return request.submission_id


def test_a_submitted_sweep_is_forecast_before_it_is_sent(folder, monkeypatch):
    cluster = Cluster(monkeypatch, {"CPU": 2.0}, {"CPU": 1.0})
    (folder / "demo.yaml").write_text(SPEC.replace("cpus: 1, concurrent: 1", "cpus: 1"))
    shown = call("submit", "demo.yaml", "--no-follow")
    assert shown.exit_code == 0, shown.output
    said = "Expected: about 11 full trainings, 4 hours, with 3 at once on the cluster as it is."
    assert said in words(shown.output)
    assert len(cluster.sent) == 1


def test_a_submitted_sweep_over_its_budget_is_not_sent(folder, monkeypatch):
    cluster = Cluster(monkeypatch, {"CPU": 8.0})
    (folder / "demo.yaml").write_text(SPEC.replace("hours: 20", "hours: 9"))
    refused = call("submit", "demo.yaml", "--no-follow")
    assert refused.exit_code == 2
    assert "Nothing was started: 6 searched trials" in words(refused.stderr)
    assert not cluster.sent
    # What runs already is bound by the budget of its start.
    assert call("submit", "demo.yaml", "--no-follow", "--resume").exit_code == 0
    assert len(cluster.sent) == 1


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("data", "the iterations of an epoch cannot be counted here"),
        ("time", "no training like it has been measured here"),
        ("node", "a node of the cluster must hold one trial, 1 CPU, but none of its 1 does"),
    ],
)
def test_what_cannot_be_told_from_here_is_left_to_the_job(folder, monkeypatch, missing, said):
    cluster = Cluster(monkeypatch, {"CPU": 0.0 if missing == "node" else 8.0})
    if missing == "data":
        (folder / "data" / "train.pkl").unlink()
    if missing == "time":
        (folder / "demo.yaml").write_text(SPEC.replace(", seconds_per_iter: 36", ""))
    shown = call("submit", "demo.yaml", "--no-follow")
    assert shown.exit_code == 0, shown.output
    text = words(shown.output)
    assert f"What this will take cannot be told from here, but by the job: {said}" in text
    assert len(cluster.sent) == 1


def test_the_data_are_looked_for_where_the_job_will_look(folder, tmp_path_factory, monkeypatch):
    Cluster(monkeypatch, {"CPU": 1.0})
    shared = tmp_path_factory.mktemp("shared")
    (folder / "data").rename(shared / "data")
    shown = call("submit", "demo.yaml", "--no-follow", "--root", str(shared))
    assert "Expected: about 11 full trainings" in words(shown.output)


def test_a_measured_time_wins_over_a_given_one(folder):
    directory = folder / "runs" / "earlier"
    directory.mkdir(parents=True)
    text = SPEC.replace("name: demo", "name: earlier").replace("seconds_per_iter: 36", "")
    (directory / "spec.yaml").write_text(text.replace("epochs: 2, }", "epochs: 2}"))
    (folder / "runs" / "broken").mkdir()
    (folder / "runs" / "broken" / "spec.yaml").write_text("name: 3")
    ledger = Ledger(load_copy(directory).storage_url, "earlier", mode="max")
    trial = ledger.add_trial(
        role="control", params={}, sampled={}, distributions={}, seed=0, config_hash="0" * 8
    )
    rung = RungResult(
        fraction=1.0,
        val_share=1.0,
        epoch=2.0,
        step=100,
        metrics={"val/nds": 0.4},
        checkpoint=None,
        seconds=1800.0,
    )
    ledger.append_rung(trial.label, rung, objective=0.4)
    ledger.finish(
        trial.label, outcome="finished", reason="", told=0.4, seconds=1800.0, gpu_hours=0.0
    )
    ledger.close()
    text = words(call("plan", "demo.yaml").output)
    assert "about 5:30 h; 30:00 min a training: the mean of 1 in runs/earlier" in text


def test_a_sweep_beside_it_whose_server_is_away_tells_nothing(folder):
    directory = folder / "runs" / "earlier"
    directory.mkdir(parents=True)
    away = "storage: {study: 'postgresql://me@127.0.0.1:1/sweeps'}\n"
    (directory / "spec.yaml").write_text(SPEC.replace("name: demo", "name: earlier") + away)
    assert "by train.seconds_per_iter" in words(call("plan", "demo.yaml").output)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [("{cpus: 1, concurrent: 1}", 1), ("{cpus: 100000}", 1), ("{cpus: 1}", None)],
)
def test_slots_of_this_machine(resources, expected, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    from ray._private.utils import get_num_cpus

    text = SPEC.replace("{cpus: 1, concurrent: 1}", resources)
    spec = parse_spec(text, source="demo.yaml", knobs={}, has_key=lambda key: True)
    assert cluster_slots(spec) == (get_num_cpus() if expected is None else expected)


def test_what_does_not_fit_on_this_machine_alone_is_said(folder, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    spec = folder / "demo.yaml"
    spec.write_text(spec.read_text().replace("{cpus: 1, concurrent: 1}", "{cpus: 100000}"))
    planned = call("plan", "demo.yaml")
    assert planned.exit_code == 0
    said = words(planned.output)
    assert "On this machine alone this will not start: a node of the cluster must hold" in said
    assert "100000 CPU" in said
    spec.write_text(spec.read_text().replace("{cpus: 100000}", "{cpus: 1}"))
    assert "On this machine alone" not in words(call("plan", "demo.yaml").output)
