"""From training logs of runs by hand to a file of known points for a spec.

Such a run is prior knowledge: other code, other budget, other data. Each point says so, and a sweep
never takes it for a result.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from ruamel.yaml import YAML

from launch.opening import TargetError

CLAMP = "max_weight_clamp"
# What a point says elsewhere, or what is the same for every point.
_NOT_SEARCHED = ("enable_aqr", "seed", "semantics")
_HEADER = """\
# Runs by hand, read from their logs. Prior knowledge for a search, never results of a sweep: epochs
# and semantics say how each was trained and what its weight maps meant.
"""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What one log gives.

    Attributes:
        entry: As it stands in the file.
        is_control: Whether AQR was off.
        notes: What the user should know about it.
    """

    entry: Mapping[str, Any]
    is_control: bool
    notes: tuple[str, ...]


def import_logs(console: Console, logs: Sequence[Path], *, out: Path, metric: str) -> None:
    """Write the known points of some logs, and say what was read.

    Raises:
        TargetError: If a file is no finished training log, or `out` exists already.
    """
    if out.exists():
        raise TargetError(f"{out} exists already: name another file with --out, or remove it.")
    found = [read_run(path, metric=metric) for path in logs]
    out.write_text(to_yaml(found), encoding="utf-8")
    for path, run in zip(logs, found, strict=True):
        kind = "control" if run.is_control else f"{len(run.entry['params'])} parameters"
        console.print(f"{path.name}: {kind}, {metric} {run.entry[metric]:.4f}", markup=False)
        for note in run.notes:
            console.print(f"  {note}", style="dim", markup=False)
    console.print(f"Wrote {out}. A spec takes it as  known: [{out}]", markup=False)


def read_run(path: Path, *, metric: str) -> Imported:
    """Read one log.

    Raises:
        TargetError: If it is no training log or has no such score.
    """
    from sweeps.history import HistoryError, read_log

    try:
        log = read_log(path)
    except OSError as error:
        raise TargetError(f"{path} cannot be read: {error.strerror or error}.") from error
    except HistoryError as error:
        raise TargetError(f"{error}.") from error
    if not log.evaluations or f"val/{metric.lower()}" not in log.evaluations[-1].metrics:
        raise TargetError(f"{path} has no evaluation with {metric}: a known point needs its score.")
    last = log.evaluations[-1]
    notes = []
    if last.epoch < log.epochs:
        notes.append(f"scored after {last.epoch} of {log.epochs:g} epochs")
    entry: dict[str, Any] = {metric: last.metrics[f"val/{metric.lower()}"], "epochs": last.epoch}
    if log.aqr:
        params, more = _params(log)
        entry = {"params": params, **entry, "semantics": log.semantics}
        notes += more
    return Imported(
        entry={**entry, "source": path.name}, is_control=not log.aqr, notes=tuple(notes)
    )


def to_yaml(found: Sequence[Imported]) -> str:
    """The file: `known` for runs with AQR, `controls` for runs without."""
    content = {
        "known": [_as_written(run.entry) for run in found if not run.is_control],
        "controls": [_as_written(run.entry) for run in found if run.is_control],
    }
    yaml, stream = YAML(), io.StringIO()
    yaml.width = 100
    yaml.dump({key: runs for key, runs in content.items() if runs}, stream)
    return _HEADER + stream.getvalue()


def _as_written(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dict(each) if isinstance(each, Mapping) else each for key, each in entry.items()}


def _params(log: Any) -> tuple[dict[str, Any], list[str]]:
    """Every knob that the config sets to one value, as far as the value is one of the knob's."""
    from launch.knobs import load_knobs

    params: dict[str, Any] = {}
    notes: list[str] = []
    for knob in load_knobs().values():
        values = [value for key in knob.keys if (value := log.setting(key)) is not None]
        if knob.name in _NOT_SEARCHED or not values:
            continue
        value = _legacy_window(knob.name, values[0], log.semantics)
        if any(each != values[0] for each in values):
            notes.append(f"{knob.name} is left out: its keys differ ({values})")
        elif not _fits(knob, value):
            notes.append(f"{knob.name} is left out: {value!r} is none of its values")
        else:
            params[knob.name] = value
            if value != values[0]:
                notes.append(f"{knob.name} is {value}: this code made one more of {values[0]}")
    clamp = log.observed_clamp
    if CLAMP not in params and clamp is not None:
        params[CLAMP] = clamp
        notes.append(f"{CLAMP} is {clamp:g}, the maximum of every BEV map printed; no config key")
    return params, notes


def _legacy_window(name: str, value: Any, semantics: str) -> Any:
    """The users' own code takes an even window as the next odd one."""
    is_even = isinstance(value, int) and not value % 2
    return value + 1 if semantics == "legacy" and name.endswith("_window") and is_even else value


def _fits(knob: Any, value: Any) -> bool:
    if knob.choices is not None:
        return value in knob.choices
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low_holds = knob.low is None or value >= knob.low
    return low_holds and (knob.high is None or value <= knob.high)
