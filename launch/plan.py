"""What a spec will run, before it runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launch.display import duration, number, shortest, table
from launch.progress import where_tracked

if TYPE_CHECKING:
    from aqr_model.knobs import Knob
    from launch.opening import Opened
    from sweeps.record import SweepRecord
    from sweeps.space import Parameter
    from sweeps.spec import SweepSpec

_RULES = {
    "safe": "stops only what is below its peers by more than the noise explains",
    "fast": "keeps the better half at each rung: cheaper, and it may lose the best trial",
    "none": "every trial trains to its end",
}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A measured time of one full training.

    Attributes:
        seconds: Mean over the trials.
        num_trials: Finished trials behind it.
        source: The sweep that measured it.
    """

    seconds: float
    num_trials: int
    source: Path


def measured_speed(spec: "SweepSpec") -> Speed | None:
    """The time of a full training, from this sweep or a sibling with the same train section."""
    from launch.opening import COPY_NAME, read_spec

    siblings = sorted(spec.directory.parent.glob(f"*/{COPY_NAME}"))
    for directory in (spec.directory, *(path.parent for path in siblings)):
        if not (directory / COPY_NAME).is_file():
            continue
        other = read_spec(directory)
        if (other.train, other.resources) == (spec.train, spec.resources):
            times = list(_finished_seconds(other))
            if times:
                return Speed(seconds=fmean(times), num_trials=len(times), source=directory)
    return None


def render_plan(opened: "Opened", speed: Speed | None, num_samples: int | None) -> RenderableType:
    """Everything about a sweep that is decided before its first trial.

    Args:
        opened: The checked spec.
        speed: A measured time, if there is one.
        num_samples: Training samples, if the info file could be read.
    """
    spec = opened.spec
    return Group(
        Text(f"Sweep {spec.name}", style="bold"),
        _facts(opened, speed, num_samples),
        _space_table(spec),
        *[Text(f"  subject to {text}", style="dim") for text in spec.constraints],
        _rungs_table(opened, num_samples),
    )


def steps_per_epoch(opened: "Opened", num_samples: int | None) -> int | None:
    """Optimizer steps of an epoch, as the trainer counts them."""
    from launch.training import resolve

    data = resolve(opened.training.base, opened.training.overrides).get("data")
    if num_samples is None or data is None:
        return None
    return num_samples // data["samples_per_gpu"]


def count_samples(opened: "Opened") -> int | None:
    """Training samples by the info file; None if the dataset repeats or filters them."""
    import pickle

    from launch.training import resolve

    train = resolve(opened.training.base, opened.training.overrides).data.train
    if "dataset" in train or "ann_file" not in train:
        return None
    with Path(train.ann_file).open("rb") as file:
        infos = pickle.load(file)["infos"]
    return len(infos) // int(train.get("load_interval", 1))


def _finished_seconds(spec: "SweepSpec") -> Iterator[float]:
    from sweeps.record import read_sweep

    try:
        record: SweepRecord = read_sweep(spec.storage_url, spec.name)
    except (FileNotFoundError, KeyError):
        return
    yield from (trial.seconds for trial in record.started if trial.outcome == "finished")


def _facts(opened: "Opened", speed: Speed | None, num_samples: int | None) -> Table:
    spec = opened.spec
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, text in _fact_lines(opened, speed, num_samples):
        facts.add_row(f"  {name}", text)
    if spec.known:
        facts.add_row("  known", f"{len(spec.known)} points told to the search beforehand")
    return facts


