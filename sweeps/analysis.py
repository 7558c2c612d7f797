"""What the record of a sweep says: leaderboard, rungs, costs, classes. Pure.

A result is a full-budget value and nothing else; stopped trials appear with the rung they reached,
known points never as results. Two values are told apart only where they differ by more than the
noise of a difference allows. Trials that were repeated with new seeds stand by the mean of those.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import correlation, fmean, median
from typing import Literal

from sweeps.finalists import Standing, control_scores, standings, sweep_noise
from sweeps.noise import Noise, pooled_noise
from sweeps.objectives import CLASS_AP
from sweeps.pareto import Front, Place, front_of
from sweeps.trials import SweepRecord, TrialRecord

Mode = Literal["max", "min"]

_MIN_TRIALS_FOR_RANKS = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial's line.

    Attributes:
        rank: Place among the finished trials, from 1; None for all others.
        score: The objective at full budget and validation; None for all but finished trials. The
            mean over new seeds for a finalist, over all of its seeds for the control.
        num_scores: How many scores that is the mean of.
        is_finalist: It was repeated with new seeds, and a repeat has its score.
        interval: Where the trial's true score is expected, by its noise; None without a score.
        delta: Difference to the control over the seeds that both have, which takes out what a seed
            does to both; over all seeds where they share none. None without either score.
        limit: Largest delta that counts as a tie; None without a delta.
        tied_with_control: The delta is within the noise.
        tied_with_best: The difference to the best finished trial is within the noise.
        reached: Share of the budget at the last rung; 0 before the first.
        reached_score: The objective at that rung, comparable within the rung only.
        place: Where it stands by all objectives; None where there is one, and without a score.
    """

    trial: TrialRecord
    rank: int | None = None
    score: float | None = None
    num_scores: int = 0
    is_finalist: bool = False
    interval: tuple[float, float] | None = None
    delta: float | None = None
    limit: float | None = None
    tied_with_control: bool = False
    tied_with_best: bool = False
    reached: float = 0.0
    reached_score: float | None = None
    place: Place | None = None

    @property
    def is_on_front(self) -> bool:
        """Whether it is on the front; never where there is a single objective."""
        return self.place is not None and self.place.on_front


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """All trials of a sweep in order of what is known about them.

    Attributes:
        finished: Best first: finalists by their means, then the others by their one score.
        stopped: Stopped early: furthest first, then by the score at that rung.
        ended: Diverged or failed, by number.
        running: Running, or waiting for a resume.
        control: The control's line, also while it runs.
        known: Points the sweep was told and did not train.
        spread: The noise of one score, and how it is known.
        front: What several objectives say together; None where there is one.
    """

    metric: str
    mode: Mode
    spread: Noise
    finished: tuple[Row, ...]
    stopped: tuple[Row, ...]
    ended: tuple[Row, ...]
    running: tuple[Row, ...]
    control: Row | None
    known: tuple[TrialRecord, ...]
    front: Front | None = None

    @property
    def best(self) -> Row | None:
        """The best finished trial, the control aside; of several objectives, by the first."""
        return self.finished[0] if self.finished else None

    @property
    def finalists(self) -> tuple[Row, ...]:
        """Those that were repeated with new seeds, best mean first."""
        return tuple(row for row in self.finished if row.is_finalist)

    @property
    def noise(self) -> float:
        """Standard deviation of one score."""
        return self.spread.deviation

    @property
    def threshold(self) -> float:
        """Differences of two single scores up to here are ties."""
        return self.spread.threshold()


def leaderboard(record: SweepRecord, noise: float | None = None) -> Leaderboard:
    """Order the trials and mark ties.

    Args:
        record: The sweep.
        noise: Standard deviation of one score; None for what the spec declares or the repeats show.
    """
    key, mode = _objective(record)
    spread = sweep_noise(record) if noise is None else Noise(deviation=noise)
    sign = 1.0 if mode == "max" else -1.0
    finals = standings(record)
    control = _control_row(record, key, spread)
    beside = control_scores(record)
    front = front_of(record)
    rows = [_row(t, finals.get(t.number), beside, key, spread) for t in record.searched]
    if front is not None:
        rows = [replace(row, place=front.place(row.trial)) for row in rows]
        control = control and replace(control, place=front.control)
    by_outcome: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        by_outcome[row.trial.outcome].append(row)
    scored = [row for row in by_outcome["finished"] if row.score is not None]
    scored.sort(
        key=lambda r: (
            not r.is_finalist,
            -sign * _known(r.score),
            front is not None and not r.is_on_front,  # equal by the first objective alone
            r.trial.number,
        )
    )
    return Leaderboard(
        metric=metric_name(key),
        mode=mode,
        spread=spread,
        finished=_ranked(scored, spread),
        stopped=tuple(sorted(by_outcome["stopped"], key=lambda row: _progress_order(row, sign))),
        ended=tuple(row for row in rows if row.trial.outcome in ("diverged", "failed")),
        running=tuple(by_outcome[None]),
        control=control,
        known=tuple(trial for trial in record.trials if trial.role == "known"),
        front=front,
    )


