"""A whole sweep, simulated with the real rules on made-up scores. Pure.

Simulated trials go through `sweeps.budget.next_step` and `sweeps.stopping.decide`, as real ones do.
Only the scores are made up, by this model of learning curves:

- A trial's final value is normal around 0 with the standard deviation `spread`.
- Its value at a rung, less what all trials have gained by then, is normal with the same deviation
  and correlates with its value at the next rung, so that the rank correlation of rung and end is
  `1 + 0.15 log2(share of the budget)`: .85 at 1/2, .7 at 1/4.
- A score is that value plus normal noise: the spec's noise over the root of the share of scenes.
- Several objectives are independent of each other, each with the same curves; a trial is stopped
  where it is behind on all.
- Trials do not learn from each other, while a real search gets better: its later trials compare
  with weaker peers, and fewer of them are stopped.

Source: spread and correlations are those assumed in the project's simulation of stopping rules.
"""

import heapq
import math
from bisect import insort
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from sweeps.budget import Course, Limit, Progress, next_step
from sweeps.noise import PRIOR_DEVIATION
from sweeps.stopping import Rule, decide

SPREAD = 0.006
CORRELATION_LOST_PER_HALVING = 0.15
# A course without a number of trials is simulated with this one.
MAX_TRIALS = 10_000
# More peers hardly move a verdict, and cost time: of more, every second one counts, or third, ...
MAX_PEERS = 1000

Kind = Literal["control", "search", "finals"]


def rank_correlation(fraction: float) -> float:
    """Of the values after this share of the budget and at its end."""
    return max(0.0, 1 + CORRELATION_LOST_PER_HALVING * math.log2(fraction))


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The model of learning curves.

    Attributes:
        spread: Standard deviation of final values between trials.
        noise: Standard deviation of a score on all scenes.
    """

    fidelities: tuple[tuple[float, float], ...]
    spread: float = SPREAD
    noise: float = PRIOR_DEVIATION

    def draw(self, rng: np.random.Generator) -> tuple[float, tuple[float, ...]]:
        """A trial's true final value, and its scores at the rungs."""
        correlations = [_pearson(rank_correlation(fraction)) for fraction, _ in self.fidelities]
        value = final = self.spread * rng.standard_normal()
        values = [value]
        for here, later in reversed(list(pairwise(correlations))):
            step = here / later if later > 0 else 0.0
            value = step * value + math.sqrt(1 - step**2) * self.spread * rng.standard_normal()
            values.append(value)
        noises = [self.noise / math.sqrt(share) for _, share in self.fidelities]
        shown = zip(reversed(values), noises, strict=True)
        return final, tuple(true + noise * rng.standard_normal() for true, noise in shown)


