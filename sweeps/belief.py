"""What the trials so far say about a point: its full score, and whether it ends well. Pure.

`expected_scores` reads it for trials: the score that a trial may be expected to show again. One
noisy score of many is the highest partly by luck; the expectation has that luck taken out as far as
the other scores tell.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from sweeps.evidence import Axes, Evidence, gather
from sweeps.gaussian_process import (
    Data,
    GaussianProcess,
    LogNormal,
    Prior,
    Settings,
    Source,
    fit,
    prior_settings,
    some_of,
)
from sweeps.space import Space
from sweeps.spec import SweepSpec
from sweeps.trials import ParamValue, TrialRecord

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Point = Mapping[str, ParamValue]

HEALTH_PREFIX = "health: "
# The parameters are fitted on so many observations at most, and anew only when there are so many
# times as many as before.
MAX_FITTED, GROWTH = 250, 1.05
# What is assumed of endings before any: 0 is well, 1 is wrong, and between them lies the middle.
ENDINGS = Prior(
    lengths=LogNormal(median=0.4, spread=0.7),
    deviation_lengths=LogNormal(median=0.4, spread=0.7),
    amplitude=LogNormal(median=0.5, spread=0.5),
    noise=LogNormal(median=0.1, spread=0.5),
    sources=(Source(amplitude=None, offset=0.0),),
    level=0.0,
)
MIDDLE, LEAST = 0.5, 1e-6


def is_infeasible(trial: TrialRecord) -> bool:
    """Whether a trial ended in a way that speaks against its region: it went wrong."""
    if trial.outcome in ("diverged", "failed"):
        return True
    return trial.outcome == "stopped" and trial.reason.startswith(HEALTH_PREFIX)


class Fitter:
    """Fits the process's parameters, beginning where the last fit ended."""

    def __init__(self) -> None:
        self._last: Settings | None = None
        self._num_fitted, self._num_sources = 0, 0

    def fit(self, evidence: Evidence, axes: Axes) -> GaussianProcess:
        """The process of some evidence, which is not empty."""
        data, prior = evidence.data(axes), evidence.prior()
        middle = prior_settings(prior, axes.num_groups)
        if self._num_sources != len(prior.sources):
            self._last = None
        if self._last is None or len(data) >= GROWTH * self._num_fitted:
            starts = [middle] if self._last is None else [self._last, middle]
            self._last = fit(_fitted(data), prior, starts)
            self._num_fitted, self._num_sources = len(data), len(prior.sources)
        return GaussianProcess(data, prior, self._last)


def _fitted(data: Data) -> Data:
    """The observations that parameters are fitted on: the newest."""
    return some_of(data, np.arange(len(data))[-MAX_FITTED:])


class Soundness:
    """How likely training at a point ends well, from how it ended elsewhere.

    A process of its own through the endings, 0 for a trial that ended well and 1 for one that went
    wrong; far from all trials it falls back to 0. Which axes matter is fitted.

    Source: Rasmussen and Williams (see `sweeps.gaussian_process`), section 6.5: classes as numbers.

    Args:
        points: Features of ended trials. [N, D]
        is_wrong: Which of them went wrong. [N]
        groups: The axis that each feature belongs to. [D]
    """

    def __init__(self, points: Floats, is_wrong: Sequence[bool], groups: Ints) -> None:
        self._process: GaussianProcess | None = None
        if any(is_wrong):
            count = len(points)
            data = Data(
                points=points,
                sources=np.zeros(count, dtype=np.int64),
                values=np.array(is_wrong, dtype=float),
                noises=np.ones(count),
                groups=groups,
            )
            data = _fitted(data)
            middle = prior_settings(ENDINGS, int(groups.max()) + 1)
            self._process = GaussianProcess(data, ENDINGS, fit(data, ENDINGS, [middle]))

    def probability(self, points: Floats) -> Floats:
        """[M, D] -> [M]."""
        if self._process is None:
            return np.ones(len(points))
        mean, deviation = self._process.predict(points)
        return cast(Floats, np.maximum(ndtr((MIDDLE - mean) / deviation), LEAST))


def soundness(axes: Axes, trials: Sequence[TrialRecord]) -> Soundness:
    """How likely trainings end well, from the searched trials that have ended."""
    ended = [t for t in trials if t.role == "search" and t.outcome is not None]
    points = axes.features([trial.sampled for trial in ended])
    return Soundness(points, [is_infeasible(trial) for trial in ended], axes.groups)


def expected_scores(
    spec: SweepSpec,
    space: Space,
    trials: Sequence[TrialRecord],
    controls: Sequence[TrialRecord],
) -> Mapping[int, float]:
    """The score that each finished trial may be expected to show again, by number.

    The same records give the same numbers, whoever asks and how often.
    """
    finished = [t for t in trials if t.role == "search" and t.outcome == "finished"]
    if not finished:
        return {}
    axes, evidence = Axes(space), gather(spec, trials, controls)
    process = Fitter().fit(evidence, axes)
    mean, _ = process.predict(axes.features([trial.sampled for trial in finished]))
    sign = 1.0 if spec.objective.mode == "max" else -1.0
    values = sign * (evidence.level + evidence.scale * mean)
    return {trial.number: float(v) for trial, v in zip(finished, values, strict=True)}
