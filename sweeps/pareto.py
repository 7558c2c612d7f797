"""Several objectives: who beats whom, and the Pareto front. Pure.

A trial is on the front if no other trial is as good on all objectives and better on one. Scores
carry noise, so the front alone says too much. A trial *beats* another if it is better by more than
the noise explains on one objective and worse by more than that on none. So a trial on the front
may be there by noise alone, and one beside it may tie with the front.

Finalists stand by their means over new seeds. A score that was never repeated may be luck: it
pushes no finalist from the front.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from sweeps.finalists import sweep_noise
from sweeps.noise import Noise, pooled_noise
from sweeps.objectives import Objective, objectives_in, values_of
from sweeps.stopping import Rule, Verdict, decide
from sweeps.trials import SweepRecord, TrialRecord


def dominates(one: Sequence[float], other: Sequence[float], signs: Sequence[float]) -> bool:
    """Whether one is as good as the other on all objectives and better on one of them."""
    gains = [sign * (a - b) for a, b, sign in zip(one, other, signs, strict=True)]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a finished trial stands.

    Attributes:
        values: Of each objective; a finalist's are means over its new seeds.
        num_scores: How many scores those are means of.
        is_repeated: It has a score with a new seed.
        on_front: No other trial is as good on all objectives and better on one.
        beaten_by: Label of a trial that beats it by more than the noise explains.
    """

    trial: TrialRecord
    values: tuple[float, ...]
    num_scores: int = 1
    is_repeated: bool = False
    on_front: bool = False
    beaten_by: str | None = None

    @property
    def standing(self) -> str:
        """In words; empty for a trial that is beaten."""
        if self.on_front:
            return "front" if self.beaten_by is None else "front by noise"
        return "ties with front" if self.beaten_by is None else ""


@dataclass(frozen=True, kw_only=True)
class Front:
    """All finished trials of a sweep with several objectives.

    Attributes:
        noises: Of each objective, a single score's.
        places: Of the searched trials with a result, by number.
        control: The control's means over its seeds; None without a result.
    """

    objectives: tuple[Objective, ...]
    noises: tuple[Noise, ...]
    places: tuple[Place, ...]
    control: Place | None = None

    @property
    def members(self) -> tuple[Place, ...]:
        """Those on the front: finalists first, then the best by the first objective."""
        sign = self.objectives[0].sign
        on_front = [place for place in self.places if place.on_front]
        return tuple(sorted(on_front, key=lambda p: (not p.is_repeated, -sign * p.values[0])))

    @property
    def tied(self) -> tuple[Place, ...]:
        """Those beside the front that nothing beats beyond the noise."""
        return tuple(p for p in self.places if not p.on_front and p.beaten_by is None)

    def place(self, trial: TrialRecord) -> Place | None:
        """The place of a trial; None if it has no result."""
        return next((p for p in self.places if p.trial.label == trial.label), None)


def front_of(record: SweepRecord) -> Front | None:
    """The front of a sweep; None for one with a single objective."""
    objectives = objectives_in(record)
    if not objectives:
        return None
    noises = tuple(_noise(record, objectives, i) for i in range(len(objectives)))
    own = [_place([trial], objectives, trial) for trial in record.searched]
    finals = _repeats(record)
    means = [
        _place(finals[p.trial.number], objectives, p.trial) if p.trial.number in finals else p
        for p in own
        if p is not None
    ]
    places = pareto_front([p for p in means if p is not None], objectives, noises)
    control = record.control and _place(record.controls, objectives, record.control)
    if control is not None:
        control = _Field(places, objectives, noises).judge(control)
    return Front(objectives=objectives, noises=noises, places=places, control=control)


def pareto_front(
    places: Sequence[Place], objectives: Sequence[Objective], noises: Sequence[Noise]
) -> tuple[Place, ...]:
    """Say of each place whether it is on the front, and what beats it."""
    field = _Field(places, objectives, noises)
    return tuple(field.judge(place) for place in places)


class _Field:
    """Places that others are compared with, themselves among them.

    As arrays, since a thousand trials are a million pairs at each look at a running sweep. M
    objectives, N places.

    Args:
        places: In any order.
        objectives: Of their values.
        noises: Of the objectives.
    """

    def __init__(
        self, places: Sequence[Place], objectives: Sequence[Objective], noises: Sequence[Noise]
    ) -> None:
        first = objectives[0].sign
        # The best by the first objective first: of all that beat a place, this one is named.
        self._places = sorted(places, key=lambda p: (-first * p.values[0], p.trial.number))
        self._noises = noises
        self._signs = np.array([[each.sign] for each in objectives])  # [M, 1]
        rows = [place.values for place in self._places]
        self._values = np.array(rows, dtype=float).reshape(-1, len(objectives)).T  # [M, N]
        self._is_repeated = np.array([p.is_repeated for p in self._places], dtype=bool)  # [N]
        self._limits: dict[int, NDArray[np.float64]] = {}

    def judge(self, place: Place) -> Place:
        """Say of a place whether it is on the front, and what beats it."""
        gains = self._signs * (self._values - np.array([place.values]).T)  # [M, N]
        limits = self._limits_to(place.num_scores)
        is_rival = self._is_repeated | (not place.is_repeated)
        dominates = is_rival & (gains >= 0).all(axis=0) & (gains > 0).any(axis=0)
        beats = is_rival & (gains >= -limits).all(axis=0) & (gains > limits).any(axis=0)
        best = self._places[beats.argmax()] if beats.any() else None
        return replace(
            place,
            on_front=not dominates.any(),
            beaten_by=None if best is None else best.trial.label,
        )

    def _limits_to(self, num_scores: int) -> NDArray[np.float64]:  # [M, N]
        """The largest differences that count as ties with a mean of so many scores."""
        if num_scores not in self._limits:
            counts = [place.num_scores for place in self._places]
            known = {
                count: [noise.threshold(count, num_scores) for noise in self._noises]
                for count in set(counts)
            }
            rows = np.array([known[count] for count in counts], dtype=float)
            self._limits[num_scores] = rows.reshape(-1, len(self._noises)).T
        return self._limits[num_scores]


