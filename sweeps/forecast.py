"""What a spec will spend, before it runs, from simulated sweeps (`sweeps.simulation`). Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sweeps.budget import Course, course_of
from sweeps.noise import PRIOR_DEVIATION
from sweeps.simulation import Curves, Setting, Simulated, simulate
from sweeps.spec import SweepSpec
from sweeps.trials import SweepRecord

# Fewer of long sweeps, whose averages differ less; of very long ones, so many trials all in all.
NUM_SWEEPS, MIN_SWEEPS, MAX_PAIRS = 400, 20, 400_000
LEAST_SWEEPS, MAX_SIMULATED = 3, 20_000
# The number of trials that fits a budget is told to this part of it.
RESOLUTION = 100
LOW, HIGH = 0.1, 0.9


@dataclass(frozen=True, kw_only=True)
class Span:
    """A number that differs between simulated sweeps: its mean, and where four of five lie."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is expected of a sweep.

    Attributes:
        slots: Trials at once.
        full_hours: Of one training; None where nothing tells it.
        fractions: Shares of the budget, of the rungs.
        reached: Searched trials that reach each rung.
        trainings: The cost of all, in full trainings.
        searched: Searched trials.
        stopped: Of them, stopped early.
        losing_best: Probability that the best searched trial is stopped.
        gpu_hours: Of all trials; None without a time or a GPU.
        hours: Wall hours; None without a time.
        noise: Standard deviation of a score that was assumed.
    """

    slots: int
    full_hours: float | None
    fractions: tuple[float, ...]
    reached: tuple[Span, ...]
    trainings: Span
    searched: Span
    stopped: Span
    losing_best: float
    gpu_hours: Span | None
    hours: Span | None
    noise: float

    def dump(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


def read_forecast(data: Mapping[str, Any]) -> Forecast:
    """Read what `Forecast.dump` gave."""
    spans = ("trainings", "searched", "stopped", "gpu_hours", "hours")
    read = {name: None if data[name] is None else Span(**data[name]) for name in spans}
    reached = tuple(Span(**span) for span in data["reached"])
    fractions = tuple(data["fractions"])
    return Forecast(**{**data, **read, "reached": reached, "fractions": fractions})


def forecast(
    spec: SweepSpec,
    *,
    full_hours: float | None,
    slots: int,
    limited: bool = True,
) -> Forecast:
    """Simulate a spec.

    Args:
        spec: The sweep.
        full_hours: Hours of one full training; None if nothing tells them.
        slots: Trials that the cluster takes at once.
        limited: With the budget's hours and GPU-hours; else all its trials and finals run.

    Raises:
        ValueError: If nothing limits the number of trials.
    """
    if spec.budget.trials is None and (full_hours is None or not limited):
        raise ValueError("a forecast without a training time needs a number of trials")
    setting = setting_of(
        spec, full_hours=full_hours or 1.0, slots=slots, limited=limited and full_hours is not None
    )
    rng = np.random.default_rng(spec.seed)
    first = simulate(setting, rng)
    count = _num_sweeps(len(first.trials))
    sweeps = [first, *(simulate(setting, rng) for _ in range(count - 1))]
    return _summarise(sweeps, setting, full_hours)


def _num_sweeps(num_trials: int) -> int:
    """How many are simulated of sweeps of this length."""
    least = min(MIN_SWEEPS, max(LEAST_SWEEPS, MAX_SIMULATED // (1 + num_trials)))
    return min(NUM_SWEEPS, max(least, MAX_PAIRS // (1 + num_trials) ** 2))


def setting_of(spec: SweepSpec, *, full_hours: float, slots: int, limited: bool = True) -> Setting:
    """What a simulation needs to know of a spec; see `forecast`."""
    course = course_of(spec)
    noise = spec.objective.noise
    return Setting(
        course=course if limited else _without_hours(course),
        rule=spec.stopping.rule,
        curves=Curves(
            fidelities=spec.stopping.fidelities, noise=PRIOR_DEVIATION if noise is None else noise
        ),
        noise_is_declared=noise is not None,
        full_hours=full_hours,
        slots=slots,
        num_objectives=1 + len(spec.objective.also),
    )


def _without_hours(course: Course) -> Course:
    return Course(
        num_controls=course.num_controls,
        num_finals=course.num_finals,
        gpus=course.gpus,
        trials=course.trials,
    )


def _summarise(sweeps: Sequence[Simulated], setting: Setting, full_hours: float | None) -> Forecast:
    fidelities = setting.curves.fidelities
    spent = [sum((t.end or 0.0) - t.begun for t in s.trials) for s in sweeps]
    gpus = setting.course.gpus
    is_timed = full_hours is not None
    return Forecast(
        slots=setting.slots,
        full_hours=full_hours,
        fractions=tuple(fraction for fraction, _ in fidelities),
        reached=tuple(
            _span([sum(t.rungs > rung for t in s.searched) for s in sweeps])
            for rung in range(len(fidelities))
        ),
        trainings=_span([hours / setting.full_hours for hours in spent]),
        searched=_span([len(s.searched) for s in sweeps]),
        stopped=_span([sum(t.stopped for t in s.searched) for s in sweeps]),
        losing_best=float(np.mean([s.lost_its_best for s in sweeps])),
        gpu_hours=_span([hours * gpus for hours in spent]) if is_timed and gpus else None,
        hours=_span([s.hours for s in sweeps]) if is_timed else None,
        noise=setting.curves.noise,
    )


def _span(values: Sequence[float]) -> Span:
    low, high = np.quantile(values, [LOW, HIGH])
    return Span(mean=float(np.mean(values)), low=float(low), high=float(high))


def excess(spec: SweepSpec, *, full_hours: float, slots: int) -> str | None:
    """Why a spec exceeds its own budget, with the numbers and what to change; None if it does not.

    What exceeds it is all that the spec asks for: its trials, the control and the finals. Without a
    limit of trials that is one of them.
    """
    asked = _with_trials(spec, spec.budget.trials or 1)
    expected = forecast(asked, full_hours=full_hours, slots=slots, limited=False)
    over = [each for each in _limits(spec, expected) if each[2].mean > each[1]]
    if not over:
        return None
    told = " and ".join(
        f"about {rounded(span.mean)} {unit} ({rounded(span.low)} to {rounded(span.high)}), but"
        f" budget.{key} is {limit:g}"
        for key, limit, span, unit in over
    )
    raised = " and ".join(f"budget.{key} to {_rounded_up(span.high)}" for key, _, span, _ in over)
    fitting = _fitting_trials(spec, expected, full_hours=full_hours, slots=slots)
    cut = f", or budget.trials to {fitting}" if fitting else ""
    return (
        f"{rounded(expected.searched.mean)} searched trials with control and finals would take"
        f" {told} ({rounded(expected.trainings.mean)} full trainings of {full_hours:.3g} h,"
        f" {slots} at once): set {raised}{cut}"
    )


def rounded(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _rounded_up(value: float) -> str:
    """A number of two digits that is no smaller."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / unit - 1e-9) * unit:g}"


