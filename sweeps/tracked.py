"""What a trial looks like in MLflow, and how much of it has arrived. Plain values, no MLflow.

`Delivery` stands in a file beside the spool. It belongs to one run on one server: with another
server or a new run, delivery begins anew.
"""

import json
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sweeps.analysis import metric_name
from sweeps.record import ParamValue, TrialRecord

DELIVERY_NAME = "delivered.json"
HEALTH_TAG = "health"
MAX_KEY = 250

# Symbols of the quantities in the formulae; any other axis is named by the initials of its words.
_SYMBOLS = {
    "amplification": "A",
    "residual_weight": "r",
    "max_weight_clamp": "c",
    "gaussian_sigma": "sigma",
}
_REFUSED = re.compile(r"[^\w\-. :/]", re.ASCII)
_STATUSES = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED", "failed": "FAILED"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of one metric; the same point posted twice is one point."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How much of a run has arrived.

    Attributes:
        uri: The server.
        run_id: The run there.
        offset: Bytes of the spool that arrived.
        steps: Latest step of each metric.
        repeated_to: `steps` when the present attempt began; up to there it repeats an earlier one.
        time_ms: Time of the last line.
        sent: Single messages that arrived: parameters, the end, the comparison with the control.
    """

    uri: str
    run_id: str
    offset: int = 0
    steps: Mapping[str, int] = field(default_factory=dict)
    repeated_to: Mapping[str, int] = field(default_factory=dict)
    time_ms: int = 0
    sent: tuple[str, ...] = ()

    def with_sent(self, message: str) -> "Delivery":
        """The same with one more message."""
        return replace(self, sent=(*self.sent, message))


def load_delivery(directory: Path, *, uri: str, run_id: str) -> Delivery:
    """Read how much arrived at this run; nothing, if the note is about another one."""
    noted = _read(directory)
    if noted is not None and (noted.uri, noted.run_id) == (uri, run_id):
        return noted
    return Delivery(uri=uri, run_id=run_id)


def delivered_bytes(directory: Path, *, uri: str) -> int:
    """How much of a spool arrived at a server, as far as is known without asking it."""
    noted = _read(directory)
    return noted.offset if noted is not None and noted.uri == uri else 0


def _read(directory: Path) -> Delivery | None:
    path = directory / DELIVERY_NAME
    if not path.is_file():
        return None
    plain = json.loads(path.read_text())
    return Delivery(**{**plain, "sent": tuple(plain["sent"])})


def save_delivery(directory: Path, delivery: Delivery) -> None:
    """Note what arrived, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{DELIVERY_NAME}.{os.getpid()}"
    partial.write_text(json.dumps(asdict(delivery)))
    partial.replace(directory / DELIVERY_NAME)


def points_of(
    records: Iterable[Mapping[str, Any]], delivery: Delivery
) -> tuple[list[Point], list[Path], Delivery]:
    """Turn spooled lines into points and artifacts.

    What an attempt repeats after a resume is left out, so that a step stands once in each curve.

    Returns:
        points: In the order of the lines.
        artifacts: Files to upload.
        delivery: As it will be once both have arrived; the caller sets the offset.
    """
    steps, repeated_to = dict(delivery.steps), dict(delivery.repeated_to)
    time_ms = delivery.time_ms
    points: list[Point] = []
    artifacts: list[Path] = []
    for record in records:
        time_ms = record["time_ms"]
        if record["kind"] == "attempt":
            repeated_to = dict(steps)
        elif record["kind"] == "artifact":
            artifacts.append(Path(record["path"]))
        elif record["kind"] != "flag":
            step = record["step"]
            values = record["metrics"] if record["kind"] == "rung" else record["values"]
            for name, value in values.items():
                key = metric_label(name)
                # A curve has one value a step: of a training that says it twice, the first.
                if step > repeated_to.get(key, -1) and step != steps.get(key):
                    points.append(Point(key=key, value=value, time_ms=time_ms, step=step))
                    steps[key] = max(step, steps.get(key, step))
    return (
        points,
        artifacts,
        replace(delivery, steps=steps, repeated_to=repeated_to, time_ms=time_ms),
    )