def _place(
    scored: Iterable[TrialRecord], objectives: Sequence[Objective], trial: TrialRecord
) -> Place | None:
    """The means of some trainings as the place of a trial."""
    trainings = list(scored)
    rows = [values for each in trainings if (values := values_of(each, objectives)) is not None]
    if not rows:
        return None
    return Place(
        trial=trial,
        values=tuple(fmean(column) for column in zip(*rows, strict=True)),
        num_scores=len(rows),
        is_repeated=any(each.role == "finalist" for each in trainings),
    )


def _repeats(record: SweepRecord) -> dict[int, list[TrialRecord]]:
    """The finalists' repeats that have a score, by the number of the trial they repeat."""
    repeats: dict[int, list[TrialRecord]] = {}
    for trial in record.finalists:
        if trial.value is not None and trial.repeats is not None:
            repeats.setdefault(trial.repeats, []).append(trial)
    return repeats


def _noise(record: SweepRecord, objectives: Sequence[Objective], index: int) -> Noise:
    """The noise of one objective: declared, or what the repeats show, or none.

    The first has the noise of a single objective. The prior of that is NDS's, hence the others are
    measured without one.
    """
    if index == 0:
        return sweep_noise(record)
    objective = objectives[index]
    if objective.noise is not None:
        return Noise(deviation=objective.noise)
    groups = [record.controls, *_repeats(record).values()]
    rows = [[values_of(trial, (objective,)) for trial in group] for group in groups]
    measured = pooled_noise([[row[0] for row in group if row is not None] for group in rows])
    return measured or Noise(deviation=0.0, source="assumed")


def noise_to_stop_by(
    objective: Objective, controls: Sequence[TrialRecord], num_planned: int
) -> float | None:
    """The noise of a further objective that early stopping may rely on; None until it is known.

    A training time that is not declared is measured by the control's seeds, if there are several,
    and else compared as it is.

    Args:
        objective: Not the first one; `finalists.noise_for_stopping` is for that.
        controls: The control's trials so far.
        num_planned: How many of them measure the noise; see there.
    """
    if objective.noise is not None:
        return objective.noise
    measuring = controls[:num_planned]
    if sum(trial.outcome is not None for trial in measuring) < num_planned:
        return None
    rows = [values_of(trial, (objective,)) for trial in measuring]
    measured = pooled_noise([[row[0] for row in rows if row is not None]])
    if measured is None:
        return 0.0 if objective.is_time else None
    return measured.deviation


def decide_on_all(
    rule: Rule,
    objectives: Sequence[Objective],
    *,
    values: Sequence[float],
    peers: Sequence[Sequence[float]],
    noises: Sequence[float | None],
    val_share: float,
) -> Verdict:
    """Judge a trial at a rung: it stops only where the rule stops it on every objective.

    One that is behind on the first may still be on the front by another.

    Args:
        rule: As for a single objective.
        objectives: All.
        values: The trial's, at the rung.
        peers: Those of other trials at the same rung.
        noises: Of each objective on all scenes; None while it is not known.
        val_share: Share of the scenes scored; a training time does not depend on it.
    """
    if rule == "none":
        return decide(rule, value=0.0, peers=(), noise=None, val_share=val_share)
    verdicts = [
        decide(
            rule,
            value=values[i],
            peers=[peer[i] for peer in peers],
            noise=noises[i],
            val_share=1.0 if each.is_time else val_share,
            mode=each.mode,
        )
        for i, each in enumerate(objectives)
    ]
    told = [f"{each.name}: {v.reason}" for each, v in zip(objectives, verdicts, strict=True)]
    return Verdict(stop=all(verdict.stop for verdict in verdicts), reason="; ".join(told))


def best_of_front(
    trials: Sequence[TrialRecord], top: int, objectives: Sequence[Objective]
) -> tuple[TrialRecord, ...]:
    """The searched trials to repeat: the front, then what would be the front without it, and so on.

    Each of these has its best by the first objective first; equal ones by number.
    """
    signs = [each.sign for each in objectives]
    left: list[tuple[TrialRecord, tuple[float, ...]]] = []
    for trial in trials:
        values = values_of(trial, objectives) if trial.role == "search" else None
        if values is not None:
            left.append((trial, values))
    chosen: list[TrialRecord] = []
    while left and len(chosen) < top:
        layer = [
            (trial, values)
            for trial, values in left
            if not any(dominates(other, values, signs) for _, other in left)
        ]
        layer.sort(key=lambda pair: (-signs[0] * pair[1][0], pair[0].number))
        chosen += [trial for trial, _ in layer]
        taken = {trial.label for trial in chosen}
        left = [(trial, values) for trial, values in left if trial.label not in taken]
    return tuple(chosen[:top])
