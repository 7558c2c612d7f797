"""What the record of a sweep says: leaderboard, noise, rungs, costs, importance. Pure.

A result is a full-budget value and nothing else; stopped trials appear with the rung they reached,
known points never as results. Two values are told apart only where they differ by more than the
noise of a difference allows.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, correlation, fmean, median, variance
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState, create_trial

from sweeps.record import SweepRecord, TrialRecord

Mode = Literal["max", "min"]

# Two standard deviations of the difference of two values that each carry the noise once.
TIE_FACTOR = 2 * math.sqrt(2)
# PED-ANOVA compares the best quarter with all; it needs some five trials in it to say anything.
IMPORTANCE_QUANTILE = 0.25
IMPORTANCE_MIN_TRIALS = 20
_MIN_TRIALS_FOR_RANKS = 4
_CLASS_AP = "val/ap/"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial's line.

    Attributes:
        rank: Place among the finished trials, from 1; None for all others.
        score: The objective at full budget and validation; None for all but finished trials.
        delta: Score minus the control's score; None without either.
        tied_with_control: The delta is within the noise.
        tied_with_best: The difference to the best finished trial is within the noise.
        reached: Share of the budget at the last rung; 0 before the first.
        reached_score: The objective at that rung, comparable within the rung only.
    """

    trial: TrialRecord
    rank: int | None = None
    score: float | None = None
    delta: float | None = None
    tied_with_control: bool = False
    tied_with_best: bool = False
    reached: float = 0.0
    reached_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """All trials of a sweep in order of what is known about them.

    Attributes:
        finished: Best first.
        stopped: Stopped early: furthest first, then by the score at that rung.
        ended: Diverged or failed, by number.
        running: Running, or waiting for a resume.
        control: The control's line, also while it runs.
        known: Points the sweep was told and did not train.
        noise: Standard deviation of one score, as declared.
        threshold: Differences up to here are ties.
    """

    metric: str
    mode: Mode
    noise: float
    threshold: float
    finished: tuple[Row, ...]
    stopped: tuple[Row, ...]
    ended: tuple[Row, ...]
    running: tuple[Row, ...]
    control: Row | None
    known: tuple[TrialRecord, ...]

    @property
    def best(self) -> Row | None:
        """The best finished trial, the control aside."""
        return self.finished[0] if self.finished else None


def leaderboard(record: SweepRecord, noise: float | None = None) -> Leaderboard:
    """Order the trials and mark ties.

    Args:
        record: The sweep.
        noise: Standard deviation of one score; None for what the spec declares.
    """
    key, mode = _objective(record)
    spread: float = record.attrs["noise"] if noise is None else noise
    threshold = tie_threshold(spread)
    sign = 1.0 if mode == "max" else -1.0
    rows = [_row(trial, record.control, key, threshold) for trial in record.searched]
    by_outcome: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        by_outcome[row.trial.outcome].append(row)
    scored = [row for row in by_outcome["finished"] if row.score is not None]
    scored.sort(key=lambda row: (-sign * _known(row.score), row.trial.number))
    return Leaderboard(
        metric=metric_name(key),
        mode=mode,
        noise=spread,
        threshold=threshold,
        finished=_ranked(scored, threshold),
        stopped=tuple(sorted(by_outcome["stopped"], key=lambda row: _progress_order(row, sign))),
        ended=tuple(row for row in rows if row.trial.outcome in ("diverged", "failed")),
        running=tuple(by_outcome[None]),
        control=_row(record.control, None, key, threshold) if record.control else None,
        known=tuple(trial for trial in record.trials if trial.role == "known"),
    )


def metric_name(key: str) -> str:
    """How people write the metric of a key: `NDS` for `val/nds`, `mAP` for `val/map`."""
    name = key.rsplit("/", 1)[-1]
    return f"m{name[1:].upper()}" if name.startswith("m") else name.upper()


def tie_threshold(noise: float) -> float:
    """Largest difference of two scores that counts as a tie, for this noise of one score."""
    return TIE_FACTOR * noise