def _pearson(rank: float) -> float:
    """The correlation of normal values whose ranks correlate so."""
    return 2 * math.sin(math.pi * rank / 6)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a simulation needs to know of a sweep.

    Attributes:
        noise_is_declared: Else `safe` waits for the control.
        full_hours: Of one training; 1 where it is not known, so that costs are in trainings.
        slots: Trials at once.
        num_objectives: Of the spec.
    """

    course: Course
    rule: Rule
    curves: Curves
    noise_is_declared: bool
    full_hours: float
    slots: int
    num_objectives: int = 1


@dataclass(kw_only=True)
class _Trial:
    """A simulated training.

    Attributes:
        scores: At all rungs, of which the first `rungs` have been seen.
        further: The same of each objective after the first.
    """

    kind: Kind
    begun: float
    final: float
    scores: tuple[float, ...]
    further: tuple[tuple[float, ...], ...] = ()
    rungs: int = 0
    end: float | None = None
    stopped: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether it has come to its last rung."""
        return self.rungs == len(self.scores)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A decision at a rung, as the simulation met it.

    Its peers are the values of the earlier judgements of that rung.
    """

    trial: int
    rung: int
    value: float
    stop: bool


@dataclass(kw_only=True)
class Simulated:
    """One simulated sweep.

    Attributes:
        trials: In the order of their beginning.
        judgements: Of searched trials, before the last rung.
        hours: Wall hours.
        limit: What ended the search.
    """

    trials: list[_Trial] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    hours: float = 0.0
    limit: Limit | None = None

    @property
    def searched(self) -> list[_Trial]:
        """The searched trials."""
        return [trial for trial in self.trials if trial.kind == "search"]

    @property
    def lost_its_best(self) -> bool:
        """Whether the trial with the best true final value was stopped."""
        searched = self.searched
        return bool(searched) and max(searched, key=lambda trial: trial.final).stopped


@dataclass(kw_only=True)
class _Tally:
    """What the rules ask of a sweep, counted on the way: looking it up makes long sweeps slow.

    Attributes:
        begun: Trainings of each kind.
        finished: Those that came to their last rung.
        running: Numbers of trials.
        ended_hours: Of all trials that have ended.
        scores: Of searched trials by rung and objective, ascending.
    """

    begun: Counter[Kind] = field(default_factory=Counter)
    finished: Counter[Kind] = field(default_factory=Counter)
    running: set[int] = field(default_factory=set)
    ended_hours: float = 0.0
    scores: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))


def simulate(setting: Setting, rng: np.random.Generator) -> Simulated:
    """Run one sweep through the real rules on made-up scores."""
    if setting.course.trials is None:
        setting = replace(setting, course=replace(setting.course, trials=MAX_TRIALS))
    sweep, tally = Simulated(), _Tally()
    events: list[tuple[float, int]] = []  # (when, which trial reaches its next rung)
    now = 0.0
    while True:
        while len(tally.running) < setting.slots and _begin(setting, sweep, tally, now, rng):
            heapq.heappush(events, (now + _leg(setting, 0), len(sweep.trials) - 1))
        if not events:
            sweep.hours = now
            return sweep
        now, number = heapq.heappop(events)
        trial = sweep.trials[number]
        trial.rungs += 1
        if trial.is_finished or _stops(setting, sweep, tally, number):
            _end(trial, tally, now)
            tally.running.discard(number)
        else:
            heapq.heappush(events, (now + _leg(setting, trial.rungs), number))


def _leg(setting: Setting, rung: int) -> float:
    """Hours from the rung before to this one."""
    fractions = [0.0, *[fraction for fraction, _ in setting.curves.fidelities]]
    return (fractions[rung + 1] - fractions[rung]) * setting.full_hours


def _begin(
    setting: Setting, sweep: Simulated, tally: _Tally, now: float, rng: np.random.Generator
) -> bool:
    """Begin what the course asks for next; False if that is nothing at the moment."""
    progress = _progress(setting, sweep, tally, now)
    if progress.num_finals and progress.num_finals >= setting.course.num_finals:
        return False
    step = next_step(setting.course, progress)
    sweep.limit = step.limit or sweep.limit
    is_without_finalist = step.next == "finals" and not tally.finished["search"]
    if step.next in ("wait", "end") or is_without_finalist:
        return False
    final, scores = setting.curves.draw(rng)
    further = tuple(setting.curves.draw(rng)[1] for _ in range(setting.num_objectives - 1))
    tally.begun[step.next] += 1
    tally.running.add(len(sweep.trials))
    sweep.trials.append(
        _Trial(kind=step.next, begun=now, final=final, scores=scores, further=further)
    )
    return True


def _end(trial: _Trial, tally: _Tally, now: float) -> None:
    trial.end = now
    tally.ended_hours += now - trial.begun
    tally.finished[trial.kind] += trial.is_finished


def _progress(setting: Setting, sweep: Simulated, tally: _Tally, now: float) -> Progress:
    running = [sweep.trials[number] for number in tally.running]
    elapsed = [now - trial.begun for trial in running]
    full = setting.full_hours if tally.finished.total() else None
    return Progress(
        num_controls=tally.begun["control"],
        num_searched=tally.begun["search"],
        num_search_running=sum(trial.kind == "search" for trial in running),
        num_finals=tally.begun["finals"],
        trial_hours=tally.ended_hours + sum(elapsed),
        rest_hours=sum(max(0.0, (full or 0.0) - hours) for hours in elapsed),
        hours=now,
        full_hours=full,
        slots=setting.slots,
    )


def _stops(setting: Setting, sweep: Simulated, tally: _Tally, number: int) -> bool:
    """What the real rule decides at a trial's rung, with the peers that a real sweep would see."""
    trial = sweep.trials[number]
    if trial.kind != "search":
        return False
    index = trial.rungs - 1
    is_known = setting.noise_is_declared or tally.finished["control"] == tally.begun["control"]
    verdicts: list[bool] = []
    for place, scores in enumerate((trial.scores, *trial.further)):
        peers = tally.scores[index, place]
        verdict = decide(
            setting.rule,
            value=scores[index],
            peers=_some_of(peers),
            noise=setting.curves.noise if is_known else None,
            val_share=setting.curves.fidelities[index][1],
        )
        verdicts.append(verdict.stop)
        insort(peers, scores[index])
    trial.stopped = all(verdicts)
    sweep.judgements.append(
        Judgement(trial=number, rung=index, value=trial.scores[index], stop=trial.stopped)
    )
    return trial.stopped


def _some_of(peers: list[float]) -> list[float]:
    """Ascending scores, evenly thinned out where they are many."""
    step = math.ceil(len(peers) / MAX_PEERS)
    return peers if step < 2 else peers[step // 2 :: step]
