import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.noise import COVERAGE, Noise, pooled_noise, selection_gain, shrunk_noise


def test_without_noise_only_equality_is_a_tie():
    assert Noise(deviation=0.0).threshold() == 0.0


def test_threshold_is_two_deviations_of_a_difference():
    rng = random.Random(0)
    limit = Noise(deviation=1.0).threshold()
    pairs = [(rng.gauss(0, 1), rng.gauss(0, 1)) for _ in range(20000)]
    beyond = sum(abs(a - b) > limit for a, b in pairs) / len(pairs)
    assert beyond == pytest.approx(0.0455, abs=0.006)


def test_selection_gain_is_the_expected_maximum():
    rng = random.Random(0)
    for count in (2, 8, 24):
        maxima = [max(rng.gauss(0, 1) for _ in range(count)) for _ in range(4000)]
        assert selection_gain(count, 1.0) == pytest.approx(sum(maxima) / len(maxima), abs=0.06)
    assert selection_gain(1, 1.0) == 0.0


def test_pooled_noise_weighs_groups_by_their_freedom():
    noise = pooled_noise([[1.0, 3.0], [5.0, 5.0, 5.0], [9.0]])
    assert noise.degrees_of_freedom == 3
    assert noise.deviation == pytest.approx(math.sqrt(2 / 3))
    assert pooled_noise([[1.0], [2.0]]) is None


@pytest.mark.parametrize(
    ("groups", "deviation", "freedom", "source"),
    [
        ([], 0.002, 1, "assumed"),
        ([[0.4]], 0.002, 1, "assumed"),
        # Seeds that agree by chance leave half of the prior's variance.
        ([[0.4, 0.4]], 0.002 / math.sqrt(2), 2, "measured"),
        ([[0.40, 0.41]], math.sqrt((0.002**2 + 0.01**2 / 2) / 2), 2, "measured"),
    ],
)
def test_few_repeats_are_drawn_towards_the_prior(groups, deviation, freedom, source):
    noise = shrunk_noise(groups)
    assert noise.deviation == pytest.approx(deviation)
    assert (noise.degrees_of_freedom, noise.source) == (freedom, source)


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=6), min_size=1, max_size=4))
def test_the_drawn_noise_lies_between_prior_and_sample(groups):
    sample, drawn = pooled_noise(groups).deviation, shrunk_noise(groups).deviation
    low, high = sorted((sample, 0.002))
    assert low - 1e-12 <= drawn <= high + 1e-12
    assert drawn > 0


def test_limits_widen_where_the_noise_is_known_badly():
    known = Noise(deviation=0.01)
    badly = [Noise(deviation=0.01, degrees_of_freedom=n).sigmas for n in (1, 2, 5, 50)]
    assert known.sigmas == 2
    assert badly == sorted(badly, reverse=True)
    assert badly[0] > 10
    assert badly[-1] == pytest.approx(2, abs=0.06)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_an_interval_holds_the_true_mean_as_often_as_it_says(count):
    rng = random.Random(count)
    hits = 0
    for _ in range(4000):
        values = [rng.gauss(0.4, 0.01) for _ in range(count)]
        noise = pooled_noise([values])
        mean = sum(values) / count
        hits += abs(mean - 0.4) <= noise.half_width(count)
    assert hits / 4000 == pytest.approx(COVERAGE, abs=0.012)
