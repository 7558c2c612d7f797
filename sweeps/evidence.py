"""What a sweep knows so far, as observations for its Gaussian process. Pure.

Every score counts as what it is. A score of a searched trial belongs to its rung. A known point
belongs to a source of its own, with those that share its code and its fidelity: such a source
deviates from this sweep by an unknown constant and by an unknown function, so that it says where to
look first and is outweighed by the sweep's own scores, however far off it is.

Where a known point has the score of its own control, and this sweep's control has one, the point
counts by its gain: its score less its control's, plus this sweep's control's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from sweeps.gaussian_process import FULL, Data, LogNormal, Prior, Source
from sweeps.parameters import Choices
from sweeps.sections import KnownPoint
from sweeps.space import Space
from sweeps.spec import SweepSpec
from sweeps.trials import ParamValue, TrialRecord

Floats = NDArray[np.float64]
Point = Mapping[str, ParamValue]

# Priors, in units of an axis (lengths) and of the spread of full scores (all others).
LENGTHS = LogNormal(median=0.6, spread=0.5)
AMPLITUDE = LogNormal(median=1.0, spread=0.7)
DEVIATION = LogNormal(median=0.7, spread=0.7)
# Of points from elsewhere; same code and fidelity should not deviate, and may.
FOREIGN_DEVIATION = LogNormal(median=1.0, spread=0.7)
SAME_DEVIATION = LogNormal(median=0.2, spread=0.7)
UNKNOWN_OFFSET, REFERRED_OFFSET, SAME_OFFSET = 5.0, 1.0, 0.5
# A declared noise is nearly believed; one that is not is guessed from the spread.
DECLARED_NOISE_SPREAD, GUESSED_NOISE_SPREAD = 0.1, 0.7
GUESSED_NOISE, LEAST_NOISE = 0.3, 0.02
# With more observations than this, those that say least are left out.
MAX_OBSERVATIONS = 600
# So many full scores tell how far they spread, and equal ones spread by this share of their size.
MIN_FULL, LEAST_SHARE = 3, 1e-9


class Axes:
    """Points as features: a range's unit coordinate, a place for each choice.

    Any two choices of an axis are as far apart as the two ends of a range.
    """

    def __init__(self, space: Space) -> None:
        self._axes = dict(space.axes)
        widths = [
            len(axis.choices) if isinstance(axis, Choices) else 1 for axis in self._axes.values()
        ]
        self.groups = np.repeat(np.arange(len(widths)), widths)

    @property
    def num_groups(self) -> int:
        """How many axes there are."""
        return len(self._axes)

    def features(self, points: Sequence[Point]) -> Floats:
        """[M, D]."""
        columns: list[Floats] = []
        for name, axis in self._axes.items():
            values = [point[name] for point in points]
            if isinstance(axis, Choices):
                # `unit` is the middle of the choice's share of [0, 1].
                count = len(axis.choices)
                places = [int(axis.unit(value) * count) for value in values]
                columns.append(np.eye(count)[places].reshape(-1, count) / math.sqrt(2))
            else:
                columns.append(np.array([axis.unit(value) for value in values])[:, None])
        return np.concatenate(columns, axis=1)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One observation, higher is better.

    Attributes:
        noise: As a multiple of a full score's noise.
        is_own: Of this sweep.
    """

    point: Point
    source: int
    value: float
    noise: float = 1.0
    is_own: bool = True


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All observations, and what each source is.

    Attributes:
        noise: Declared standard deviation of a full score.
    """

    scores: tuple[Score, ...]
    sources: tuple[Source, ...]
    noise: float | None

    @property
    def level(self) -> float:
        """Where scores are counted from: the mean of the full ones, of all while there is none."""
        return fmean(self._full() or [score.value for score in self.scores])

    @property
    def scale(self) -> float:
        """The unit: how far the full scores spread, at least by the noise.

        While there are few, how far all scores spread around the mean of their source. Where these
        are equal, or alone, and no noise says more, how far all scores spread together.
        """
        full = self._full()
        spread = float(np.std(full)) if len(full) >= MIN_FULL else self._spread_by_source()
        spread = max(spread, self.noise or 0.0)
        least = LEAST_SHARE * max(1.0, abs(self.level))
        if spread > least:
            return spread
        return max(float(np.std([score.value for score in self.scores])), least)

    def prior(self) -> Prior:
        """What is assumed, in the scores' unit."""
        if self.noise is None:
            noise = LogNormal(median=GUESSED_NOISE, spread=GUESSED_NOISE_SPREAD)
        else:
            median = max(self.noise / self.scale, LEAST_NOISE)
            noise = LogNormal(median=median, spread=DECLARED_NOISE_SPREAD)
        return Prior(
            lengths=LENGTHS,
            deviation_lengths=LENGTHS,
            amplitude=AMPLITUDE,
            noise=noise,
            sources=self.sources,
        )

    def data(self, axes: Axes) -> Data:
        """The observations for the process."""
        kept = _most_telling(self.scores)
        return Data(
            points=axes.features([score.point for score in kept]),
            sources=np.array([score.source for score in kept]),
            values=np.array([(score.value - self.level) / self.scale for score in kept]),
            noises=np.array([score.noise for score in kept]),
            groups=axes.groups,
        )

    def _full(self) -> list[float]:
        return [score.value for score in self.scores if score.source == FULL]

    def _spread_by_source(self) -> float:
        by_source: dict[int, list[float]] = {}
        for score in self.scores:
            by_source.setdefault(score.source, []).append(score.value)
        away = [value - fmean(values) for values in by_source.values() for value in values]
        return float(np.std(away))