def flag_tags(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Tags for what the health rules said of a trial, one a rule."""
    return {
        f"{HEALTH_TAG}/{record['rule']}": record["reason"]
        for record in records
        if record["kind"] == "flag"
    }


def metric_label(name: str) -> str:
    """A metric's name as MLflow accepts it: a relative path of letters, digits and `_-. :`."""
    path = posixpath.normpath(_REFUSED.sub("_", name)).lstrip("/")
    return path.replace("../", "").replace("..", "_")[:MAX_KEY]


def run_name(trial: TrialRecord) -> str:
    """Short and sortable: `t007 A=1.42 r=0.55`, or `control`."""
    if trial.role == "control":
        return _short_label(trial)
    axes = [f"{symbol}={_short(value)}" for symbol, value in _symbols(trial.sampled)]
    seed = [f"seed={trial.seed}"] if trial.role == "finalist" else []
    return " ".join([f"t{trial.number:03d}", *axes, *seed])


def status_of(trial: TrialRecord, *, interrupted: bool) -> str:
    """MLflow's status: stopped early is killed, so that FINISHED means a full result."""
    if trial.outcome is not None:
        return _STATUSES[trial.outcome]
    return "KILLED" if interrupted else "RUNNING"


def trial_tags(trial: TrialRecord) -> dict[str, str]:
    """What tells the trial apart in the table of runs."""
    tags = {
        "trial": _short_label(trial) if trial.role == "control" else f"{trial.number:03d}",
        "label": trial.label,
        "role": trial.role,
        "config_hash": trial.config_hash,
        "outcome": trial.outcome or "running",
        "reached": f"{trial.rungs[-1].fraction:g}" if trial.rungs else "0",
    }
    if trial.repeats is not None:
        tags["repeats"] = f"{trial.repeats:03d}"
    return {**tags, "stop_reason": trial.reason} if trial.reason else tags


def final_points(trial: TrialRecord, *, time_ms: int) -> list[Point]:
    """The result under names that stopped trials lack, so that the table sorts by results only."""
    if trial.value is None or not trial.rungs:
        return []
    last = trial.rungs[-1]
    return [
        Point(
            key=metric_label(f"final/{key.removeprefix('val/')}"),
            value=value,
            time_ms=time_ms,
            step=last.step,
        )
        for key, value in last.metrics.items()
        if key.count("/") == 1
    ]


def delta_point(
    trial: TrialRecord, control: TrialRecord | None, *, metric: str, time_ms: int
) -> Point | None:
    """The gain over the control, once both are known; repeats have other seeds than it has."""
    if (
        trial.role != "search"
        or control is None
        or trial.value is None
        or control.value is None
        or not trial.rungs
    ):
        return None
    return Point(
        key=f"delta/{metric_name(metric).lower()}_vs_control",
        value=trial.value - control.value,
        time_ms=time_ms,
        step=trial.rungs[-1].step,
    )


def _short_label(trial: TrialRecord) -> str:
    """`control`, and `control2` for its repeat."""
    return trial.label.rsplit("-", 1)[0]


def _symbols(sampled: Mapping[str, ParamValue]) -> list[tuple[str, ParamValue]]:
    """Symbols of the formulae first, then the others by name; ambiguous ones written out."""
    symbols = {name: _symbol(name) for name in sampled}
    taken = list(symbols.values())
    order = {name: place for place, name in enumerate(_SYMBOLS)}
    names = sorted(sampled, key=lambda name: (order.get(name, len(order)), name))
    return [
        (symbols[name] if taken.count(symbols[name]) == 1 else name, sampled[name])
        for name in names
    ]


def _symbol(name: str) -> str:
    last = name.rsplit(".", 1)[-1]
    return _SYMBOLS.get(name) or "".join(word[0] for word in last.split("_") if word) or name


def _short(value: ParamValue) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
