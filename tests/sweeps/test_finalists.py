from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_samples import make_trial

from sweeps.finalists import (
    Repeat,
    best_trials,
    new_seeds,
    noise_for_stopping,
    planned_repeats,
    repeats_left,
)


def repeat(number, of, seed, nds=0.4, **changes):
    return replace(make_trial(number, nds, role="finalist", seed=seed), repeats=of, **changes)


def test_the_best_full_budget_trials_are_chosen():
    trials = [
        make_trial(0, 0.40),
        make_trial(1, 0.44),
        make_trial(2, 0.50, outcome="stopped"),
        make_trial(3, 0.44),
        make_trial(4, 0.60, role="known"),
        make_trial(5, None, outcome="failed"),
        make_trial(0, 0.70, role="control"),
        repeat(6, 1, 1, 0.9),
    ]
    assert [t.number for t in best_trials(trials, 2, "max")] == [1, 3]
    assert [t.number for t in best_trials(trials, 9, "max")] == [1, 3, 0]
    assert [t.number for t in best_trials(trials, 1, "min")] == [0]


def test_what_is_expected_of_a_trial_counts_more_than_its_one_score():
    trials = [make_trial(0, 0.40), make_trial(1, 0.44), make_trial(2, 0.42)]
    expected = {0: 0.40, 1: 0.40, 2: 0.41}
    assert [t.number for t in best_trials(trials, 2, "max", expected)] == [2, 0]
    assert [t.number for t in best_trials(trials, 2, "min", expected)] == [0, 1]


def test_a_finalist_stays_one_whatever_is_expected_of_it_later():
    trials = [make_trial(0, 0.40), make_trial(1, 0.44), make_trial(2, 0.42)]
    begun = [*trials, repeat(3, 0, 1, outcome=None)]
    assert [t.number for t in best_trials(begun, 2, "max", {0: 0.3, 1: 0.5, 2: 0.4})] == [0, 1]


def test_new_seeds_differ_from_the_search_s_and_stay_seeds():
    assert new_seeds(7, 3) == (8, 9, 10)
    assert new_seeds(2**32 - 1, 2) == (0, 1)


def test_repeats_go_seed_by_seed_with_the_control_first():
    finalists = [make_trial(4, 0.5), make_trial(2, 0.4)]
    planned = planned_repeats(finalists, (1, 2), with_control=True)
    assert [(r.of, r.seed) for r in planned] == [
        (None, 1), (4, 1), (2, 1), (None, 2), (4, 2), (2, 2),
    ]  # fmt: skip
    assert [r.of for r in planned_repeats(finalists, (1,), with_control=False)] == [4, 2]
    assert planned_repeats([], (1, 2), with_control=True) == ()


@given(
    numbers=st.lists(st.integers(0, 20), unique=True, max_size=4),
    seeds=st.integers(1, 4),
    data=st.data(),
)
def test_what_has_begun_is_never_planned_again_and_nothing_else_is_lost(numbers, seeds, data):
    finalists = [make_trial(number, 0.4) for number in numbers]
    planned = planned_repeats(finalists, new_seeds(0, seeds), with_control=True)
    begun = data.draw(st.sets(st.sampled_from(planned))) if planned else set()
    trials = [make_trial(0, 0.4, role="control", seed=0)]
    for number, each in enumerate(begun):
        outcome = data.draw(st.sampled_from(["finished", "failed", None]))
        if each.of is None:
            trials.append(make_trial(number, 0.4, role="control", seed=each.seed))
        else:
            trials.append(repeat(100 + number, each.of, each.seed, outcome=outcome))
    left = repeats_left(planned, [*finalists, *trials])
    assert set(left) == set(planned) - begun
    assert list(left) == [each for each in planned if each in set(left)]


def test_a_seed_that_the_control_has_had_is_not_repeated():
    finalists = [make_trial(1, 0.5)]
    controls = [make_trial(i, 0.4, role="control", seed=i) for i in range(2)]
    planned = planned_repeats(finalists, new_seeds(0, 2), with_control=True)
    assert repeats_left(planned, controls) == (
        Repeat(of=1, seed=1),
        Repeat(of=None, seed=2),
        Repeat(of=1, seed=2),
    )


@pytest.mark.parametrize(
    ("declared", "scores", "num_planned", "known"),
    [
        (0.003, [], 1, True),
        (0.0, [], 0, True),
        (None, [0.4, 0.41], 2, True),
        (None, [0.4, 0.41], 3, False),
        (None, [0.4, None], 2, False),
        (None, [0.4, 0.41, None], 3, True),
        (None, [], 0, False),
    ],
)
def test_stopping_waits_until_the_noise_is_known(declared, scores, num_planned, known):
    controls = [
        make_trial(i, nds, role="control", outcome="finished" if nds else "failed")
        for i, nds in enumerate(scores)
    ]
    noise = noise_for_stopping(declared, controls, num_planned)
    assert (noise is not None) == known
    if declared is not None:
        assert noise == declared


def test_stopping_waits_for_a_control_that_runs():
    controls = [make_trial(0, 0.40, role="control"), make_trial(1, 0.42, role="control")]
    running = make_trial(2, None, role="control", outcome=None)
    assert noise_for_stopping(None, [*controls, running], 3) is None
    # What the finals add later does not move the margin.
    assert noise_for_stopping(None, [*controls, running], 2) == noise_for_stopping(
        None, controls, 2
    )
