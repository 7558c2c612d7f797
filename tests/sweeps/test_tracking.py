import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sweep_samples import make_spec

from launch.ports import free_port
from sweeps import tracking
from sweeps.listeners import SweepContext
from sweeps.record import Ledger, RungResult
from sweeps.spool import SpoolWriter, spool_path
from sweeps.tracked import DELIVERY_NAME
from sweeps.tracker import Tracker, flush_spools
from sweeps.tracking import Mirror, Snapshot


@pytest.fixture(scope="module")
def migrated(tmp_path_factory) -> Path:
    """An empty MLflow database; its creation takes seconds, a copy none."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


class Sweep:
    """A sweep whose trials are played by the test."""

    def __init__(self, root: Path, *, uri: str | None = None) -> None:
        self.spec = make_spec(root, uri=f'"{uri}"' if uri else "null")
        self.directory = self.spec.directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.spec.write_copy(self.directory)
        self.open()

    def open(self) -> None:
        self.ledger = Ledger(self.spec.storage_url, "demo", mode="max")
        for key, value in {"metric": "val/nds", "mode": "max", "noise": 0.002}.items():
            self.ledger.set_attr(key, value)
        self.context = SweepContext(
            spec=self.spec, directory=self.directory, ledger=self.ledger, resumed=False
        )

    def trial(self, role="search", amplification=1.5):
        distributions = self.spec.build_space().distributions()
        sampled = {"amplification": amplification, "aqr_lr_mult": 0.5, "residual_weight": 0.4}
        if role == "control":
            sampled, distributions = {}, {}
        return self.ledger.add_trial(
            role=role,
            params=sampled or {"enable_aqr": False},
            sampled=sampled,
            distributions=distributions,
            seed=3,
            config_hash="abcd1234",
        )

    def spool(self, trial) -> SpoolWriter:
        path = spool_path(self.spec.trial_dir(trial.label))
        path.parent.mkdir(parents=True, exist_ok=True)
        return SpoolWriter(path)

    def log(self, trial, steps, **values) -> None:
        writer = self.spool(trial)
        for step in steps:
            writer.log({"train/loss": 1 / (1 + step), **values}, step=step)
        writer.close()

    def rung(self, trial, nds, *, fraction=1.0):
        metrics = {"val/nds": nds, "val/map": nds / 2, "val/ap/car": 0.5}
        step = int(100 * fraction)
        place = {"fraction": fraction, "val_share": fraction, "epoch": fraction, "step": step}
        writer = self.spool(trial)
        writer.rung(metrics, **place)
        writer.close()
        rung = RungResult(**place, metrics=metrics, checkpoint=None, seconds=1.0)
        return self.ledger.append_rung(trial.label, rung, objective=nds)

    def finish(self, trial, nds, outcome="finished", reason=""):
        return self.ledger.finish(
            trial.label, outcome=outcome, reason=reason, told=nds, seconds=1.0, gpu_hours=0.0
        )


class Eye:
    """What a user of MLflow sees."""

    def __init__(self, uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)

    def runs(self) -> dict:
        experiment = self.client.get_experiment_by_name("demo")
        found = self.client.search_runs([experiment.experiment_id]) if experiment else []
        assert len({run.info.run_name for run in found}) == len(found), "a run stands twice"
        return {run.info.run_name.split(" ")[0]: run for run in found}

    def history(self, name: str, key: str) -> list[tuple[int, float]]:
        metrics = self.client.get_metric_history(self.runs()[name].info.run_id, key)
        return sorted((metric.step, metric.value) for metric in metrics)


@pytest.fixture
def sweep(tmp_path, migrated) -> Sweep:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return Sweep(tmp_path)


@pytest.fixture
def eye(tmp_path, sweep) -> Eye:
    return Eye(f"sqlite:///{tmp_path / 'mlflow.db'}")


def curve(steps):
    return [(step, 1 / (1 + step)) for step in steps]


def play(sweep: Sweep, tracker: Tracker) -> None:
    """A control, a trial that finishes and one that is stopped."""
    tracker.on_start(sweep.context)
    for role, nds in (("control", 0.41), ("search", 0.43), ("search", 0.3)):
        trial = sweep.trial(role)
        tracker.on_trial_start(trial)
        sweep.log(trial, range(0, 100, 10), **{"aqr/lidar_weights/mean": 0.5})
        artifact = sweep.spec.trial_dir(trial.label) / "config.py"
        artifact.write_text("total_epochs = 2\n")
        writer = sweep.spool(trial)
        writer.artifact(artifact)
        writer.close()
        if nds == 0.3:
            trial = sweep.rung(trial, nds, fraction=0.5)
            trial = sweep.finish(trial, nds, "stopped", "below the cut")
        else:
            trial = sweep.rung(trial, nds)
            trial = sweep.finish(trial, nds)
        tracker.on_trial_end(trial)
    tracker.on_end(sweep.ledger.read(), interrupted=False)


def test_a_sweep_in_mlflow(sweep, eye):
    with Tracker(tags={"mlflow.source.git.commit": "abc123"}, poll_s=0.05) as tracker:
        play(sweep, tracker)
        (sweep.directory / "report.md").write_text("# Sweep demo\n")
    runs = eye.runs()
    assert set(runs) == {"demo", "control", "t000", "t001"}
    parent = runs["demo"]
    for name in ("control", "t000", "t001"):
        assert runs[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert runs[name].data.tags["mlflow.source.git.commit"] == "abc123"
        assert runs[name].data.tags["sampler"] == "gp"
        assert runs[name].data.params["train.epochs"] == "2.0"
        assert runs[name].data.params["seed"] == "3"
        expected = "control" if name == "control" else "search"
        assert runs[name].data.params["role"] == expected
        assert eye.history(name, "train/loss") == curve(range(0, 100, 10))
        assert len(eye.history(name, "aqr/lidar_weights/mean")) == 10
        artifacts = eye.client.list_artifacts(runs[name].info.run_id)
        assert [artifact.path for artifact in artifacts] == ["config.py"]
    assert runs["t000"].info.run_name == "t000 A=1.5 r=0.4 alm=0.5"
    assert runs["t000"].data.params["amplification"] == "1.5"
    assert "enable_aqr" not in runs["control"].data.params
    assert eye.history("t000", "val/ap/car") == [(100, 0.5)]
    assert runs["t000"].data.metrics["final/nds"] == 0.43
    assert runs["t000"].data.metrics["delta/nds_vs_control"] == pytest.approx(0.02)
    assert runs["t000"].info.status == "FINISHED"
    assert runs["t001"].info.status == "KILLED"
    assert runs["t001"].data.tags["outcome"] == "stopped"
    assert runs["t001"].data.tags["stop_reason"] == "below the cut"
    assert "final/nds" not in runs["t001"].data.metrics
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/nds"] == 0.43
    assert parent.data.metrics["sweep/stopped"] == 1
    assert parent.data.tags["best_trial"] == "t000-abcd1234"
    assert parent.data.tags["mlflow.note.content"] == "# Sweep demo\n"
    names = {artifact.path for artifact in eye.client.list_artifacts(parent.info.run_id)}
    assert names == {"report.md", "spec.yaml"}


def test_every_seed_of_the_control_is_followed_while_the_sweep_runs(sweep, eye):
    tracker = Tracker(poll_s=0.05)
    controls = [sweep.trial("control") for _ in range(2)]
    tracker.on_start(sweep.context)
    controls.append(sweep.trial("control"))
    trial = sweep.trial()
    for each in (controls[1], controls[0], trial, controls[2]):
        tracker.on_trial_start(each)
    # The first ends last, so that the newest event is not always about the newest trial.
    scores = [(controls[2], 0.45), (controls[1], 0.35), (trial, 0.43), (controls[0], 0.41)]
    for each, nds in scores:
        sweep.log(each, range(3))
        sweep.rung(each, nds)
        tracker.on_trial_end(sweep.finish(each, nds))
    assert tracker.close() == 0  # the driver broke: nothing but the events told of the trials
    runs = eye.runs()
    assert set(runs) == {"demo", "control", "control2", "control3", "t000"}
    for name, nds in {"control": 0.41, "control2": 0.35, "control3": 0.45}.items():
        assert runs[name].info.status == "FINISHED"
        assert runs[name].data.metrics["final/nds"] == nds
        assert eye.history(name, "train/loss") == curve(range(3))
    delta = eye.history("t000", "delta/nds_vs_control")
    assert delta == [(100, pytest.approx(0.02))]


def test_run_ids_reach_the_study(sweep, eye):
    tracker = Tracker(poll_s=0.01)
    tracker.on_start(sweep.context)
    tracker.on_trial_start(trial := sweep.trial())
    deadline = time.monotonic() + 240
    while sweep.ledger.trials[trial.label].mlflow_run_id is None and time.monotonic() < deadline:
        tracker.on_tick()
        time.sleep(0.02)
    tracker.on_end(sweep.ledger.read(), interrupted=True)
    tracker.close()
    record = sweep.ledger.read()
    runs = eye.runs()
    assert record.trials[0].mlflow_run_id == runs["t000"].info.run_id
    assert record.attrs["mlflow_run_id"] == runs["demo"].info.run_id
    assert runs["t000"].info.status == "KILLED"
    assert runs["demo"].info.status == "KILLED"


def mirror_of(sweep: Sweep) -> tuple[Mirror, Snapshot]:
    record = sweep.ledger.read()
    if tracking.ATTR not in record.attrs:
        sweep.ledger.set_attr(tracking.ATTR, {"id": "f00d", "tags": {}})
        record = sweep.ledger.read()
    return Mirror(sweep.spec, sweep.directory, record), Snapshot(record=record)


def test_a_new_driver_goes_on_where_the_last_was_killed(sweep, eye):
    trial = sweep.trial()
    sweep.log(trial, range(0, 50, 10))
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(snapshot)
    # The second attempt starts from a checkpoint at step 20.
    writer = sweep.spool(trial)
    writer.attempt(2)
    writer.close()
    sweep.log(trial, range(30, 80, 10))
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(snapshot)
    assert eye.history("t000", "train/loss") == curve(range(0, 80, 10))


@pytest.mark.parametrize("lost", ["note", "run and note"])
def test_what_is_posted_again_is_there_once(sweep, eye, lost):
    """A kill between the post and its note, or a run deleted by hand."""
    trial = sweep.trial()
    sweep.log(trial, range(0, 2500, 1), weird=float("nan"))
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(snapshot)
    (sweep.spec.trial_dir(trial.label) / DELIVERY_NAME).unlink()
    if lost == "run and note":
        eye.client.delete_run(eye.runs()["t000"].info.run_id)
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(snapshot)
    assert eye.history("t000", "train/loss") == curve(range(2500))
    assert len(eye.history("t000", "weird")) == 2500


def test_a_run_deleted_while_the_sweep_runs_is_made_again(sweep, eye):
    trial = sweep.trial()
    sweep.log(trial, range(3))
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(snapshot)
    eye.client.delete_run(eye.runs()["t000"].info.run_id)
    sweep.log(trial, range(3, 5))
    with pytest.raises(Exception, match="active"):
        mirror.bring(snapshot)
    mirror.bring(snapshot)
    assert eye.history("t000", "train/loss") == curve(range(5))


def test_a_deleted_parent_run_is_made_again(sweep, eye):
    sweep.trial()
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(snapshot)
    eye.client.delete_run(eye.runs()["demo"].info.run_id)
    snapshot = replace(snapshot, session="over")
    with pytest.raises(Exception, match=r"active|deleted"):
        mirror.bring(snapshot)
    mirror.bring(snapshot)
    assert eye.runs()["demo"].info.status == "FINISHED"


def test_one_broken_trial_does_not_hold_up_the_others(sweep, eye):
    first, second = sweep.trial(), sweep.trial(amplification=1.2)
    sweep.log(second, range(3))
    path = spool_path(sweep.spec.trial_dir(first.label))
    path.mkdir(parents=True)  # it cannot be read
    mirror, snapshot = mirror_of(sweep)
    with pytest.raises(IsADirectoryError):
        mirror.bring(snapshot)
    assert eye.history("t001", "train/loss") == curve(range(3))


def test_a_deleted_experiment_comes_back(sweep, eye):
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(snapshot)
    eye.client.delete_experiment(eye.client.get_experiment_by_name("demo").experiment_id)
    sweep.trial()
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(snapshot)
    assert "t000" in eye.runs()


def test_another_sweep_of_the_same_name_has_runs_of_its_own(sweep, eye):
    sweep.trial()
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(snapshot)
    attrs = {**snapshot.record.attrs, tracking.ATTR: {"id": "beef", "tags": {}}}
    other = replace(snapshot.record, attrs=attrs)
    Mirror(sweep.spec, sweep.directory, other).bring(Snapshot(record=other))
    experiment = eye.client.get_experiment_by_name("demo")
    assert len(eye.client.search_runs([experiment.experiment_id])) == 4


def test_a_lost_artifact_is_said(sweep, eye, caplog):
    trial = sweep.trial()
    writer = sweep.spool(trial)
    writer.artifact(Path("gone.py"))
    writer.close()
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(snapshot)
    assert "gone.py" in caplog.text


def test_many_parameters_and_long_values(sweep, eye):
    overrides = {f"model.key_{i}": "x" * 7000 for i in range(150)}
    train = sweep.spec.train.model_copy(update={"overrides": overrides})
    sweep.spec = sweep.spec.model_copy(update={"train": train})
    sweep.trial()
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(snapshot)
    params = eye.runs()["t000"].data.params
    assert len(params["model.key_149"]) == 6000


def test_an_unreachable_server_is_said_and_holds_nothing_up(tmp_path):
    sweep = Sweep(tmp_path, uri=f"http://127.0.0.1:{free_port()}")
    warnings: list[str] = []
    tracker = Tracker(poll_s=0.05, warn=warnings.append)
    play(sweep, tracker)
    assert tracker.close(timeout_s=1.0) == 36
    assert len(warnings) == 2
    assert "The sweep goes on" in warnings[0]
    assert "36 spooled lines" in warnings[1]


def test_flush_sends_what_an_outage_left(sweep, eye, monkeypatch):
    def down(self):
        raise ConnectionError("down")

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_connect", down)
        tracker = Tracker(poll_s=0.05, warn=lambda text: None)
        play(sweep, tracker)
        assert tracker.close(timeout_s=0.2) > 0
        assert flush_spools(sweep.directory, timeout_s=0.0) > 0
    assert flush_spools(sweep.directory) == 0
    runs = eye.runs()
    assert runs["t000"].info.status == "FINISHED"
    assert runs["demo"].info.status == "FINISHED"
    assert eye.history("t000", "train/loss") == curve(range(0, 100, 10))


def test_flush_leaves_the_status_of_an_interrupted_sweep(sweep, eye):
    with Tracker(poll_s=0.05) as tracker:
        tracker.on_start(sweep.context)
        tracker.on_trial_start(sweep.trial())
    assert flush_spools(sweep.directory) == 0
    runs = eye.runs()
    assert runs["t000"].info.status == "KILLED"
    assert runs["demo"].info.status == "KILLED"


def test_a_resumed_sweep_runs_again(sweep, eye):
    trial = sweep.trial()
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(replace(snapshot, session="interrupted"))
    assert eye.runs()["t000"].info.status == "KILLED"
    sweep.log(trial, range(2))
    mirror, snapshot = mirror_of(sweep)
    mirror.bring(snapshot)
    assert eye.runs()["t000"].info.status == "RUNNING"
    assert eye.runs()["demo"].info.status == "RUNNING"


def test_flush_of_an_untracked_sweep_does_nothing(tmp_path):
    assert flush_spools(Sweep(tmp_path).directory) == 0


def test_a_tracker_that_never_started_closes():
    assert Tracker().close() == 0


@contextmanager
def mlflow_server(root: Path, port: int):
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{root / 'server.db'}"]
    command += ["--artifacts-destination", str(root / "served")]
    with (root / "server.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: answers(port), "the server to answer", timeout_s=240)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_until(done, what: str, *, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.2)


@pytest.mark.integration
def test_an_outage_of_the_server_costs_nothing_but_delay(tmp_path, migrated):
    shutil.copy(migrated, tmp_path / "server.db")
    port = free_port()
    sweep = Sweep(tmp_path / "runs", uri=f"http://127.0.0.1:{port}")
    eye = Eye(f"http://127.0.0.1:{port}")
    warnings: list[str] = []
    tracker = Tracker(poll_s=0.1, warn=warnings.append, timeout_s=240)
    with mlflow_server(tmp_path, port):
        tracker.on_start(sweep.context)
        trial = sweep.trial()
        tracker.on_trial_start(trial)
        sweep.log(trial, range(500))
        arrived = lambda: "t000" in eye.runs() and eye.history("t000", "train/loss")  # noqa: E731
        wait_until(arrived, "the first metrics")
    sweep.log(trial, range(500, 1700))
    trial = sweep.rung(trial, 0.43)
    tracker.on_trial_end(sweep.finish(trial, 0.43))
    wait_until(lambda: warnings, "the warning")
    tracker.on_end(sweep.ledger.read(), interrupted=False)
    with mlflow_server(tmp_path, port):
        assert tracker.close() == 0
        assert eye.history("t000", "train/loss") == curve(range(1700))
        assert eye.history("t000", "val/nds") == [(100, 0.43)]
        assert eye.runs()["t000"].info.status == "FINISHED"
        artifacts = eye.client.list_artifacts(eye.runs()["demo"].info.run_id)
        assert "spec.yaml" in {artifact.path for artifact in artifacts}
    assert len(warnings) == 1
