from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.hypervolume import REFERENCE_MARGIN, hypervolume, volume_shares
from sweeps.objectives import Objective

NDS = Objective(name="NDS", keys=("val/nds",), mode="max")
TIME = Objective(name="time", keys=(), mode="min")
SIDE = 6


def counted(points: Sequence[Sequence[int]]) -> int:
    """The slow twin: unit cells below any of the points."""
    if not points:
        return 0
    axes = np.meshgrid(*[np.arange(SIDE)] * len(points[0]), indexing="ij")
    covered = np.zeros_like(axes[0], dtype=bool)
    for point in points:
        inside = [axis < length for axis, length in zip(axes, point, strict=True)]
        covered |= np.logical_and.reduce(inside)
    return int(covered.sum())


@given(
    st.integers(1, 4).flatmap(
        lambda axes: st.lists(st.tuples(*[st.integers(-1, SIDE)] * axes), max_size=7)
    )
)
def test_the_volume_is_what_the_points_cover(points: list[tuple[int, ...]]) -> None:
    assert hypervolume(points) == counted(points)


def test_the_share_grows_to_one_and_dominated_trials_add_nothing() -> None:
    rows = [(0.40, 10.0), (0.39, 11.0), (0.44, 12.0), (0.42, 8.0), (0.41, 9.0)]
    shares = volume_shares(rows, (NDS, TIME))
    assert list(shares) == sorted(shares)
    assert shares[1] == shares[0]
    assert shares[-1] == shares[3] == 1.0
    # By hand: (NDS - 0.39) / 0.05 and (12 - time) / 4, from a tenth below.
    first = (0.2 + REFERENCE_MARGIN) * (0.5 + REFERENCE_MARGIN)
    last = (1 + 0.1) * 0.1 + (0.6 + 0.1) * (1 + 0.1 - 0.1)
    assert shares[0] == pytest.approx(first / last)


def test_what_is_equal_in_all_trials_does_not_count() -> None:
    rows = [(0.40, 5.0), (0.42, 5.0)]
    assert volume_shares(rows, (NDS, TIME)) == volume_shares([(0.40,), (0.42,)], (NDS,))
    assert volume_shares([(0.40, 5.0)], (NDS, TIME)) == ()
    assert volume_shares([], (NDS, TIME)) == ()