def gather(
    spec: SweepSpec, trials: Sequence[TrialRecord], controls: Sequence[TrialRecord]
) -> Evidence:
    """The observations of a sweep.

    Args:
        spec: The sweep.
        trials: Searched trials, and known points in the order of the spec.
        controls: Trainings with AQR off.
    """
    sign = 1.0 if spec.objective.mode == "max" else -1.0
    rungs = [
        Source(amplitude=DEVIATION, offset=UNKNOWN_OFFSET) for _ in spec.stopping.fidelities[:-1]
    ]
    known, foreign = _known_scores(spec, trials, controls, sign=sign, num_before=1 + len(rungs))
    own = [
        score
        for trial in trials
        if trial.role == "search"
        for score in _own_scores(spec, trial, sign)
    ]
    return Evidence(
        scores=(*own, *known),
        sources=(Source(amplitude=None, offset=0.0), *rungs, *foreign),
        noise=spec.objective.noise,
    )


def _own_scores(spec: SweepSpec, trial: TrialRecord, sign: float) -> list[Score]:
    """Its rungs; of a record without them, its result."""
    last = len(spec.stopping.fidelities) - 1
    if not trial.rungs and trial.outcome == "finished" and trial.told is not None:
        return [Score(point=trial.sampled, source=FULL, value=sign * trial.told)]
    return [
        Score(
            point=trial.sampled,
            source=FULL if place == last else 1 + place,
            value=sign * rung.metrics[spec.objective.key],
            noise=1 / math.sqrt(rung.val_share),
        )
        for place, rung in enumerate(trial.rungs)
    ]


def _known_scores(
    spec: SweepSpec,
    trials: Sequence[TrialRecord],
    controls: Sequence[TrialRecord],
    *,
    sign: float,
    num_before: int,
) -> tuple[list[Score], list[Source]]:
    """The known points, and a source for each kind of them."""
    finished = [control.value for control in controls if control.value is not None]
    own_control = fmean(finished) if finished else None
    kinds: dict[tuple[str, float, bool], int] = {}
    sources: list[Source] = []
    scores = []
    told = [trial for trial in trials if trial.role == "known"]
    for trial, point in zip(told, spec.known, strict=False):
        value, is_referred = _referred(point, own_control)
        kind = (point.provenance, point.share_of(spec.train.epochs), is_referred)
        if kind not in kinds:
            kinds[kind] = num_before + len(sources)
            sources.append(_foreign_source(*kind))
        scores.append(
            Score(point=trial.sampled, source=kinds[kind], value=sign * value, is_own=False)
        )
    return scores, sources


def _referred(point: KnownPoint, own_control: float | None) -> tuple[float, bool]:
    """A known point's score on this sweep's level, and whether it could be put there."""
    if point.control is None or own_control is None:
        return point.value, False
    return point.value - point.control + own_control, True


def _foreign_source(code: str, share: float, is_referred: bool) -> Source:
    if code == "same" and share == 1.0:
        return Source(amplitude=SAME_DEVIATION, offset=SAME_OFFSET)
    amplitude = DEVIATION if code == "same" else FOREIGN_DEVIATION
    return Source(amplitude=amplitude, offset=REFERRED_OFFSET if is_referred else UNKNOWN_OFFSET)


def _most_telling(scores: Sequence[Score]) -> list[Score]:
    """All of them, or so many that the process stays fast.

    The early scores of trials that have a full one go first, then the oldest.
    """
    if len(scores) <= MAX_OBSERVATIONS:
        return list(scores)
    full = {id(score.point) for score in scores if score.source == FULL}
    kept = [s for s in scores if s.source == FULL or id(s.point) not in full]
    return kept[-MAX_OBSERVATIONS:]
