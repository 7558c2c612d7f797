"""A Gaussian process of scores from several sources at once: rungs, and points from elsewhere.

A score of source s at x is ``f(x) + c + d_s(x) + o_s + noise``. f is the score after the whole
training, c its level; d_s is by how much source s deviates, a function of x of its own, and o_s the
constant part of that. Source 0 is the full budget, which deviates by nothing. So a score of any
source says something about f, as much as the data show that source to be worth.

N observations, D features, S sources, G groups of features (one for each axis of the space).

Source: M. C. Kennedy and A. O'Hagan, "Predicting the output from a complex computer code when fast
approximations are available", Biometrika 87(1), 2000 (here with independent deviations and
without scaling); kernel and gradients: C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes
for Machine Learning", MIT Press 2006, sections 2.3, 4.2 and 5.4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FULL = 0
JITTER = 1e-8
MAX_STEPS = 60


@dataclass(frozen=True, kw_only=True)
class Data:
    """What was observed, in units in which full scores spread by about 1.

    Attributes:
        points: Features. [N, D]
        sources: Where each score is from. [N]
        values: The scores. [N]
        noises: Standard deviation of each score's noise, as a multiple of that of a full one. [N]
        groups: The axis that each feature belongs to. [D]
    """

    points: Floats
    sources: Ints
    values: Floats
    noises: Floats
    groups: Ints

    def __post_init__(self) -> None:
        count, width = self.points.shape
        for name, length in (("sources", count), ("values", count), ("noises", count)):
            assert getattr(self, name).shape == (length,), f"{name} must be [N]"
        assert self.groups.shape == (width,), "groups must be [D]"

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, kw_only=True)
class LogNormal:
    """A prior of a positive number: normal in its logarithm."""

    median: float
    spread: float

    def cost(self, log: Floats) -> tuple[float, Floats]:
        """The negative log density but for a constant, and its gradient, in the logarithm."""
        away = (log - math.log(self.median)) / self.spread
        return float(0.5 * np.sum(away**2)), away / self.spread


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is assumed of a source's deviation before any data.

    Attributes:
        amplitude: Of d_s; None: it deviates by nothing but a constant.
        offset: Standard deviation of o_s.
    """

    amplitude: LogNormal | None
    offset: float


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is assumed before any data.

    Attributes:
        lengths: Length scales of f.
        deviation_lengths: Those of the deviations.
        amplitude: Of f.
        noise: Of a full score.
        sources: All sources; the first is the full budget.
        level: Standard deviation of c, by default as good as unknown.
    """

    lengths: LogNormal
    deviation_lengths: LogNormal
    amplitude: LogNormal
    noise: LogNormal
    sources: tuple[Source, ...]
    level: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The process's parameters, as logarithms.

    Attributes:
        lengths: Length scales of f. [G]
        deviation_lengths: Those of all deviations. [G]
        amplitude: Of f.
        noise: Standard deviation of a full score's noise.
        amplitudes: Of the deviations; the first is not used. [S]
    """

    lengths: Floats
    deviation_lengths: Floats
    amplitude: float
    noise: float
    amplitudes: Floats

    def pack(self) -> Floats:
        """All of them in a row."""
        scalars = np.array([self.amplitude, self.noise])
        return np.concatenate([self.lengths, self.deviation_lengths, scalars, self.amplitudes])

    @staticmethod
    def unpack(row: Floats, num_groups: int) -> "Settings":
        """Undo `pack`."""
        g = num_groups
        return Settings(
            lengths=row[:g],
            deviation_lengths=row[g : 2 * g],
            amplitude=float(row[2 * g]),
            noise=float(row[2 * g + 1]),
            amplitudes=row[2 * g + 2 :],
        )