def metric_name(key: str) -> str:
    """How people write the metric of a key: `NDS` for `val/nds`, `mAP` for `val/map`."""
    name = key.rsplit("/", 1)[-1]
    return f"m{name[1:].upper()}" if name.startswith("m") else name.upper()


def measured_noise(record: SweepRecord) -> Noise | None:
    """Noise from the control's seeds and the finalists' new ones, as they are."""
    finals = [standing.values for standing in standings(record).values()]
    return pooled_noise([tuple(control_scores(record).values()), *finals])


@dataclass(frozen=True, kw_only=True)
class RungSummary:
    """One rung over all searched trials.

    Attributes:
        reached: Trials with a score at this rung.
        stopped: Trials that ended here by early stopping.
        best: Best score at the rung, None if nobody reached it; likewise median and control.
        rank_correlation: Of scores here and at the end, over finished trials; how far this rung
            may be trusted. None with few of them.
    """

    fraction: float
    val_share: float
    reached: int
    stopped: int
    best: float | None
    median: float | None
    control: float | None
    rank_correlation: float | None


def rung_table(record: SweepRecord) -> tuple[RungSummary, ...]:
    """Summarise the rungs in order of training."""
    key, mode = _objective(record)
    shares = {rung.fraction: rung.val_share for trial in record.started for rung in trial.rungs}
    controls = _scores([record.control] if record.control else [], key)
    searched = _scores(record.searched, key)
    pick = max if mode == "max" else min
    table = []
    for fraction, share in sorted(shares.items()):
        here = searched.get(fraction, {})
        values = list(here.values())
        stopped = [t for t in record.searched if t.outcome == "stopped" and t.number in here]
        table.append(
            RungSummary(
                fraction=fraction,
                val_share=share,
                reached=len(here),
                stopped=sum(trial.rungs[-1].fraction == fraction for trial in stopped),
                best=pick(values) if values else None,
                median=median(values) if values else None,
                control=next(iter(controls.get(fraction, {}).values()), None),
                rank_correlation=_agreement(here, record.searched),
            )
        )
    return tuple(table)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Training time of a sweep.

    Attributes:
        unit: GPU-hours, or plain hours where no GPU was used.
        searched: Spent on searched trials.
        control: Spent on the control, all of its seeds.
        finals: Spent on finalists' repeats.
        saved: What stopped trials did not spend: the median of the finished ones less their own.
    """

    unit: Literal["GPU-hours", "hours"]
    searched: float
    control: float
    saved: float
    finals: float = 0.0

    @property
    def total(self) -> float:
        """All that was spent."""
        return self.searched + self.control + self.finals


def costs(record: SweepRecord) -> Costs:
    """Add up the training time."""
    unit = "GPU-hours" if any(trial.gpu_hours > 0 for trial in record.started) else "hours"

    def hours(trial: TrialRecord) -> float:
        return trial.gpu_hours if unit == "GPU-hours" else trial.seconds / 3600

    full = [hours(trial) for trial in record.started if trial.outcome == "finished"]
    stopped = [trial for trial in record.searched if trial.outcome == "stopped" and trial.rungs]
    saved = 0.0
    for trial in stopped:
        whole = median(full) if full else hours(trial) / trial.rungs[-1].fraction
        saved += max(0.0, whole - hours(trial))
    return Costs(
        unit=unit,
        searched=sum(hours(trial) for trial in record.searched),
        control=sum(hours(trial) for trial in record.controls),
        saved=saved,
        finals=sum(hours(trial) for trial in record.finalists),
    )


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """Average precision of one class in two trials."""

    name: str
    ap: float
    control_ap: float

    @property
    def delta(self) -> float:
        """Gain over the control."""
        return self.ap - self.control_ap


def class_differences(trial: TrialRecord, control: TrialRecord) -> tuple[ClassDifference, ...]:
    """Per-class AP of two finished trials at their ends, largest gain first."""
    ours, theirs = trial.rungs[-1].metrics, control.rungs[-1].metrics
    rows = [
        ClassDifference(name=key.removeprefix(CLASS_AP), ap=value, control_ap=theirs[key])
        for key, value in ours.items()
        if key.startswith(CLASS_AP) and key in theirs
    ]
    return tuple(sorted(rows, key=lambda row: (-row.delta, row.name)))


def _objective(record: SweepRecord) -> tuple[str, Mode]:
    return record.attrs["metric"], record.attrs["mode"]


def _control_row(record: SweepRecord, key: str, spread: Noise) -> Row | None:
    if record.control is None:
        return None
    scores = tuple(control_scores(record).values())
    return _scored(_reached(record.control, key), scores, spread)


def _row(
    trial: TrialRecord,
    final: Standing | None,
    control: Mapping[int, float],
    key: str,
    spread: Noise,
) -> Row:
    own = {} if trial.value is None else {trial.seed: trial.value}
    scores = final.scores if final else own
    row = _scored(_reached(trial, key), tuple(scores.values()), spread)
    row = replace(row, is_finalist=final is not None)
    if not scores or not control:
        return row
    common = scores.keys() & control.keys()
    ours = [scores[seed] for seed in common or scores]
    theirs = [control[seed] for seed in common or control]
    delta, limit = fmean(ours) - fmean(theirs), spread.threshold(len(ours), len(theirs))
    return replace(row, delta=delta, limit=limit, tied_with_control=abs(delta) <= limit)


def _reached(trial: TrialRecord, key: str) -> Row:
    last = trial.rungs[-1] if trial.rungs else None
    return Row(
        trial=trial,
        reached=last.fraction if last else 0.0,
        reached_score=last.metrics[key] if last else None,
    )


def _scored(row: Row, scores: Sequence[float], spread: Noise) -> Row:
    if not scores:
        return row
    mean, half = fmean(scores), spread.half_width(len(scores))
    return replace(row, score=mean, num_scores=len(scores), interval=(mean - half, mean + half))


def _ranked(rows: Sequence[Row], spread: Noise) -> tuple[Row, ...]:
    return tuple(
        replace(row, rank=rank, tied_with_best=rank > 1 and _are_tied(row, rows[0], spread))
        for rank, row in enumerate(rows, start=1)
    )


def _are_tied(row: Row, best: Row, spread: Noise) -> bool:
    """Whether the noise explains the difference of two finished trials."""
    if row.is_finalist == best.is_finalist or row.limit is None or best.limit is None:
        limit = spread.threshold(row.num_scores, best.num_scores)
        return abs(_known(row.score) - _known(best.score)) <= limit
    # They have other seeds: each is taken against the control with its own.
    return abs(_known(row.delta) - _known(best.delta)) <= math.hypot(row.limit, best.limit)


def _progress_order(row: Row, sign: float) -> tuple[float, float, int]:
    score = row.reached_score if row.reached_score is not None else -math.inf * sign
    return (-row.reached, -sign * score, row.trial.number)


def _known(score: float | None) -> float:
    assert score is not None
    return score


def _scores(trials: Iterable[TrialRecord], key: str) -> dict[float, dict[int, float]]:
    """Scores by rung and trial number."""
    scores: dict[float, dict[int, float]] = defaultdict(dict)
    for trial in trials:
        for rung in trial.rungs:
            scores[rung.fraction][trial.number] = rung.metrics[key]
    return scores


def _agreement(here: Mapping[int, float], trials: Iterable[TrialRecord]) -> float | None:
    """Spearman's correlation of scores at a rung and at the end."""
    ends = {t.number: t.value for t in trials if t.value is not None and t.number in here}
    if len(ends) < _MIN_TRIALS_FOR_RANKS or all(here[n] == end for n, end in ends.items()):
        return None  # Too few, or this rung is the end.
    first, last = _ranks([here[number] for number in ends]), _ranks(list(ends.values()))
    if len(set(first)) == 1 or len(set(last)) == 1:
        return None
    return correlation(first, last)


def _ranks(values: Sequence[float]) -> list[float]:
    """Places from 1; equal values share the mean of theirs."""
    places: dict[float, list[int]] = defaultdict(list)
    for place, value in enumerate(sorted(values), start=1):
        places[value].append(place)
    return [fmean(places[value]) for value in values]