def selection_gain(num_trials: int, noise: float) -> float:
    """By how much the best of equal trials is expected to lie above their mean, from noise alone.

    Blom's approximation of the largest of `num_trials` normal values.
    """
    if num_trials < 2:
        return 0.0
    return noise * NormalDist().inv_cdf((num_trials - 0.375) / (num_trials + 0.25))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A measured noise: standard deviation of one score, and the repeats behind it."""

    deviation: float
    degrees_of_freedom: int


def pooled_noise(groups: Iterable[Sequence[float]]) -> Noise | None:
    """Noise from scores of equal trials, one group for each set of parameters.

    Returns:
        None if no group has two scores.
    """
    repeated = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in repeated)
    if freedom == 0:
        return None
    squares = sum(variance(group) * (len(group) - 1) for group in repeated)
    return Noise(deviation=math.sqrt(squares / freedom), degrees_of_freedom=freedom)


def measured_noise(record: SweepRecord) -> Noise | None:
    """Noise from the finished trials that differ in nothing but their seed."""
    groups: dict[tuple, list[float]] = defaultdict(list)
    for trial in record.started:
        if trial.value is not None:
            same = tuple(sorted((k, v) for k, v in trial.params.items() if k != "seed"))
            groups[same].append(trial.value)
    return pooled_noise(groups.values())


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
        control: Spent on the control.
        saved: What stopped trials did not spend: the median of the finished ones less their own.
    """

    unit: Literal["GPU-hours", "hours"]
    searched: float
    control: float
    saved: float

    @property
    def total(self) -> float:
        """All that was spent."""
        return self.searched + self.control


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
        control=hours(record.control) if record.control else 0.0,
        saved=saved,
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
        ClassDifference(name=key.removeprefix(_CLASS_AP), ap=value, control_ap=theirs[key])
        for key, value in ours.items()
        if key.startswith(_CLASS_AP) and key in theirs
    ]
    return tuple(sorted(rows, key=lambda row: (-row.delta, row.name)))


def importance(
    record: SweepRecord,
    distributions: Mapping[str, BaseDistribution],
    *,
    min_trials: int = IMPORTANCE_MIN_TRIALS,
) -> dict[str, float] | None:
    """Share of each searched axis in reaching the best quarter of the trials (PED-ANOVA).

    Stopped trials count with their imputed values: only the order matters here, and leaving them
    out would hide what the bad half has in common.

    Returns:
        Axis to share, largest first, adding up to 1; None with too few trials, or if the best
        quarter does not differ from the rest.
    """
    told = [t for t in record.searched if t.told is not None and set(t.sampled) == {*distributions}]
    mode = _objective(record)[1]
    if len(told) < min_trials or not _has_best_quarter([_known(t.told) for t in told], mode):
        return None
    trials = [
        create_trial(
            state=TrialState.COMPLETE,
            value=trial.told,
            params=dict(trial.sampled),
            distributions=dict(distributions),
        )
        for trial in told
    ]
    shares = _ped_anova(trials, mode)
    total = sum(shares.values())
    if total <= 0:
        return None
    order = sorted(shares, key=lambda name: (-shares[name], name))
    return {name: shares[name] / total for name in order}


def _has_best_quarter(values: Sequence[float], mode: Mode) -> bool:
    """Whether the best quarter, with what ties with its last, leaves anybody out."""
    ordered = sorted(values, reverse=mode == "max")
    return ordered[math.ceil(IMPORTANCE_QUANTILE * len(ordered)) - 1] != ordered[-1]


def _ped_anova(trials: list[optuna.trial.FrozenTrial], mode: Mode) -> dict[str, float]:
    logger = logging.getLogger("optuna.storages._in_memory")
    level = logger.level
    logger.setLevel(logging.WARNING)  # The study below is a container; announcing it misleads.
    try:
        study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    finally:
        logger.setLevel(level)
    study.add_trials(trials)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=IMPORTANCE_QUANTILE)
    return dict(evaluator.evaluate(study))


def _objective(record: SweepRecord) -> tuple[str, Mode]:
    return record.attrs["metric"], record.attrs["mode"]


def _row(trial: TrialRecord, control: TrialRecord | None, key: str, threshold: float) -> Row:
    reference = control.value if control is not None else None
    delta = None
    if trial.value is not None and reference is not None:
        delta = trial.value - reference
    last = trial.rungs[-1] if trial.rungs else None
    return Row(
        trial=trial,
        score=trial.value,
        delta=delta,
        tied_with_control=delta is not None and abs(delta) <= threshold,
        reached=last.fraction if last else 0.0,
        reached_score=last.metrics[key] if last else None,
    )


def _ranked(rows: Sequence[Row], threshold: float) -> tuple[Row, ...]:
    if not rows:
        return ()
    best = _known(rows[0].score)
    return tuple(
        Row(
            **{
                **vars(row),
                "rank": rank,
                "tied_with_best": rank > 1 and abs(_known(row.score) - best) <= threshold,
            }
        )
        for rank, row in enumerate(rows, start=1)
    )


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
