import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqr_model.aqr import make_schedule, read_schedule

COSINE = {"type": "cosine", "start_value": 0.7, "end_value": 0.4, "warmup_epochs": 5}
STAGED = {"type": "staged", "stages": [(0, 3.0), (9, 2.0), (17.5, 1.5)]}


@pytest.mark.parametrize(
    ("config", "total", "values"),
    [
        (2.0, 1, {0: 2.0, 0.5: 2.0, 1: 2.0}),
        ({"type": "constant", "value": 3}, 1, {0: 3.0, 1: 3.0}),
        (COSINE, 24, {0: 0.7, 4.99: 0.7, 5: 0.7, 14.5: 0.55, 24: 0.4, 30: 0.4}),
        # A third of the way down: 1 - cos(60 degrees) is a half, of which half.
        (COSINE | {"warmup_epochs": 0, "end_epoch": 3}, 24, {0: 0.7, 1: 0.625, 2: 0.475, 3: 0.4}),
        ({"type": "cosine", "start_value": 1, "end_value": 2}, 0.5, {0: 1, 0.25: 1.5, 0.5: 2}),
        (STAGED, 24, {0: 3.0, 8.999: 3.0, 9: 2.0, 17.4: 2.0, 17.5: 1.5, 24: 1.5, 99: 1.5}),
    ],
)
def test_values_over_the_epochs(config, total, values):
    schedule = make_schedule(config, total)
    assert {epoch: schedule(epoch) for epoch in values} == pytest.approx(values)


def test_the_ends_of_a_cosine_are_exact():
    schedule = make_schedule(COSINE, 24)
    assert (schedule(0.0), schedule(24.0)) == (0.7, 0.4)


@given(
    epoch=st.floats(0, 30),
    later=st.floats(0, 30),
    warmup=st.floats(0, 20),
    length=st.floats(0.01, 20),
)
def test_a_cosine_falls_and_stays_between_its_ends(epoch, later, warmup, length):
    config = COSINE | {"warmup_epochs": warmup, "end_epoch": warmup + length}
    schedule = make_schedule(config, 50)
    first, last = schedule(min(epoch, later)), schedule(max(epoch, later))
    assert 0.4 <= last <= first <= 0.7


def test_extremes_bound_the_values():
    assert read_schedule(COSINE).extremes == (0.7, 0.4)
    assert read_schedule(STAGED).extremes == (3.0, 2.0, 1.5)
    assert read_schedule(1).extremes == (1.0,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "linear"}, "`type` must be one of 'constant', 'cosine', 'staged'.*'linear'"),
        ({"value": 1.0}, "`type` must be one of"),
        (COSINE | {"warmup": 5}, "takes start_value, end_value, .*but got warmup"),
        ({"type": "cosine", "start_value": 0.7}, "lacks end_value"),
        ({"type": "constant", "value": math.nan}, "`value` of a schedule must be a finite number"),
        ({"type": "constant", "value": True}, "must be a finite number, but got True"),
        ("fast", "must be a finite number, but got 'fast'"),
        (COSINE | {"warmup_epochs": -1}, "`warmup_epochs >= 0` must hold"),
        (COSINE | {"end_epoch": 5}, "must end behind its warm-up.*warmup_epochs=5.0.*epoch 5.0"),
        ({"type": "staged", "stages": []}, "the first from epoch 0"),
        ({"type": "staged", "stages": [(1, 2.0)]}, "the first from epoch 0"),
        ({"type": "staged", "stages": [(0, 2.0), (3, 1.0), (3, 0.5)]}, "each later than the one"),
        ({"type": "staged", "stages": [0, 2.0]}, r"`stages` must be \(from_epoch, value\) pairs"),
        ({"type": "staged", "stages": [(0, "x")]}, "`value` of a schedule"),
    ],
)
def test_bad_schedules(config, message):
    with pytest.raises(ValueError, match=message):
        read_schedule(config)


def test_a_warm_up_longer_than_the_training_is_an_error():
    with pytest.raises(ValueError, match=r"warmup_epochs=5.0 and the end at epoch 2"):
        make_schedule(COSINE, 2)
    with pytest.raises(ValueError, match="`total_epochs > 0` must hold"):
        make_schedule(1.0, 0)