def prior_settings(prior: Prior, num_groups: int) -> Settings:
    """The medians of the prior."""
    medians = [source.amplitude.median if source.amplitude else 1.0 for source in prior.sources]
    return Settings(
        lengths=np.full(num_groups, math.log(prior.lengths.median)),
        deviation_lengths=np.full(num_groups, math.log(prior.deviation_lengths.median)),
        amplitude=math.log(prior.amplitude.median),
        noise=math.log(prior.noise.median),
        amplitudes=np.log(medians),
    )


class GaussianProcess:
    """The process given data and parameters.

    Args:
        data: Observations.
        prior: Says which sources there are, and their offsets.
        settings: Its parameters.

    Raises:
        numpy.linalg.LinAlgError: If the covariance is not positive definite.
    """

    def __init__(self, data: Data, prior: Prior, settings: Settings) -> None:
        self.data, self.prior, self.settings = data, prior, settings
        covariance = _Covariance(data, prior, settings)
        self._factor = cast(tuple[Floats, bool], cho_factor(covariance.total, lower=True))
        self._weights = cast(Floats, cho_solve(self._factor, data.values))

    def predict(self, points: Floats) -> tuple[Floats, Floats]:
        """The score after the whole training, without noise.

        Args:
            points: Features. [M, D]

        Returns:
            mean: [M]
            deviation: Standard deviation of what is not known. [M]
        """
        lengths = np.exp(self.settings.lengths)[self.data.groups]
        amplitude = math.exp(2 * self.settings.amplitude)
        level = self.prior.level**2
        cross = level + amplitude * _correlation(_squares(points, self.data.points, lengths))
        mean = cross @ self._weights
        # A row of the inverse factor for each observation.
        solved = solve_triangular(self._factor[0], cross.T, lower=True, check_finite=False)
        variance = level + amplitude - np.einsum("nm,nm->m", solved, solved)
        return mean, np.sqrt(np.maximum(variance, JITTER))

    def believe(self, points: Floats) -> "GaussianProcess":
        """The process as if full scores at some points came out as it expects them. [M, D]."""
        mean, _ = self.predict(points)
        data = Data(
            points=np.concatenate([self.data.points, points]),
            sources=np.concatenate([self.data.sources, np.full(len(points), FULL)]),
            values=np.concatenate([self.data.values, mean]),
            noises=np.concatenate([self.data.noises, np.ones(len(points))]),
            groups=self.data.groups,
        )
        return GaussianProcess(data, self.prior, self.settings)


def fit(data: Data, prior: Prior, starts: Sequence[Settings]) -> Settings:
    """The most probable parameters, from the best of some starts."""
    num_groups = int(data.groups.max()) + 1

    def cost(row: Floats) -> tuple[float, Floats]:
        return _cost(data, prior, Settings.unpack(row, num_groups))

    middle = prior_settings(prior, num_groups).pack()
    bounds = [(value - 4.0, value + 4.0) for value in middle]
    best_value, best = math.inf, starts[0]
    for start in starts:
        found = cast(
            Any,
            minimize(
                cost,
                start.pack(),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": MAX_STEPS, "ftol": 1e-5},
            ),
        )
        if found.fun < best_value:
            best_value, best = float(found.fun), Settings.unpack(found.x, num_groups)
    return best


def some_of(data: Data, rows: Ints) -> Data:
    """Some of the observations."""
    return replace(
        data,
        points=data.points[rows],
        sources=data.sources[rows],
        values=data.values[rows],
        noises=data.noises[rows],
    )


