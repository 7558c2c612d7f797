"""The objectives of a sweep, and their values. Pure.

Every value follows from what the record keeps of each rung: its metrics, and the training seconds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from sweeps.spec import SweepSpec
from sweeps.trials import RungResult, SweepRecord, TrialRecord

Mode = Literal["max", "min"]
TIME = "time"
CLASS_AP = "val/ap/"


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One of several objectives.

    Attributes:
        name: As people read it: `NDS`, `time`, `AP(pedestrian, bicycle)`.
        keys: Of the metrics whose mean it is; none: the training seconds.
        noise: Its declared noise.
    """

    name: str
    keys: tuple[str, ...]
    mode: Mode
    noise: float | None = None

    @property
    def is_time(self) -> bool:
        """Whether it is the training time."""
        return not self.keys

    @property
    def sign(self) -> float:
        """Makes more better."""
        return 1.0 if self.mode == "max" else -1.0

    @property
    def key(self) -> str:
        """Its name in tables for programs: `nds`, `time`, `ap_pedestrian_bicycle`."""
        return self.name.lower().replace("(", "_").replace(", ", "_").replace(")", "")

    def value(self, rung: RungResult) -> float:
        """Its value at a rung."""
        return fmean(rung.metrics[key] for key in self.keys) if self.keys else rung.seconds

    def show(self, value: float) -> str:
        """A value with its unit."""
        if not self.is_time:
            return f"{value:.4f}"
        if abs(value) >= 2 * 3600:
            return f"{value / 3600:.3f} h"
        return f"{value / 60:.2f} min" if abs(value) >= 2 * 60 else f"{value:.2f} s"


def read_objectives(data: Mapping[str, Any]) -> tuple[Objective, ...]:
    """All objectives of a spec's `objective` section as plain values, the first one first."""
    first = {"metric": data["metric"], "mode": data["mode"], "noise": data["noise"]}
    return tuple(_read(each) for each in (first, *data.get("also", ())))


def _read(data: Mapping[str, Any]) -> Objective:
    metric: str = data["metric"]
    is_score = metric in ("NDS", "mAP", "AP")
    mode: Mode = data.get("mode") or ("max" if is_score else "min")
    classes: Sequence[str] = data.get("classes") or ()
    if metric == "AP":
        name, keys = f"AP({', '.join(classes)})", tuple(f"{CLASS_AP}{each}" for each in classes)
    else:
        name, keys = metric, () if metric == TIME else (f"val/{metric.lower()}",)
    return Objective(name=name, keys=keys, mode=mode, noise=data.get("noise"))


def objectives_of(spec: SweepSpec) -> tuple[Objective, ...]:
    """The objectives of a spec, the first one first."""
    return read_objectives(spec.objective.model_dump())


def objectives_in(record: SweepRecord) -> tuple[Objective, ...]:
    """The objectives of a sweep that has several; none for one with a single objective."""
    objective = record.attrs.get("spec", {}).get("objective", {})
    return read_objectives(objective) if objective.get("also") else ()


def missing_keys(rung: RungResult, objectives: Iterable[Objective]) -> tuple[str, ...]:
    """The metrics that the objectives need and a rung lacks."""
    return tuple(key for each in objectives for key in each.keys if key not in rung.metrics)


def values_at(rung: RungResult, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """The values of all objectives at a rung."""
    return tuple(each.value(rung) for each in objectives)


def values_of(trial: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
    """The values of a trial at full budget and full validation; None without a result."""
    if trial.value is None or not trial.rungs:
        return None
    return values_at(trial.rungs[-1], objectives)
