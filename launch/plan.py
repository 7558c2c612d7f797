"""What a spec will run, before it runs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launch.display import duration, idle_settings, number, shortest, table
from launch.forecasting import (
    Expectation,
    Speed,
    cluster_misfit,
    count_samples,
    expect,
    measured_speed,
    steps_per_epoch,
)
from launch.progress import where_tracked

if TYPE_CHECKING:
    from aqr_model.knobs import Knob
    from launch.opening import Opened
    from sweeps.forecast import Forecast
    from sweeps.space import Parameter
    from sweeps.spec import SweepSpec

_RULES = {
    "safe": "stops only what is below its peers by more than the noise explains",
    "fast": "keeps the better half at each rung: cheaper, and it may lose the best trial",
    "none": "no score ends a trial before its last one",
}


def render_plan(opened: "Opened", speed: Speed | None, num_samples: int | None) -> RenderableType:
    """Everything about a sweep that is decided before its first trial.

    Args:
        opened: The checked spec.
        speed: A measured time, if there is one.
        num_samples: Training samples, if the info file could be read.
    """
    spec, expectation = opened.spec, expect(opened, speed, num_samples)
    parts: list[RenderableType] = [
        Text(f"Sweep {spec.name}", style="bold"),
        _facts(opened, expectation, num_samples),
        _space_table(spec),
        *[Text(f"  subject to {text}", style="dim") for text in spec.constraints],
        _rungs_table(opened, num_samples, expectation.forecast),
        idle_settings(opened.warnings),
    ]
    if expectation.excess is not None:
        text = f"This exceeds its budget and will not start: {expectation.excess}."
        parts.append(Text(text, style="red"))
    if (misfit := cluster_misfit(spec)) is not None:
        parts.append(Text(misfit, style="red"))
    return Group(*parts)


def _facts(opened: "Opened", expectation: Expectation, num_samples: int | None) -> Table:
    spec = opened.spec
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    lines = [*_training_lines(opened, num_samples), *_sweep_lines(spec, expectation)]
    for name, text in lines:
        facts.add_row(f"  {name}", text)
    if spec.known:
        facts.add_row("  known", f"{len(spec.known)} points told to the search beforehand")
    return facts


def _training_lines(opened: "Opened", num_samples: int | None) -> Iterator[tuple[str, str]]:
    spec = opened.spec
    steps = steps_per_epoch(opened, num_samples)
    size = "" if steps is None else f", {round(steps * spec.train.epochs)} iterations"
    yield "train", spec.train.config
    yield "from", str(spec.train.load_from or opened.training.base.get("load_from") or "scratch")
    yield "epochs", f"{spec.train.epochs:g} a trial{size}"


def _sweep_lines(spec: "SweepSpec", expectation: Expectation) -> Iterator[tuple[str, str]]:
    goal, resources = spec.objective, spec.resources
    gpus = f" + {resources.gpus} GPU" if resources.gpus else ""
    slots = expectation.slots or "as many as fit"
    yield "objective", f"{goal.metric}, {goal.mode}; {_noise(spec)}"
    yield from _further_objectives(spec)
    yield "trials", f"{_control(spec)}{_trials(spec)}, chosen by {_sampler(spec)}"
    if spec.finalists is not None:
        top, seeds = spec.finalists.top, spec.finalists.seeds
        which = f"the first {top} of the front" if goal.also else f"the best {top}"
        yield "finals", f"{which} and the control again, with {seeds} new seeds each"
    yield "stopping", f"{spec.stopping.rule}: {_RULES[spec.stopping.rule]}"
    if expectation.forecast is not None and spec.stopping.rule != "none":
        yield "risk", _risk_of(spec, expectation.forecast)
    yield "at once", f"{slots}, {resources.cpus} CPU{gpus} each"
    yield "cost", _cost(spec, expectation)
    yield "time", _time(expectation)
    if spec.budget.gpu_hours or spec.budget.hours:
        yield "budget", _budget(spec)
    yield "results", str(shortest(spec.directory))
    yield "MLflow", where_tracked(spec)


def _further_objectives(spec: "SweepSpec") -> Iterator[tuple[str, str]]:
    """The objectives after the first, and what it means that there are several."""
    from sweeps.objectives import objectives_of

    further = objectives_of(spec)[1:]
    for each in further:
        if each.noise is not None:
            noise = f"noise {each.show(each.noise)}"
        elif spec.control_seeds > 1:
            noise = f"noise measured by {spec.control_seeds} seeds of the control"
        else:
            noise = "noise neither given nor measured: every difference counts"
        what = "training seconds, " if each.is_time else ""
        yield "also", f"{each.name}, {what}{each.mode}; {noise}"
    if further:
        yield (
            "best",
            f"the Pareto front of all {1 + len(further)}; where one trial is asked for, its best"
            f" {spec.objective.metric}",
        )


def _noise(spec: "SweepSpec") -> str:
    if spec.objective.noise is not None:
        return f"noise {spec.objective.noise:g}"
    return f"noise measured by {spec.control_seeds} seeds of the control"


def _control(spec: "SweepSpec") -> str:
    if not spec.control_seeds:
        return ""
    seeds = f", {spec.control_seeds} seeds" if spec.control_seeds > 1 else ""
    return f"the control (AQR off{seeds}) + "


def _trials(spec: "SweepSpec") -> str:
    if spec.budget.trials is None:
        return "as many as the budget holds"
    return str(spec.budget.trials)


def _sampler(spec: "SweepSpec") -> str:
    return f"{spec.search.sampler}, seed {spec.seed}"


def _risk(forecast: "Forecast") -> str:
    from sweeps.forecast import rounded

    return (
        f"{forecast.losing_best:.0%} that the best trial is stopped, at a noise of"
        f" {forecast.noise:g}; {forecast.stopped.mean:.1f} of {rounded(forecast.searched.mean)}"
        " trials end early (simulated)"
    )


def _risk_of(spec: "SweepSpec", forecast: "Forecast") -> str:
    if not spec.objective.also:
        return _risk(forecast)
    return (
        f"{_risk(forecast)} by {spec.objective.metric}; a trial ends early only where it is behind"
        " on all objectives, which the forecast takes to be independent"
    )


def _cost(spec: "SweepSpec", expectation: Expectation) -> str:
    from sweeps.budget import course_of
    from sweeps.report.wording import expected

    most, forecast = course_of(spec).num_trainings, expectation.forecast
    parts = [] if most is None else [f"at most {most} full trainings"]
    if forecast is not None:
        parts.append(f"about {expected(forecast.trainings)} expected")
        if forecast.gpu_hours is not None:
            parts.append(f"{expected(forecast.gpu_hours)} GPU-hours")
    return ", ".join(parts) or "as the budget says"


def _time(expectation: Expectation) -> str:
    speed, forecast = expectation.speed, expectation.forecast
    if speed is None or forecast is None or forecast.hours is None:
        return "unknown until the first trial: nothing like it has been measured here"
    low, high = (duration(3600 * hours) for hours in (forecast.hours.low, forecast.hours.high))
    span = "" if low == high else f" ({low} to {high})"
    note = "" if expectation.slots else ", one after the other"
    origin = (
        f"the mean of {speed.num_trials} in {shortest(speed.source)}"
        if speed.num_trials
        else "by train.seconds_per_iter"
    )
    return (
        f"about {duration(3600 * forecast.hours.mean)}{span}{note}; {duration(speed.seconds)} a"
        f" training: {origin}"
    )


def _budget(spec: "SweepSpec") -> str:
    limits = (("GPU-hours", spec.budget.gpu_hours), ("hours", spec.budget.hours))
    told = " or ".join(f"{limit:g} {unit}" for unit, limit in limits if limit is not None)
    kept = ", less what the finals will take" if spec.finalists else ""
    return f"no new trial after {told}{kept}; what runs goes on to its end"


def _space_table(spec: "SweepSpec") -> Table:
    from launch.knobs import load_knobs

    made = table("parameter", "searched", "config key", "meaning")
    for name, parameter in spec.build_space().parameters.items():
        knob = load_knobs().get(name)
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
    condition = f", when {parameter.when}" if parameter.when else ""
    return _values(parameter) + condition


def _values(parameter: "Parameter") -> str:
    from sweeps.parameters import Choices, Derived, Fixed, Schedule

    if isinstance(parameter, Schedule):  # its parts stand in lines of their own
        return parameter.schedule
    if isinstance(parameter, Derived):
        return f"= {parameter.derive}"
    if isinstance(parameter, Fixed):
        return f"= {number(parameter.fixed)}"
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


def _rungs_table(opened: "Opened", num_samples: int | None, forecast: "Forecast | None") -> Table:
    spec = opened.spec
    steps = steps_per_epoch(opened, num_samples)
    total = None if steps is None else round(steps * spec.train.epochs)
    going_on = "goes on" if spec.stopping.rule == "none" else "stops or goes on"
    made = table("rung>", "epochs>", "iterations>", "validation scenes>", "then the trial")
    made.add_column("expected to reach it", justify="right")
    for rung, (fraction, share) in enumerate(spec.stopping.fidelities):
        made.add_row(
            f"{fraction:.0%}",
            f"{fraction * spec.train.epochs:g}",
            "" if total is None else str(max(1, round(fraction * total))),
            f"{share:.0%}",
            "has its result" if fraction == 1 else going_on,
            "" if forecast is None else f"{forecast.reached[rung].mean:.1f} trials",
        )
    return made


__all__ = ["count_samples", "measured_speed", "render_plan"]