class _Covariance:
    """The covariance of the observations, in its parts."""

    def __init__(self, data: Data, prior: Prior, settings: Settings) -> None:
        self.data = data
        self.lengths = np.exp(settings.lengths)[data.groups]
        self.deviation_lengths = np.exp(settings.deviation_lengths)[data.groups]
        squares = _squares(data.points, data.points, self.lengths)
        self.amplitude = math.exp(2 * settings.amplitude)
        self.squares = squares
        self.function = self.amplitude * _correlation(squares)
        deviates = np.array([source.amplitude is not None for source in prior.sources])
        deviates[FULL] = False
        variances = np.where(deviates, np.exp(2 * settings.amplitudes), 0.0)[data.sources]
        self.is_same = data.sources[:, None] == data.sources[None, :]
        self.deviation_squares = _squares(data.points, data.points, self.deviation_lengths)
        self.masked = np.where(self.is_same, variances[:, None], 0.0)
        self.deviation = self.masked * _correlation(self.deviation_squares)
        offsets = np.array([source.offset**2 for source in prior.sources])
        offsets[FULL] = 0.0
        constant = prior.level**2 + np.where(self.is_same, offsets[data.sources][:, None], 0.0)
        self.noise = math.exp(2 * settings.noise) * data.noises**2
        self.total = self.function + self.deviation + constant
        self.total[np.diag_indices(len(data))] += self.noise + JITTER


def _cost(data: Data, prior: Prior, settings: Settings) -> tuple[float, Floats]:
    """The negative log posterior of the parameters but for a constant, and its gradient."""
    covariance = _Covariance(data, prior, settings)
    value, gradient = _prior_cost(prior, settings)
    try:
        factor = cast(tuple[Floats, bool], cho_factor(covariance.total, lower=True))
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(gradient)
    weights = cast(Floats, cho_solve(factor, data.values))
    value += 0.5 * float(data.values @ weights) + float(np.log(np.diag(factor[0])).sum())
    # Half of the derivative by the covariance.
    slope = 0.5 * (cast(Floats, cho_solve(factor, np.eye(len(data)))) - np.outer(weights, weights))
    num_groups = len(settings.lengths)
    by_length = slope * covariance.amplitude * _correlation(covariance.squares)
    by_deviation = slope * covariance.masked * _correlation(covariance.deviation_squares)
    of_amplitudes = np.bincount(
        data.sources,
        weights=2 * np.einsum("nm,nm->n", slope, covariance.deviation),
        minlength=len(prior.sources),
    )
    of_noise = 2 * float(np.diag(slope) @ covariance.noise)
    gradient += np.concatenate(
        [
            _by_groups(by_length, data, covariance.lengths, num_groups),
            _by_groups(by_deviation, data, covariance.deviation_lengths, num_groups),
            [2 * float(np.sum(slope * covariance.function)), of_noise],
            of_amplitudes,
        ]
    )
    return value, gradient


def _prior_cost(prior: Prior, settings: Settings) -> tuple[float, Floats]:
    parts = [
        prior.lengths.cost(settings.lengths),
        prior.deviation_lengths.cost(settings.deviation_lengths),
        prior.amplitude.cost(np.array([settings.amplitude])),
        prior.noise.cost(np.array([settings.noise])),
    ]
    for place, source in enumerate(prior.sources):
        log = settings.amplitudes[place : place + 1]
        # What is not used is held where it is.
        unused = (float(0.5 * np.sum(log**2)), log)
        is_used = place != FULL and source.amplitude is not None
        parts.append(cast(LogNormal, source.amplitude).cost(log) if is_used else unused)
    return sum(value for value, _ in parts), np.concatenate([slope for _, slope in parts])


def _by_groups(slope: Floats, data: Data, lengths: Floats, num_groups: int) -> Floats:
    """Sum a symmetric [N, N] times each feature's squared distances, for each group. [G]."""
    scaled = data.points / lengths
    sums = slope.sum(axis=1)
    by_feature = 2 * (sums @ scaled**2 - np.einsum("nd,nd->d", scaled, slope @ scaled))
    return cast(Floats, np.bincount(data.groups, weights=by_feature, minlength=num_groups))


def _squares(first: Floats, second: Floats, lengths: Floats) -> Floats:
    """Squared distances in units of the length scales. [N, D], [M, D] -> [N, M]."""
    a, b = first / lengths, second / lengths
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.maximum(squares, 0.0)


def _correlation(squares: Floats) -> Floats:
    """Of values at points that lie so far apart; also its slope.

    The slope by the logarithm of a length scale is this times that feature's squared distance.
    """
    return np.exp(-squares / 2)
