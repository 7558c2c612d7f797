import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_samples import FULL, parse

from sweeps.expressions import parse as parse_expression
from sweeps.space import Choices, Derived, Fixed, Range, Schedule, Space

# Without a deadline: the time of an example says nothing on a busy machine.
few = settings(deadline=None, max_examples=25)

SPACE = parse(FULL).build_space()


def interval(low: float, high: float, **options: object) -> Range:
    return Range.model_validate({"low": low, "high": high, **options})


@few
@given(st.integers(0, 2**32 - 1))
def test_drawn_points_lie_in_their_axes_and_meet_the_constraints(seed: int) -> None:
    sampled = SPACE.draw(np.random.default_rng(seed))
    assert sampled.keys() == SPACE.axes.keys()
    assert all(axis.contains(sampled[name]) for name, axis in SPACE.axes.items())
    params = SPACE.resolve(sampled)
    a, r, c = params["amplification"], params["residual_weight"], params["max_weight_clamp"]
    assert a == pytest.approx(r + c * (1 - r))
    assert 1 <= c <= 4
    assert SPACE.violations(params) == ()


@few
@given(st.integers(0, 2**32 - 1))
def test_resolved_points_are_inverted(seed: int) -> None:
    sampled = SPACE.draw(np.random.default_rng(seed))
    params = SPACE.resolve(sampled)
    del params["amplification"]
    assert SPACE.invert(params, {}) == {
        name: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        for name, value in sampled.items()
    }


@few
@given(st.floats(0, 1), st.integers(0, 99))
def test_a_proposal_beyond_an_edge_moves_to_it(unit: float, seed: int) -> None:
    # A = 1.9 with r = 0.9 asks for a clamp of 10.
    proposal = {
        "amplification": 1.9,
        "residual_weight": 0.9,
        "gaussian_sigma": SPACE.axes["gaussian_sigma"].at(unit),
        "aqr_lr_mult": 1.0,
        "transformer_lr_mult": 0.5,
        "model.head.loss_weight": 2,
    }
    moved = SPACE.nearest(proposal, np.random.default_rng(seed))
    assert SPACE.is_feasible(moved)
    assert all(axis.contains(moved[name]) for name, axis in SPACE.axes.items())
    assert SPACE.resolve(moved)["max_weight_clamp"] > 3.5


@few
@given(st.floats(0, 1))
@pytest.mark.parametrize(
    "axis",
    [
        interval(-1, 3),
        interval(0.1, 10, log=True),
        interval(0, 1, step=0.25),
        interval(2, 9, int=True),
        interval(1, 64, int=True, log=True),
        interval(0, 10, int=True, step=5),
        interval(2, 2),
        Choices(choices=(0.3, 0.5, "x", True)),
    ],
)
def test_an_axis_maps_the_unit_interval_into_itself(axis: Range | Choices, unit: float) -> None:
    value = axis.at(unit)
    assert axis.contains(value)
    assert axis.distribution._contains(axis.distribution.to_internal_repr(value))
    again = axis.at(axis.unit(value))
    assert again == (pytest.approx(value) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("axis", "value"),
    [
        (interval(0, 1), 1.01),
        (interval(0, 1), "0.5"),
        (interval(0, 1), True),
        (interval(0, 1, step=0.25), 0.3),
        (interval(0, 5, int=True), 2.5),
        (Choices(choices=(0, 1)), True),
        (Choices(choices=("a",)), "b"),
    ],
)
def test_an_axis_refuses(axis: Range | Choices, value: object) -> None:
    assert not axis.contains(value)


def test_derived_quantities_may_read_each_other_in_any_order() -> None:
    space = Space({"c": Derived(derive="2 * b"), "b": Derived(derive="a + 1"), "a": interval(0, 1)})
    assert space.resolve({"a": 0.5}) == {"a": 0.5, "b": 1.5, "c": 3.0}
    assert space.invert({"c": 3.0}, {}) == {"a": pytest.approx(0.5)}


def test_a_derivation_that_falls_is_inverted_too() -> None:
    space = Space({"a": interval(0.1, 10, log=True), "b": Derived(derive="1 / a")})
    assert space.invert({"b": 4.0}, {}) == {"a": pytest.approx(0.25)}


def test_a_whole_axis_is_solved_on_its_grid_or_not_at_all() -> None:
    space = Space({"a": interval(0, 8, int=True), "b": Derived(derive="a * 2")})
    assert space.invert({"b": 6}, {}) == {"a": 3}
    with pytest.raises(ValueError, match="b=5 is not reached by any a"):
        space.invert({"b": 5}, {})


def test_a_point_without_a_value_breaks_the_space_but_does_not_raise() -> None:
    space = Space({"a": interval(0, 1), "b": Derived(derive="1 / a")})
    assert not space.is_feasible({"a": 0.0})
    with pytest.raises(ValueError, match="no value here"):
        space.resolve({"a": 0.0})


