"""MLflow: an experiment a sweep, a parent run, a nested run a trial. The only mlflow import.

Trials write to spools; `Mirror` carries the spools to MLflow in batches. What arrived is noted
beside each spool only after MLflow took it, and every line carries its own time, so that a repeated
post is the same post: MLflow's SQL store keeps one of them. A tracking server that is down costs
delay and nothing else.

No events are replayed. What arrived is compared with what the record says, and the difference is
sent, so that a new driver goes on from any state.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sweeps.analysis import leaderboard, metric_name
from sweeps.objectives import objectives_in, values_of
from sweeps.record import SweepRecord, TrialRecord, sqlite_url
from sweeps.spec import SweepSpec
from sweeps.spool import read_spool, spool_path
from sweeps.tracked import (
    Delivery,
    Point,
    delivered_bytes,
    delta_point,
    final_points,
    flag_tags,
    load_delivery,
    metric_label,
    points_of,
    run_name,
    save_delivery,
    status_of,
    trial_tags,
)

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DATABASE_NAME, ARTIFACTS_NAME = "mlflow.db", "mlartifacts"
REPORT_FILES = ("spec.yaml", "report.md", "leaderboard.csv", "front.html")
MAX_METRICS, MAX_PARAMS, MAX_VALUE, MAX_TAG = 1000, 100, 6000, 5000
ATTR = "tracking"

# A server that hangs must not hold a pass for minutes, as MLflow's own defaults would.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_SESSION_STATUSES = {"running": "RUNNING", "over": "FINISHED", "interrupted": "KILLED"}
_log = logging.getLogger(__name__)


def tracking_uri(spec: SweepSpec, directory: Path) -> str:
    """The spec's server, or the SQLite file that all sweeps of one storage path share."""
    return spec.tracking.uri or sqlite_url(directory.parent / DATABASE_NAME)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What MLflow shall show.

    Attributes:
        session: What the driver does. Interrupted: it ended before the sweep did. Unknown: it may
            run elsewhere, so that unfinished runs keep the status they have.
    """

    record: SweepRecord
    session: Literal["running", "over", "interrupted", "unknown"] = "running"


class Mirror:
    """Brings MLflow in line with a record; not for two threads.

    Attributes:
        run_ids: Runs by trial label; the sweep's own under "".
    """

    def __init__(self, spec: SweepSpec, directory: Path, record: SweepRecord) -> None:
        self.uri = tracking_uri(spec, directory)
        self.run_ids: dict[str, str] = {}
        self._spec, self._directory = spec, directory
        self._identity: Mapping[str, Any] = record.attrs[ATTR]
        self._deliveries: dict[str, Delivery] = {}
        self._client: MlflowClient | None = None
        self._experiment: str | None = None

    def bring(self, snapshot: Snapshot) -> None:
        """Send all that has not arrived.

        Raises:
            Exception: The first thing that went wrong, after all else that could be sent was.
        """
        self._connect()
        self._ensure_run("", lambda: self._sweep_tags(snapshot.record), snapshot.record.name)
        first: Exception | None = None
        for trial in snapshot.record.started:
            try:
                self._bring_trial(trial, snapshot)
            except Exception as error:  # noqa: BLE001  one broken run must not hold up the others
                first = first or error
                self._forget(trial.label)
                self._ask_for_life()
        if first is not None:
            raise first
        try:
            self._bring_sweep(snapshot)
        except Exception:
            self._forget("")
            raise

    def backlog(self, record: SweepRecord) -> int:
        """Spooled lines that have not arrived."""
        lines = 0
        for trial in record.started:
            directory = self._trial_dir(trial.label)
            path = spool_path(directory)
            if path.is_file():
                with path.open("rb") as spool:
                    spool.seek(delivered_bytes(directory, uri=self.uri))
                    lines += sum(1 for _ in spool)
        return lines

    def _forget(self, label: str) -> None:
        """Look for a run again at the next pass: it may have been deleted, and a new one is due."""
        self.run_ids.pop(label, None)
        self._deliveries.pop(label, None)

    def _connect(self) -> None:
        if self._client is not None:
            return
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        if self._spec.tracking.uri is None:
            self._directory.parent.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri=self.uri)
        self._experiment = self._find_experiment(client)
        self._client = client

    def _find_experiment(self, client: "MlflowClient") -> str:
        found = client.get_experiment_by_name(self._spec.name)
        if found is None:
            embedded = self._spec.tracking.uri is None
            artifacts = self._directory.parent.resolve() / ARTIFACTS_NAME / self._spec.name
            location = artifacts.as_uri() if embedded else None
            return client.create_experiment(self._spec.name, artifact_location=location)
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _ask_for_life(self) -> None:
        """Raise if the server itself is gone, so that a pass does not wait once for every trial."""
        assert self._client is not None
        assert self._experiment is not None
        self._client.get_experiment(self._experiment)

    def _ensure_run(self, label: str, tags: Callable[[], dict[str, str]], name: str) -> str:
        """Find the run of a trial, or of the sweep, by its tags; create it if there is none."""
        if label in self.run_ids:
            return self.run_ids[label]
        assert self._client is not None
        assert self._experiment is not None
        own = {"sweep_id": self._identity["id"], "label": label or "sweep"}
        wanted = " and ".join(f"tags.{key} = '{value}'" for key, value in own.items())
        found = self._client.search_runs([self._experiment], wanted, max_results=1)
        if not found:
            everything = {**self._common_tags(), **tags(), **own}
            found = [self._client.create_run(self._experiment, tags=everything, run_name=name)]
        self.run_ids[label] = found[0].info.run_id
        return self.run_ids[label]

    def _common_tags(self) -> dict[str, str]:
        tags = {"sweep": self._spec.name, "sampler": self._spec.search.sampler}
        return {**tags, "mlflow.source.name": "aqr-sweep", **self._identity["tags"]}

    def _sweep_tags(self, record: SweepRecord) -> dict[str, str]:
        return {"role": "sweep", "metric": metric_name(record.attrs["metric"])}

    def _bring_trial(self, trial: TrialRecord, snapshot: Snapshot) -> None:
        directory = self._trial_dir(trial.label)
        parent = {"mlflow.parentRunId": self.run_ids[""]}
        self._ensure_run(trial.label, lambda: {**parent, **trial_tags(trial)}, run_name(trial))
        delivery = self._delivery(trial.label, directory)
        if "params" not in delivery.sent:
            self._post(delivery.run_id, params=self._params(trial))
            delivery = self._keep(trial.label, directory, delivery.with_sent("params"))
        delivery = self._bring_spool(trial.label, directory, delivery)
        self._bring_end(trial, snapshot, directory, delivery)

    def _bring_spool(self, label: str, directory: Path, delivery: Delivery) -> Delivery:
        while True:
            chunk = read_spool(spool_path(directory), delivery.offset)
            if not chunk.records:
                return delivery
            points, artifacts, delivered = points_of(chunk.records, delivery)
            self._post(delivery.run_id, points=points)
            for artifact in artifacts:
                self._upload(delivery.run_id, directory / artifact)
            self._tag(delivery.run_id, flag_tags(chunk.records))
            delivered = replace(delivered, offset=chunk.offset)
            delivery = self._keep(label, directory, delivered)

    def _bring_end(
        self, trial: TrialRecord, snapshot: Snapshot, directory: Path, delivery: Delivery
    ) -> None:
        assert self._client is not None
        reached = f"reached:{trial.rungs[-1].fraction if trial.rungs else 0}:{trial.outcome}"
        if reached not in delivery.sent:
            self._tag(delivery.run_id, trial_tags(trial))
            delivery = self._keep(trial.label, directory, delivery.with_sent(reached))
        if trial.outcome is not None and "final" not in delivery.sent:
            points = final_points(trial, time_ms=delivery.time_ms)
            points += _objective_points(trial, snapshot.record, time_ms=delivery.time_ms)
            self._post(delivery.run_id, points=points)
            delivery = self._keep(trial.label, directory, delivery.with_sent("final"))
        delta = delta_point(
            trial,
            snapshot.record.control,
            metric=snapshot.record.attrs["metric"],
            time_ms=delivery.time_ms,
        )
        if delta is not None and "delta" not in delivery.sent:
            self._post(delivery.run_id, points=[delta])
            delivery = self._keep(trial.label, directory, delivery.with_sent("delta"))
        if trial.outcome is not None or snapshot.session != "unknown":
            status = status_of(trial, interrupted=snapshot.session == "interrupted")
            self._bring_status(trial.label, directory, delivery, status)

    def _bring_status(
        self, label: str, directory: Path, delivery: Delivery, status: str
    ) -> Delivery:
        """Set the status unless it was the last one set; a new run is RUNNING."""
        assert self._client is not None
        past = [entry for entry in delivery.sent if entry.startswith("status:")]
        if (past[-1] if past else "status:RUNNING") == f"status:{status}":
            return delivery
        if status == "RUNNING":
            self._client.update_run(delivery.run_id, status=status)
        else:
            self._client.set_terminated(delivery.run_id, status=status)
        return self._keep(label, directory, delivery.with_sent(f"status:{status}"))

    def _bring_sweep(self, snapshot: Snapshot) -> None:
        """The parent run: how far the sweep is, its best trial and, at the end, its report."""
        assert self._client is not None
        delivery = self._delivery("", self._directory)
        values, tags = _progress(snapshot.record)
        # The front may change where no number does.
        members = [tags["front"]] if "front" in tags else []
        signature = ":".join(["progress", str(sorted(values.items())), *members])
        if "params" not in delivery.sent:
            self._post(delivery.run_id, params=self._sweep_params())
            delivery = self._keep("", self._directory, delivery.with_sent("params"))
        if signature not in delivery.sent:
            step = sum(trial.outcome is not None for trial in snapshot.record.started)
            now = int(time.time() * 1000)
            points = [Point(key=k, value=v, time_ms=now, step=step) for k, v in values.items()]
            self._post(delivery.run_id, points=points)
            self._tag(delivery.run_id, tags)
            delivery = self._keep("", self._directory, delivery.with_sent(signature))
        if snapshot.session != "running":
            self._bring_report(delivery.run_id)
        if snapshot.session in _SESSION_STATUSES:
            status = _SESSION_STATUSES[snapshot.session]
            self._bring_status("", self._directory, delivery, status)

    def _bring_report(self, run_id: str) -> None:
        assert self._client is not None
        for name in REPORT_FILES:
            path = self._directory / name
            if path.is_file():
                self._upload(run_id, path)
        report = self._directory / "report.md"
        if report.is_file() and len(text := report.read_text()) <= MAX_TAG:
            self._client.set_tag(run_id, "mlflow.note.content", text)

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        assert self._client is not None
        for key, value in tags.items():
            self._client.set_tag(run_id, key, value[:MAX_TAG])

    def _upload(self, run_id: str, path: Path) -> None:
        assert self._client is not None
        if path.is_file():
            self._client.log_artifact(run_id, str(path))
        else:
            _log.warning("an artifact is gone and cannot be sent to MLflow: %s", path)

    def _post(
        self, run_id: str, *, points: Sequence[Point] = (), params: Mapping[str, str] | None = None
    ) -> None:
        assert self._client is not None
        from mlflow.entities import Metric, Param

        metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in points]
        for start in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])
        entries = [
            Param(metric_label(key), value[:MAX_VALUE]) for key, value in (params or {}).items()
        ]
        for start in range(0, len(entries), MAX_PARAMS):
            self._client.log_batch(run_id, params=entries[start : start + MAX_PARAMS])

    def _params(self, trial: TrialRecord) -> dict[str, str]:
        # The control's role says what it leaves off: a parameter that it alone had would stand as
        # "unknown" beside every other trial.
        shown = {} if trial.role == "control" else trial.params
        given = {name: str(value) for name, value in shown.items()}
        return {**self._train_params(), **given, "role": trial.role, "seed": str(trial.seed)}

    def _train_params(self) -> dict[str, str]:
        train = self._spec.train
        params = {"train.config": train.config, "train.epochs": str(train.epochs)}
        if train.load_from is not None:
            params["train.load_from"] = train.load_from
        return {**params, **{name: str(value) for name, value in train.overrides.items()}}

    def _sweep_params(self) -> dict[str, str]:
        spec = self._spec
        return {
            **self._train_params(),
            "search.sampler": spec.search.sampler,
            "search.seed": str(spec.search.seed),
            "stopping.rule": spec.stopping.rule,
            "budget.trials": str(spec.budget.trials),
            "objective.noise": str(spec.objective.noise),
        }

    def _delivery(self, label: str, directory: Path) -> Delivery:
        if label not in self._deliveries:
            run_id = self.run_ids[label]
            self._deliveries[label] = load_delivery(directory, uri=self.uri, run_id=run_id)
        return self._deliveries[label]

    def _keep(self, label: str, directory: Path, delivery: Delivery) -> Delivery:
        save_delivery(directory, delivery)
        self._deliveries[label] = delivery
        return delivery

    def _trial_dir(self, label: str) -> Path:
        return self._directory / "trials" / label


def _objective_points(trial: TrialRecord, record: SweepRecord, *, time_ms: int) -> list[Point]:
    """Those of several objectives that are no metric of their own: a time, a mean over classes."""
    objectives = objectives_in(record)
    values = values_of(trial, objectives)
    return [
        Point(key=f"final/{each.key}", value=value, time_ms=time_ms, step=trial.rungs[-1].step)
        for each, value in zip(objectives, values or (), strict=values is not None)
        if f"val/{each.key}" not in each.keys
    ]


def _progress(record: SweepRecord) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics of the parent run, and its tags: the best trial, and the front of several goals."""
    board = leaderboard(record)
    name = board.metric.lower()
    values = {
        "sweep/finished": float(len(board.finished)),
        "sweep/stopped": float(len(board.stopped)),
        "sweep/failed": float(len(board.ended)),
    }
    if board.control is not None and board.control.score is not None:
        values[f"control/{name}"] = board.control.score
    best = board.best
    if best is None or best.score is None:
        return values, {}
    values[f"best/{name}"] = best.score
    if best.delta is not None:
        values[f"delta/{name}_vs_control"] = best.delta
    tags = {"best_trial": best.trial.label}
    if board.front is not None:
        members = board.front.members
        values["front/size"] = float(len(members))
        for i, objective in enumerate(board.front.objectives):
            pick = max if objective.mode == "max" else min
            values[f"front/{objective.key}"] = pick(place.values[i] for place in members)
        tags["front"] = ", ".join(place.trial.label for place in members)
    return values, tags
