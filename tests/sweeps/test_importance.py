import random

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from sweep_samples import make_record, make_spec, make_trial

from sweeps.importance import Within, conditional_importance, importance
from sweeps.report import render_report

AXES = {
    "method": CategoricalDistribution(["a", "b"]),
    "x": FloatDistribution(0, 1),
    "sigma": FloatDistribution(0.5, 4.0),
    "tau": FloatDistribution(0.0, 1.0),
    "radius": FloatDistribution(1.0, 6.0),
}


def conditional(count, effect, *, share_of_a=0.5):
    """`sigma` and `tau` with method a, `radius` with method b."""
    rng = random.Random(3)
    trials = []
    for number in range(count):
        point = {"method": "a" if rng.random() < share_of_a else "b", "x": rng.random()}
        if point["method"] == "a":
            point |= {"sigma": rng.uniform(0.5, 4.0), "tau": rng.random()}
        else:
            point["radius"] = rng.uniform(1, 6)
        trials.append(make_trial(number, effect(point), sampled=point))
    return make_record(*trials)


def by_sigma(point):
    return 0.4 - 0.1 * abs(point.get("sigma", 2.0) - 2.0) + 1e-4 * point["x"]


def test_axes_that_every_trial_has_are_compared_among_all():
    record = conditional(80, lambda p: 0.4 + 0.1 * p["x"])
    shares = importance(record, AXES)
    assert set(shares) == {"method", "x"}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["x"] > 0.9


def test_an_axis_with_a_condition_is_judged_among_the_trials_that_have_it():
    within = conditional_importance(conditional(80, by_sigma), AXES)
    assert list(within) == ["sigma", "tau", "radius"]
    num_a = within["sigma"].num_trials
    assert within["tau"].num_trials == num_a
    assert within["radius"].num_trials == 80 - num_a
    assert within["sigma"].share > 0.8
    assert within["tau"].share < 0.1


def test_it_is_what_a_sweep_of_these_trials_alone_would_say():
    record = conditional(80, by_sigma)
    alone = make_record(*(t for t in record.searched if t.sampled["method"] == "a"))
    axes = {name: AXES[name] for name in ("method", "x", "sigma", "tau")}
    shares = importance(alone, axes)
    within = conditional_importance(record, AXES)
    assert within["sigma"].share == shares["sigma"]
    assert within["tau"].share == shares["tau"]


def test_too_few_trials_of_a_branch_give_no_share_but_their_number():
    record = conditional(60, by_sigma, share_of_a=0.2)
    within = conditional_importance(record, AXES)
    assert within["sigma"].num_trials < 20
    assert within["sigma"] == Within(share=None, num_trials=within["sigma"].num_trials)
    assert within["radius"].share is not None


def test_without_conditions_there_is_nothing_more_to_say():
    record = make_record(*(make_trial(i, 0.4 + i / 100, sampled={"x": i / 30}) for i in range(30)))
    assert conditional_importance(record, {"x": AXES["x"]}) == {}
    assert importance(record, {"x": AXES["x"]}) == {"x": 1.0}


def test_trials_of_another_space_do_not_count():
    trials = [make_trial(i, 0.4 + i / 100, sampled={"x": i / 30, "old": 1.0}) for i in range(30)]
    assert importance(make_record(*trials), {"x": AXES["x"]}) is None


def test_the_report_says_it(tmp_path, monkeypatch):
    import sweeps.report

    record = conditional(80, by_sigma)
    monkeypatch.setattr(sweeps.report, "importance", lambda record, axes: importance(record, AXES))
    monkeypatch.setattr(
        sweeps.report,
        "conditional_importance",
        lambda record, axes: conditional_importance(record, AXES),
    )
    text = render_report(record, spec=make_spec(tmp_path))
    within = conditional_importance(record, AXES)["sigma"]
    assert f"| `sigma` | {within.num_trials} | {100 * within.share:.0f} % |" in text
    assert "its share compares with no other of the tables" in text
