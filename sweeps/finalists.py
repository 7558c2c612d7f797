"""The finals: which trials are trained again with which seeds, and what their scores say. Pure.

The best trials of a search were chosen for high scores, part of which is luck. So each is trained
again with new seeds, and those scores alone count: the one that had it chosen is left out. The
control gets the same seeds, but it was not chosen, so that all of its scores count.

Repeats go seed by seed through the control and the finalists: a budget that ends the finals early
leaves every finalist with about as many scores.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from sweeps.noise import Noise, shrunk_noise
from sweeps.trials import SweepRecord, TrialRecord

Mode = Literal["max", "min"]
MAX_SEED = 2**32


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """One training of the finals.

    Attributes:
        of: The finalist's trial number; None for the control.
        seed: Its new seed.
    """

    of: int | None
    seed: int


def new_seeds(seed: int, count: int) -> tuple[int, ...]:
    """The seeds after the one that all trials of the search share."""
    return tuple((seed + i) % MAX_SEED for i in range(1, count + 1))


def best_trials(
    trials: Sequence[TrialRecord],
    top: int,
    mode: Mode,
    expected: Mapping[int, float] | None = None,
) -> tuple[TrialRecord, ...]:
    """The searched trials with the best full-budget values, best first; equal ones by number.

    Args:
        trials: All of the sweep.
        top: How many.
        mode: Whether more is better.
        expected: What counts in place of a trial's one score, by number: the score that the
            sampler's model expects it to show again.

    What is expected may move with the control's repeats, so a trial whose own repeats have begun
    stays among the best.
    """
    sign = -1.0 if mode == "max" else 1.0
    begun = {t.repeats for t in trials if t.role == "finalist"} if expected else set()
    finished = [t for t in trials if t.role == "search" and t.value is not None]

    def place(trial: TrialRecord) -> tuple[bool, float, int]:
        assert trial.value is not None, "it is finished"
        value = trial.value if expected is None else expected[trial.number]
        return trial.number not in begun, sign * value, trial.number

    return tuple(sorted(finished, key=place)[:top])


def planned_repeats(
    finalists: Sequence[TrialRecord], seeds: Sequence[int], *, with_control: bool
) -> tuple[Repeat, ...]:
    """All trainings of the finals, in order."""
    numbers = [*([None] if with_control else []), *[trial.number for trial in finalists]]
    if not finalists:
        return ()
    return tuple(Repeat(of=number, seed=seed) for seed in seeds for number in numbers)


def repeats_left(planned: Sequence[Repeat], trials: Sequence[TrialRecord]) -> tuple[Repeat, ...]:
    """Those that are in no record yet, whatever became of those that are."""
    begun = {
        Repeat(of=trial.repeats if trial.role == "finalist" else None, seed=trial.seed)
        for trial in trials
        if trial.role in ("control", "finalist")
    }
    return tuple(repeat for repeat in planned if repeat not in begun)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the finals say about one trial.

    Attributes:
        number: The trial's.
        scores: With new seeds, by seed.
    """

    number: int
    scores: Mapping[int, float]

    @property
    def values(self) -> tuple[float, ...]:
        """The scores alone."""
        return tuple(self.scores.values())

    @property
    def mean(self) -> float:
        """What it is ranked by."""
        return fmean(self.values)


def standings(record: SweepRecord) -> Mapping[int, Standing]:
    """The finalists that have a score with a new seed, by trial number."""
    scores: dict[int, dict[int, float]] = defaultdict(dict)
    for trial in record.finalists:
        if trial.value is not None and trial.repeats is not None:
            scores[trial.repeats][trial.seed] = trial.value
    return {number: Standing(number=number, scores=by_seed) for number, by_seed in scores.items()}


def control_scores(record: SweepRecord) -> Mapping[int, float]:
    """The control's full-budget scores, by seed."""
    return {trial.seed: trial.value for trial in record.controls if trial.value is not None}


def sweep_noise(record: SweepRecord) -> Noise:
    """The noise of one score: what the spec declares, else what the repeats show.

    The score that had a finalist chosen is no repeat: it was chosen for being high.
    """
    declared: float | None = record.attrs["noise"]
    if declared is not None:
        return Noise(deviation=declared)
    finals = [standing.values for standing in standings(record).values()]
    return shrunk_noise([tuple(control_scores(record).values()), *finals])


def noise_for_stopping(
    declared: float | None, controls: Sequence[TrialRecord], num_planned: int
) -> float | None:
    """The noise that early stopping may rely on; None until it is known.

    Args:
        declared: By the spec; it wins.
        controls: The control's trials so far.
        num_planned: How many of them measure the noise; all of them must have ended, so that the
            margin does not move while trials are judged, and two of them with a score.
    """
    if declared is not None:
        return declared
    measuring = controls[:num_planned]
    scores = [trial.value for trial in measuring if trial.value is not None]
    num_ended = sum(trial.outcome is not None for trial in measuring)
    if num_ended < num_planned or len(scores) < 2:
        return None
    return shrunk_noise([scores]).deviation