def _fact_lines(
    opened: "Opened", speed: Speed | None, num_samples: int | None
) -> Iterator[tuple[str, str]]:
    spec, goal, resources = opened.spec, opened.spec.objective, opened.spec.resources
    steps = steps_per_epoch(opened, num_samples)
    size = "" if steps is None else f", {round(steps * spec.train.epochs)} iterations"
    control = "the control (AQR off) + " if spec.control else ""
    chosen = f"chosen by {spec.search.sampler}, seed {spec.seed}"
    gpus = f" + {resources.gpus} GPU" if resources.gpus else ""
    trainings = spec.budget.trials + int(spec.control)
    yield "train", spec.train.config
    yield "from", str(spec.train.load_from or opened.training.base.get("load_from") or "scratch")
    yield "epochs", f"{spec.train.epochs:g} a trial{size}"
    yield "objective", f"{goal.metric}, {goal.mode}; noise {goal.noise:g}"
    yield "trials", f"{control}{spec.budget.trials}, {chosen}"
    yield "stopping", f"{spec.stopping.rule}: {_RULES[spec.stopping.rule]}"
    yield "at once", f"{resources.concurrent or 'as many as fit'}, {resources.cpus} CPU{gpus} each"
    yield "cost", f"at most {trainings} full trainings{_hours(spec)}"
    yield "time", _forecast(spec, speed, trainings)
    yield "results", str(shortest(spec.directory))
    yield "MLflow", where_tracked(spec)


def _hours(spec: "SweepSpec") -> str:
    return f"; no new trial after {spec.budget.hours:g} h" if spec.budget.hours else ""


def _forecast(spec: "SweepSpec", speed: Speed | None, trainings: int) -> str:
    if speed is None:
        return "unknown until the first trial: nothing like it has been measured here"
    at_once = spec.resources.concurrent or 1
    note = "" if spec.resources.concurrent else ", one after the other"
    return (
        f"at most about {duration(-(-trainings // at_once) * speed.seconds)}{note}"
        f" ({duration(speed.seconds)} a training: the mean of {speed.num_trials} in"
        f" {shortest(speed.source)})"
    )


def _space_table(spec: "SweepSpec") -> Table:
    from aqr_model.knobs import KNOBS

    made = table("parameter", "searched", "config key", "meaning")
    for name, parameter in spec.space.items():
        knob = KNOBS.get(name)
        keys = (knob.keys or ("(search axis)",)) if knob else (name,)
        shown = "\n".join(_tail_of(key) for key in keys)
        title = name.rsplit(".", 1)[-1]
        made.add_row(title, _searched(parameter), shown, _meaning(knob) if knob else "")
    for column in (0, 2):
        made.columns[column].no_wrap = True
    return made


def _meaning(knob: "Knob") -> str:
    return knob.meaning if knob.unit == "1" else f"{knob.meaning} ({knob.unit})"


def _searched(parameter: "Parameter") -> str:
    from sweeps.space import Choices, Derived

    if isinstance(parameter, Derived):
        return f"= {parameter.derive}"
    if isinstance(parameter, Choices):
        return "one of " + ", ".join(number(value) for value in parameter.choices)
    marks = [
        *(["log"] if parameter.log else []),
        *(["whole"] if parameter.whole else []),
        *([f"step {parameter.step:g}"] if parameter.step else []),
    ]
    text = f"{parameter.low:g} to {parameter.high:g}"
    return f"{text} ({', '.join(marks)})" if marks else text


def _tail_of(key: str) -> str:
    """The telling end of a dotted key."""
    parts = key.split(".")
    return key if len(parts) <= 3 else "..." + ".".join(parts[-2:])


def _rungs_table(opened: "Opened", num_samples: int | None) -> Table:
    spec = opened.spec
    steps = steps_per_epoch(opened, num_samples)
    total = None if steps is None else round(steps * spec.train.epochs)
    going_on = "goes on" if spec.stopping.rule == "none" else "stops or goes on"
    made = table("rung>", "epochs>", "iterations>", "validation scenes>", "then the trial")
    for fraction, share in spec.stopping.fidelities:
        made.add_row(
            f"{fraction:.0%}",
            f"{fraction * spec.train.epochs:g}",
            "" if total is None else str(max(1, round(fraction * total))),
            f"{share:.0%}",
            "has its result" if fraction == 1 else going_on,
        )
    return made
