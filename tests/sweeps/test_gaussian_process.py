"""The process against slow twins: gradients by differences, the posterior by its definition."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.gaussian_process import (
    JITTER,
    Data,
    GaussianProcess,
    LogNormal,
    Prior,
    Settings,
    Source,
    _cost,
    fit,
    prior_settings,
    some_of,
)

ABOUT_HALF = LogNormal(median=0.5, spread=0.6)
PRIOR = Prior(
    lengths=ABOUT_HALF,
    deviation_lengths=ABOUT_HALF,
    amplitude=LogNormal(median=1.0, spread=0.7),
    noise=LogNormal(median=0.2, spread=0.3),
    sources=(
        Source(amplitude=None, offset=0.0),
        Source(amplitude=ABOUT_HALF, offset=5.0),
        Source(amplitude=None, offset=1.0),
    ),
)


def draw(seed: int, count: int = 25) -> Data:
    rng = np.random.default_rng(seed)
    return Data(
        points=rng.random((count, 4)),
        sources=rng.integers(0, 3, count),
        values=rng.normal(size=count),
        noises=1 + rng.random(count),
        groups=np.array([0, 1, 1, 2]),
    )


def draw_settings(seed: int) -> Settings:
    middle = prior_settings(PRIOR, 3).pack()
    return Settings.unpack(middle + 0.4 * np.random.default_rng(seed).normal(size=len(middle)), 3)


def covariance(s: Settings, a: np.ndarray, b: np.ndarray, first: int, second: int) -> float:
    """Of two scores without noise, by the definition of the model."""
    group = [0, 1, 1, 2]
    near = [
        math.exp(-0.5 * sum(((a[d] - b[d]) / math.exp(each[group[d]])) ** 2 for d in range(4)))
        for each in (s.lengths, s.deviation_lengths)
    ]
    total = PRIOR.level**2 + math.exp(2 * s.amplitude) * near[0]
    if first == second and first > 0:
        total += PRIOR.sources[first].offset ** 2
        if PRIOR.sources[first].amplitude is not None:
            total += math.exp(2 * s.amplitudes[first]) * near[1]
    return total


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_posterior_is_that_of_the_definition(seed: int) -> None:
    data, s = draw(seed, 12), draw_settings(seed)
    matrix = np.array(
        [
            [covariance(s, a, b, i, j) for b, j in zip(data.points, data.sources, strict=True)]
            for a, i in zip(data.points, data.sources, strict=True)
        ]
    )
    matrix += np.diag((math.exp(s.noise) * data.noises) ** 2 + JITTER)
    new = np.random.default_rng(seed + 1).random((5, 4))
    mean, deviation = GaussianProcess(data, PRIOR, s).predict(new)
    for place, x in enumerate(new):
        row = np.array(
            [covariance(s, x, b, 0, j) for b, j in zip(data.points, data.sources, strict=True)]
        )
        solved = np.linalg.solve(matrix, row)
        assert mean[place] == pytest.approx(solved @ data.values, abs=1e-6)
        variance = covariance(s, x, x, 0, 0) - solved @ row
        assert deviation[place] ** 2 == pytest.approx(variance, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_gradient_is_that_of_differences(seed: int) -> None:
    data, s = draw(seed), draw_settings(seed)
    row, step = s.pack(), 1e-5
    _, gradient = _cost(data, PRIOR, s)
    for place in range(len(row)):
        move = np.zeros_like(row)
        move[place] = step
        above, _ = _cost(data, PRIOR, Settings.unpack(row + move, 3))
        below, _ = _cost(data, PRIOR, Settings.unpack(row - move, 3))
        assert gradient[place] == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-4)


def made(count: int, *, noise: float, seed: int = 0, source: int = 0, offset: float = 0.0) -> Data:
    """Scores of a bowl in the first two features; the other two do nothing."""
    rng = np.random.default_rng(seed)
    points = rng.random((count, 4))
    values = -4 * ((points[:, 0] - 0.4) ** 2 + (points[:, 1] - 0.6) ** 2) + offset
    return Data(
        points=points,
        sources=np.full(count, source),
        values=values + noise * rng.normal(size=count),
        noises=np.ones(count),
        groups=np.arange(4),
    )


def joined(first: Data, second: Data) -> Data:
    return replace(
        first,
        points=np.concatenate([first.points, second.points]),
        sources=np.concatenate([first.sources, second.sources]),
        values=np.concatenate([first.values, second.values]),
        noises=np.concatenate([first.noises, second.noises]),
    )


def error(data: Data) -> float:
    """How far off the expected bowl is, but for its level."""
    process = GaussianProcess(data, PRIOR, fit(data, PRIOR, [prior_settings(PRIOR, 4)]))
    new = made(200, noise=0.0, seed=99)
    mean, _ = process.predict(new.points)
    away = mean - new.values
    return float(np.std(away))


def test_the_fit_finds_noise_and_what_does_not_matter() -> None:
    data = made(80, noise=0.3)
    found = fit(data, PRIOR, [prior_settings(PRIOR, 4)])
    assert 0.22 < math.exp(found.noise) < 0.4
    assert max(found.lengths[:2]) < min(found.lengths[2:])


def test_early_scores_tell_about_full_ones_whatever_their_level() -> None:
    few = made(8, noise=0.05)
    early = made(40, noise=0.05, seed=1, source=1, offset=-3.0)
    assert error(joined(few, early)) < 0.5 * error(few)


def test_early_scores_that_tell_nothing_do_little_harm() -> None:
    full = made(40, noise=0.05)
    rng = np.random.default_rng(2)
    nonsense = replace(made(40, noise=0.0, seed=3, source=1), values=rng.normal(size=40))
    assert error(joined(full, nonsense)) < 1.5 * error(full)


def test_what_is_believed_changes_no_expectation_and_narrows_it() -> None:
    data = made(10, noise=0.05)
    process = GaussianProcess(data, PRIOR, prior_settings(PRIOR, 4))
    point = np.full((1, 4), 0.9)
    mean, deviation = process.predict(point)
    after, narrower = process.believe(point).predict(point)
    assert after[0] == pytest.approx(mean[0], abs=1e-6)
    assert narrower[0] < 0.5 * deviation[0]


def test_some_observations_are_those_asked_for() -> None:
    data = draw(0)
    kept = some_of(data, np.array([3, 5]))
    assert kept.values.tolist() == data.values[[3, 5]].tolist()
    assert len(kept) == 2
