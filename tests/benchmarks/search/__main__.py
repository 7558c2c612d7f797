"""NDS regret against GPU-hours of our search and of what a team would otherwise take.

Results stand in docs/search.md.

``python tests/benchmarks/search`` prints a row for each strategy.
"""

import heapq
import logging
import tempfile
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Annotated

import optuna
import typer
from strategies import OURS, Strategy, all_strategies
from surrogate import FRACTIONS, NUM_SLOTS, TRIAL_GPU_HOURS, Point, Surrogate

CHECKPOINTS = (12, 24, 48)  # trials' worth of GPU-hours
REPORTED_SEEDS = range(2000, 2020)  # nothing is tuned on them


@dataclass(kw_only=True)
class Course:
    """How good the trial was that a user would have taken, and when.

    Attributes:
        times: GPU-hours spent when a full-budget score came in.
        regrets: True regret, NDS, of the trial that the strategy names best.
        of_highest: The same of the trial that has scored highest.
        num_trials: Trials begun.
        num_stopped: Of these, stopped early.
    """

    times: list[float] = field(default_factory=list)
    regrets: list[float] = field(default_factory=list)
    of_highest: list[float] = field(default_factory=list)
    num_trials: int = 0
    num_stopped: int = 0

    def at(self, gpu_hours: float) -> float:
        """Regret after so many GPU-hours; infinite before the first result."""
        known = [r for t, r in zip(self.times, self.regrets, strict=True) if t <= gpu_hours]
        return known[-1] if known else float("inf")


def simulate(strategy: Strategy, surrogate: Surrogate, *, gpu_hours: float) -> Course:
    """Run a strategy on a cluster where `NUM_SLOTS` trials train at a time."""
    course, spent = Course(), 0.0
    finished: dict[str, float] = {}
    points: dict[str, Point] = {}
    events: list[tuple[float, int, int]] = []  # (time, trial, rung)
    clock, step = 0.0, TRIAL_GPU_HOURS

    def start() -> None:
        number = course.num_trials
        points[str(number)] = strategy.ask(str(number))
        heapq.heappush(events, (clock + FRACTIONS[0], number, 0))
        course.num_trials += 1

    for _ in range(NUM_SLOTS):
        start()
    while spent < gpu_hours:
        clock, number, rung = heapq.heappop(events)
        spent += step * (FRACTIONS[rung] - (FRACTIONS[rung - 1] if rung else 0.0))
        name, point = str(number), points[str(number)]
        value = surrogate.observe(point, rung, number)
        stopped = strategy.rung(name, rung, value)
        last = rung + 1 == len(FRACTIONS)
        if not last and not stopped:
            gap = FRACTIONS[rung + 1] - FRACTIONS[rung]
            heapq.heappush(events, (clock + gap, number, rung + 1))
            continue
        course.num_stopped += not last
        strategy.end(name, rung, value)
        if last:
            finished[name] = value
            highest = max(finished, key=lambda each: finished[each])
            course.times.append(spent)
            course.of_highest.append(surrogate.regret(points[highest]))
            course.regrets.append(surrogate.regret(points[strategy.best() or highest]))
        start()
    return course


def first_below(courses: list[Course], target: float, limit: float) -> float | None:
    """The fewest GPU-hours after which the median regret is at most the target."""
    times = sorted({t for course in courses for t in course.times if t <= limit})
    return next((t for t in times if median(c.at(t) for c in courses) <= target), None)


def main(
    seeds: Annotated[int, typer.Option(help="How many of the reported seeds.")] = 20,
    first_seed: Annotated[int, typer.Option(help="Below 100 is for development.")] = (
        REPORTED_SEEDS.start
    ),
    only: Annotated[str, typer.Option(help="Part of a strategy's name.")] = "",
) -> None:
    """Run every strategy on every seed and print the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    budget = CHECKPOINTS[-1] * TRIAL_GPU_HOURS
    found: dict[str, list[Course]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in all_strategies(Path(folder)).items():
            if only not in name:
                continue
            began = time.perf_counter()
            found[name] = [
                simulate(make(seed), Surrogate(seed), gpu_hours=budget)
                for seed in range(first_seed, first_seed + seeds)
            ]
            typer.echo(f"{name}: {time.perf_counter() - began:.0f} s", err=True)
    for name in [name for name in found if name.startswith(OURS)]:
        found[f"{name}, by highest score"] = [by_highest(course) for course in found[name]]
    typer.echo(table(found, budget))
    if OURS in found:
        typer.echo(f"\n{differences(found)}")


def by_highest(course: Course) -> Course:
    """The same search, had its user taken the trial that scored highest."""
    return replace(course, regrets=course.of_highest)


def differences(found: dict[str, list[Course]]) -> str:
    """How much more others regret on the same seeds, in thousandths: mean +- standard error."""
    heads = [f"{count * TRIAL_GPU_HOURS:.0f} GPU-h" for count in CHECKPOINTS]
    lines = [f"| less {OURS} | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, courses in found.items():
        if name.startswith(OURS):
            continue
        cells = [name]
        for count in CHECKPOINTS:
            at = count * TRIAL_GPU_HOURS
            more = [
                1000 * (other.at(at) - ours.at(at))
                for other, ours in zip(courses, found[OURS], strict=True)
            ]
            cells.append(f"{fmean(more):+.2f} +- {stdev(more) / len(more) ** 0.5:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table(found: dict[str, list[Course]], budget: float) -> str:
    """Median and mean regret by GPU-hours, as Markdown."""
    heads = [f"{count * TRIAL_GPU_HOURS:.0f} GPU-h" for count in CHECKPOINTS]
    columns = ["strategy", *heads, "trials", "stopped", "GPU-h to random's end"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    baseline = next(iter(found.values()))
    target = median(course.at(budget) for course in baseline)
    for name, courses in found.items():
        cells = [name]
        for count in CHECKPOINTS:
            regrets = [1000 * course.at(count * TRIAL_GPU_HOURS) for course in courses]
            cells.append(f"{median(regrets):.2f} ({fmean(regrets):.2f})")
        cells.append(f"{fmean(c.num_trials for c in courses):.0f}")
        cells.append(f"{fmean(c.num_stopped for c in courses):.0f}")
        reached = first_below(courses, target, budget)
        cells.append("not reached" if reached is None else f"{reached:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