def test_constraints_read_dotted_keys_and_texts() -> None:
    space = Space(
        {"model.a": interval(0, 1), "kind": Choices(choices=("p", "q"))},
        ["model.a >= 0.5 or kind == 'q'"],
    )
    assert space.violations({"model.a": 0.2, "kind": "q"}) == ()
    assert space.violations({"model.a": 0.2, "kind": "p"}) == ("model.a >= 0.5 or kind == 'q'",)


@pytest.mark.parametrize(
    ("text", "value"),
    [("min(a, 2) ** 2", 4), ("exp(log(a))", 3.0), ("a if a < 2 else -a", -3), ("1 < a <= 3", True)],
)
def test_expressions_compute(text: str, value: float) -> None:
    assert parse_expression(text).evaluate({"a": 3}) == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["1 / (a - 3)", "sqrt(0 - a)", "10.0 ** (a * 400)", "(0 - a) ** 0.5"]
)
def test_expressions_without_a_finite_value_raise(text: str) -> None:
    with pytest.raises(ValueError, match="value here"):
        parse_expression(text).evaluate({"a": 3})


@pytest.mark.parametrize("text", ["a.b()", "__import__('os')", "lambda: 1", "a[0]", "None", ""])
def test_expressions_are_arithmetic_only(text: str) -> None:
    with pytest.raises(ValueError, match=r"function|arithmetic|number|expression"):
        parse_expression(text)


def test_violations_are_those_of_the_exact_threshold() -> None:
    space = Space({"a": interval(0, 2)}, ["a <= 1"])
    assert space.violations({"a": 1.0}) == ()
    assert space.violations({"a": math.nextafter(1.0, 2.0)}) == ("a <= 1",)


CONDITIONAL = Space(
    {
        "kind": Choices(choices=("p", "q")),
        "a": interval(0, 1, when="kind == 'p'"),
        "b": interval(0.1, 10, log=True, when="kind == 'q'"),
        "deep": interval(1, 3, int=True, when="a > 0.5"),
        "twice": Derived(derive="2 * a"),
        "k": Fixed(fixed=7, when="kind == 'q'"),
    },
    ["a + b <= 0", "twice <= 1.8", "b * k >= 1"],
)


@few
@given(st.integers(0, 2**32 - 1))
def test_a_point_has_its_active_parameters_alone_and_meets_what_applies(seed: int) -> None:
    sampled = CONDITIONAL.draw(np.random.default_rng(seed))
    params = CONDITIONAL.resolve(sampled)
    if params["kind"] == "p":
        deep = {"deep"} if float(params["a"]) > 0.5 else set[str]()
        assert params.keys() == {"kind", "a", "twice"} | deep
        assert float(params["twice"]) <= 1.8
    else:
        assert params.keys() == {"kind", "b", "k"}
        assert float(params["b"]) * 7 >= 1
    assert sampled.keys() == params.keys() - {"twice", "k"}
    assert CONDITIONAL.distributions(sampled).keys() == sampled.keys()
    assert CONDITIONAL.invert(params, {}) == sampled


def test_an_inactive_value_is_refused_and_an_active_one_needed() -> None:
    with pytest.raises(
        ValueError, match=r"must not give b, which is inactive there: `kind == 'q'`"
    ):
        CONDITIONAL.invert({"kind": "p", "a": 0.2, "b": 1.0}, {})
    with pytest.raises(ValueError, match="must give a, which"):
        CONDITIONAL.invert({"kind": "p"}, {})
    assert CONDITIONAL.invert({"twice": 1.0}, {"kind": "p"}) == {"kind": "p", "a": 0.5}
    with pytest.raises(ValueError, match="contradicts its fixed value, 7"):
        CONDITIONAL.invert({"kind": "q", "b": 1.0, "k": 8}, {})


def test_a_grid_has_each_conditional_point_once() -> None:
    space = Space(
        {
            "kind": Choices(choices=("p", "q")),
            "a": interval(0, 1, step=0.5, when="kind == 'p'"),
            "b": interval(1, 100, log=True, points=3, when="kind == 'q'"),
        },
        ["a <= 0.5"],
    )
    assert space.grid() == [
        {"kind": "p", "a": 0.0},
        {"kind": "p", "a": 0.5},
        {"kind": "q", "b": 1.0},
        {"kind": "q", "b": pytest.approx(10.0)},
        {"kind": "q", "b": pytest.approx(100.0)},
    ]


def test_searched_epochs_of_a_schedule_keep_their_order() -> None:
    stages = ((0.0, 1.0), (interval(0, 2), 2.0), (interval(0, 2), 3.0))
    space = Space({"s": Schedule(schedule="staged", stages=stages)})
    for seed in range(20):
        params = space.resolve(space.draw(np.random.default_rng(seed)))
        assert 0 < float(params["s.from_epoch_2"]) < float(params["s.from_epoch_3"])
