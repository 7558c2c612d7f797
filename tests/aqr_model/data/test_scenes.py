import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqr_model.data.errors import DataError
from aqr_model.data.nuscenes.scenes import scene_subset

NAMES = [f"scene-{i:04d}" for i in range(60)]


@given(st.integers(1, 200), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_small_share_lies_inside_a_larger_one(count, one, other):
    names = NAMES[: count % 60 + 1]
    small, large = sorted((one, other))
    assert set(scene_subset(names, small)) <= set(scene_subset(names, large)) <= set(names)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_size_is_the_share_and_order_of_names_does_not_matter(share):
    chosen = scene_subset(NAMES, share)
    assert len(chosen) == round(60 * share)
    assert chosen == scene_subset([*reversed(NAMES), NAMES[3]], share)


@pytest.mark.parametrize("period", [2, 3, 4, 5])
@pytest.mark.parametrize("share", [0.2, 0.25, 1 / 3, 0.5])
@pytest.mark.parametrize("count", [6, 12, 16, 20, 60])
def test_conditions_that_alternate_are_all_represented_alike(count, period, share):
    chosen = scene_subset(NAMES[:count], share)
    counts = [sum(NAMES.index(name) % period == k for name in chosen) for k in range(period)]
    assert max(counts) - min(counts) <= 2
    assert min(counts) >= 1 or len(chosen) < 2 * period


def test_share_is_spread_over_the_list():
    places = [NAMES.index(name) for name in scene_subset(NAMES, 0.25)]
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert max(gaps) <= 10


def test_at_least_one_scene():
    assert len(scene_subset(NAMES[:3], 0.01)) == 1


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_share_out_of_range(share):
    with pytest.raises(DataError, match="0 < share <= 1 must hold"):
        scene_subset(NAMES, share)


def test_no_scenes():
    with pytest.raises(DataError, match="got none"):
        scene_subset([], 0.5)