def _limits(spec: SweepSpec, expected: Forecast) -> list[tuple[str, float, Span, str]]:
    limits = (
        ("gpu_hours", spec.budget.gpu_hours, expected.gpu_hours, "GPU-hours"),
        ("hours", spec.budget.hours, expected.hours, "hours"),
    )
    return [
        (key, limit, span, unit)
        for key, limit, span, unit in limits
        if limit is not None and span is not None
    ]


def _load(spec: SweepSpec, expected: Forecast) -> float:
    """The cost as a share of the limit that it comes nearest to, or passes most."""
    return max(span.mean / limit for _, limit, span, _ in _limits(spec, expected))


def _fitting_trials(
    spec: SweepSpec, expected: Forecast, *, full_hours: float, slots: int
) -> int | None:
    """The most searched trials that fit, None if not one does."""
    fits, too_many = 0, round(expected.searched.mean)
    low, high = 0.0, _load(spec, expected)
    while too_many - fits > max(1, fits // RESOLUTION):
        # Costs grow about evenly with trials. Not too near to an end, so that both ends move.
        share = min(0.9, max(0.1, (1 - low) / (high - low)))
        middle = min(too_many - 1, max(fits + 1, round(fits + share * (too_many - fits))))
        tried = forecast(
            _with_trials(spec, middle), full_hours=full_hours, slots=slots, limited=False
        )
        load = _load(spec, tried)
        if load > 1:
            too_many, high = middle, load
        else:
            fits, low = middle, load
    return fits or None


def _with_trials(spec: SweepSpec, trials: int) -> SweepSpec:
    budget = spec.budget.model_copy(update={"trials": trials})
    return spec.model_copy(update={"budget": budget})


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One number of a forecast, and what came.

    Attributes:
        expected: None where the forecast did not know.
    """

    what: str
    expected: Span | None
    actual: float


def compare(expected: Forecast, record: SweepRecord) -> tuple[Comparison, ...]:
    """Set what a sweep did against its forecast."""
    searched, started = record.searched, record.started
    gpus = record.attrs["spec"]["resources"]["gpus"]
    spent = record.attrs.get("spent", {"hours": 0.0, "trial_hours": 0.0})
    stopped = sum(trial.outcome == "stopped" for trial in searched)
    trained = sum(trial.rungs[-1].fraction for trial in started if trial.rungs)
    rows: list[tuple[str, Span | None, float]] = [
        ("searched trials", expected.searched, len(searched)),
        *(
            (
                f"that reach {fraction:.0%}",
                span,
                sum(len(trial.rungs) > rung for trial in searched),
            )
            for rung, (fraction, span) in enumerate(
                zip(expected.fractions, expected.reached, strict=True)
            )
        ),
        ("stopped early", expected.stopped, stopped),
        ("full trainings, all in all", expected.trainings, trained),
        *([("GPU-hours", expected.gpu_hours, spent["trial_hours"] * gpus)] if gpus else []),
        ("hours", expected.hours, spent["hours"]),
    ]
    return tuple(Comparison(what=what, expected=span, actual=actual) for what, span, actual in rows)
