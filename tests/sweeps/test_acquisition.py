"""Expected improvement against its integral, and its maximum within constraints."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from spec_samples import small_spec

from sweeps.acquisition import log_expected_improvement, maximise, moved


@given(mean=st.floats(-3, 3), deviation=st.floats(0.1, 3), best=st.floats(-3, 3))
def test_it_is_the_integral_of_the_improvement(mean: float, deviation: float, best: float) -> None:
    def weighted(z: float) -> float:
        return max(0.0, mean + deviation * z - best) * math.exp(-z * z / 2)

    start = (best - mean) / deviation
    total, _ = quad(weighted, max(start, -12), max(start, 0) + 12, limit=400)
    expected = total / math.sqrt(2 * math.pi)
    (found,) = log_expected_improvement(np.array([mean]), np.array([deviation]), best)
    if expected > 1e-12:
        assert math.exp(found) == pytest.approx(expected, rel=1e-4)


def test_far_below_the_best_it_still_falls() -> None:
    means = -np.linspace(0, 200, 2001)
    values = log_expected_improvement(means, np.ones(2001), 0.0)
    assert np.isfinite(values).all()
    assert (np.diff(values) < 0).all()
    assert np.abs(np.diff(values, 2)).max() < 0.05  # no step where the formulas meet


def peak(x: float, y: float):
    def worth(points):
        return np.array([-((float(p["x"]) - x) ** 2) - (float(p["y"]) - y) ** 2 for p in points])

    return worth


@pytest.mark.parametrize("target", [(0.31, 0.77), (0.0, 1.0), (1.0, 1.0)])
def test_the_maximum_is_found_and_feasible(tmp_path: Path, target: tuple[float, float]) -> None:
    space = small_spec(tmp_path, constraints="[x + y <= 1.5]").build_space()
    found = maximise(peak(*target), space, [], np.random.default_rng(0))
    assert space.is_feasible(found)
    # From (1, 1) the nearest feasible point is (0.75, 0.75).
    nearest = (0.75, 0.75) if target == (1.0, 1.0) else target
    assert (float(found["x"]), float(found["y"])) == pytest.approx(nearest, abs=0.03)


def test_a_narrow_peak_is_found_from_a_start_beside_it(tmp_path: Path) -> None:
    space = small_spec(tmp_path).build_space()

    def worth(points):
        return np.exp(2000 * peak(0.123, 0.456)(points))

    start = {"x": 0.15, "y": 0.43}
    found = maximise(worth, space, [start], np.random.default_rng(0))
    assert worth([found])[0] > 0.9


def test_where_nothing_is_worth_looking_at_it_still_returns_a_point(tmp_path: Path) -> None:
    space = small_spec(tmp_path, constraints="[x + y <= 0.5]").build_space()
    start = {"x": 0.1, "y": 0.1}
    found = maximise(
        lambda points: np.full(len(points), -math.inf), space, [start], np.random.default_rng(0)
    )
    assert space.is_feasible(found)


def test_moves_stay_on_their_axes(tmp_path: Path) -> None:
    space = small_spec(
        tmp_path,
        space="{x: {low: 0, high: 1, step: 0.25}, y: {low: 1, high: 100, log: true, int: true},"
        " mode: {choices: [a, b]}}",
        constraints="[]",
    ).build_space()
    rng = np.random.default_rng(0)
    point = space.draw(rng)
    seen = set()
    for _ in range(200):
        point = moved(space, point, 0.3, rng)
        assert all(axis.contains(point[name]) for name, axis in space.axes.items())
        seen.add(point["mode"])
    assert seen == {"a", "b"}
