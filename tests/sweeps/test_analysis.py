import math
import random
from dataclasses import replace

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from sweep_samples import make_record, make_rung, make_trial

from sweeps.analysis import (
    class_differences,
    costs,
    leaderboard,
    measured_noise,
    metric_name,
    rung_table,
)
from sweeps.importance import importance


def control(nds=0.41):
    return make_trial(0, nds, role="control")


def numbers(rows):
    return [row.trial.number for row in rows]


def test_orders_finished_trials_by_score():
    record = make_record(make_trial(0, 0.40), make_trial(1, 0.43), make_trial(2, 0.42))
    board = leaderboard(record)
    assert numbers(board.finished) == [1, 2, 0]
    assert [row.rank for row in board.finished] == [1, 2, 3]
    assert board.best.trial.number == 1


def test_lower_is_better_when_minimising():
    record = make_record(make_trial(0, 0.40), make_trial(1, 0.43), mode="min")
    assert numbers(leaderboard(record).finished) == [0, 1]


def test_equal_scores_stand_in_order_of_trials():
    record = make_record(make_trial(0, 0.4), make_trial(1, 0.4))
    assert numbers(leaderboard(record).finished) == [0, 1]


def test_a_stopped_trial_is_never_a_result_however_high_its_estimate():
    record = make_record(make_trial(0, 0.40), make_trial(1, 0.90, outcome="stopped"))
    board = leaderboard(record)
    assert numbers(board.finished) == [0]
    assert board.stopped[0].score is None
    assert board.stopped[0].delta is None
    assert board.stopped[0].reached == 0.5
    assert board.stopped[0].reached_score == pytest.approx(0.85)


def test_stopped_trials_furthest_first_then_by_score_there():
    late = replace(
        make_trial(2, 0.3, outcome="stopped"), rungs=(make_rung(0.5, 0.2), make_rung(0.75, 0.21))
    )
    record = make_record(
        make_trial(0, 0.36, outcome="stopped"), make_trial(1, 0.38, outcome="stopped"), late
    )
    assert numbers(leaderboard(record).stopped) == [2, 1, 0]


def test_known_points_are_no_results():
    board = leaderboard(make_record(make_trial(0, 0.99, role="known"), make_trial(1, 0.4)))
    assert numbers(board.finished) == [1]
    assert [trial.number for trial in board.known] == [0]


def test_diverged_failed_and_running_trials_stand_apart():
    record = make_record(
        make_trial(0, None, outcome="diverged"),
        make_trial(1, None, outcome="failed"),
        make_trial(2, None, outcome=None),
        control=make_trial(0, None, outcome=None, role="control"),
    )
    board = leaderboard(record)
    assert numbers(board.ended) == [0, 1]
    assert numbers(board.running) == [2]
    assert board.best is None
    assert board.control.score is None


@pytest.mark.parametrize(
    ("delta", "tied"),
    [(0.0, True), (0.0056, True), (-0.0056, True), (0.0058, False), (-0.0058, False)],
)
def test_differences_within_two_deviations_of_a_difference_are_ties(delta, tied):
    row = leaderboard(make_record(make_trial(0, 0.41 + delta), control=control())).best
    assert row.delta == pytest.approx(delta)
    assert row.tied_with_control is tied


def test_ties_with_the_best_leave_the_best_itself_out():
    record = make_record(make_trial(0, 0.430), make_trial(1, 0.426), make_trial(2, 0.420))
    assert [row.tied_with_best for row in leaderboard(record).finished] == [False, True, False]


def test_noise_can_be_given():
    record = make_record(make_trial(0, 0.43), control=control(0.41))
    assert not leaderboard(record).best.tied_with_control
    assert leaderboard(record, noise=0.01).best.tied_with_control


def test_no_control_no_delta():
    row = leaderboard(make_record(make_trial(0, 0.43))).best
    assert row.delta is None
    assert not row.tied_with_control


def repeat(number, of, nds, seed, **changes):
    return replace(make_trial(number, nds, role="finalist", seed=seed), repeats=of, **changes)


def final_record(**attrs):
    """Trial 2 was chosen first; with new seeds, trial 1 is better, trial 0 was no finalist."""
    return replace(
        make_record(
            make_trial(0, 0.429),
            make_trial(1, 0.430),
            make_trial(2, 0.440),
            repeat(3, 2, 0.420, 1),
            repeat(4, 1, 0.431, 1),
            repeat(5, 2, 0.424, 2),
            repeat(6, 1, 0.435, 2),
            control=control(0.410),
            **attrs,
        ),
        control_repeats=(
            make_trial(1, 0.414, role="control", seed=1),
            make_trial(2, 0.416, role="control", seed=2),
        ),
    )


def test_finalists_stand_by_the_mean_over_new_seeds():
    board = leaderboard(final_record())
    assert numbers(board.finished) == [1, 2, 0]
    assert numbers(board.finalists) == [1, 2]
    best, second, other = board.finished
    assert (best.score, best.num_scores) == (pytest.approx(0.433), 2)
    assert second.score == pytest.approx(0.422)
    assert (other.score, other.num_scores) == (0.429, 1)
    # Two standard deviations of a mean of two scores.
    half = 2 * 0.002 / math.sqrt(2)
    assert best.interval == pytest.approx((0.433 - half, 0.433 + half))
    assert board.control.score == pytest.approx((0.410 + 0.414 + 0.416) / 3)
    assert board.control.num_scores == 3
    # Against the control with the same seeds: 1 and 2 for finalists, 0 for the others.
    assert [row.delta for row in board.finished] == pytest.approx([0.018, 0.007, 0.019])
    assert best.limit == pytest.approx(2 * 0.002)
    assert other.limit == pytest.approx(2 * 0.002 * math.sqrt(2))
    assert other.tied_with_best
    assert not second.tied_with_best


def test_ties_of_means_are_narrower_than_those_of_single_scores():
    def board(nds):
        record = final_record()
        trials = [replace(t, value=nds) if t.role == "finalist" else t for t in record.trials]
        return leaderboard(replace(record, trials=tuple(trials)))

    assert board(0.415 + 0.0039).best.tied_with_control
    assert not board(0.415 + 0.0041).best.tied_with_control


def test_what_a_seed_does_to_all_is_no_difference_to_the_control():
    # Seed 0 is a lucky one, for the control as well.
    record = replace(
        make_record(make_trial(0, 0.45), control=make_trial(0, 0.449, role="control")),
        control_repeats=(make_trial(1, 0.40, role="control", seed=1),),
    )
    assert leaderboard(record).best.delta == pytest.approx(0.001)
    # Without the control's score at this seed, all that there are must do.
    lost = replace(record, control=make_trial(0, None, outcome="failed", role="control"))
    assert leaderboard(lost).best.delta == pytest.approx(0.05)


def test_trials_with_other_seeds_are_compared_by_way_of_the_control():
    def board(single):
        record = final_record()
        trials = [replace(t, value=single) if t.number == 0 else t for t in record.trials]
        return leaderboard(replace(record, trials=tuple(trials)))

    # The best is .018 above the control; the limits .004 and .0057 add up to .0069.
    assert board(0.410 + 0.018 - 0.0068).finished[2].tied_with_best
    assert not board(0.410 + 0.018 - 0.0070).finished[2].tied_with_best


def test_a_finalist_none_of_whose_repeats_has_a_score_stands_behind_those_that_have():
    record = make_record(
        make_trial(1, 0.43),
        make_trial(2, 0.44),
        repeat(3, 2, None, 1, outcome="diverged"),
        repeat(4, 1, 0.42, 1),
        make_trial(0, 0.425),
    )
    board = leaderboard(record)
    assert numbers(board.finished) == [1, 2, 0]
    assert [row.is_finalist for row in board.finished] == [True, False, False]


def test_the_noise_is_what_repeats_show_where_none_is_declared():
    board = leaderboard(final_record(noise=None))
    # Three of the control, two pairs .004 apart, and the prior's 4 e-6.
    squares = sum((x - 0.41333333) ** 2 for x in (0.410, 0.414, 0.416)) + 2 * 8e-6
    assert board.spread.source == "measured"
    assert board.spread.degrees_of_freedom == 5
    assert board.noise == pytest.approx(math.sqrt((squares + 4e-6) / 5))
    assert board.threshold > 2 * math.sqrt(2) * board.noise
    assert measured_noise(final_record()).deviation == pytest.approx(math.sqrt(squares / 4))


def test_noise_that_nobody_knows_is_assumed():
    board = leaderboard(make_record(make_trial(0, 0.43), control=control(), noise=None))
    assert board.spread.source == "assumed"
    assert board.best.tied_with_control


def test_rung_table():
    trials = [make_trial(i, 0.40 + i / 100, at_half=0.30 + i / 100) for i in range(4)]
    trials.append(make_trial(4, 0.2, outcome="stopped", at_half=0.1))
    trials.append(make_trial(5, 0.9, role="known"))
    half, full = rung_table(make_record(*trials, control=control()))
    assert (half.fraction, half.val_share, half.reached, half.stopped) == (0.5, 0.5, 5, 1)
    assert half.best == pytest.approx(0.33)
    assert half.median == pytest.approx(0.31)
    assert half.control == pytest.approx(0.36)
    assert half.rank_correlation == pytest.approx(1.0)
    assert (full.reached, full.stopped, full.rank_correlation) == (4, 0, None)


def test_rank_correlation_sees_a_misleading_rung():
    ends = [0.40, 0.41, 0.42, 0.43]
    trials = [make_trial(i, end, at_half=-end) for i, end in enumerate(ends)]
    assert rung_table(make_record(*trials))[0].rank_correlation == pytest.approx(-1.0)


def test_costs_count_what_stopping_saved():
    record = make_record(
        make_trial(0, 0.4), make_trial(1, 0.3, outcome="stopped"), control=control()
    )
    spent = costs(record)
    assert spent.unit == "hours"
    assert (spent.searched, spent.control, spent.saved) == pytest.approx((1.5, 1.0, 0.5))
    assert spent.total == pytest.approx(2.5)


def test_costs_in_gpu_hours():
    trial = replace(make_trial(0, 0.4), gpu_hours=8.0)
    spent = costs(make_record(trial))
    assert (spent.unit, spent.total) == ("GPU-hours", 8.0)


def test_costs_without_a_finished_trial_go_by_the_budget_share():
    assert costs(make_record(make_trial(0, 0.3, outcome="stopped"))).saved == pytest.approx(0.5)


def test_class_differences_by_gain():
    ours = make_trial(0, 0.43, **{"val/ap/car": 0.6, "val/ap/bus": 0.2, "val/ap/new": 1.0})
    theirs = make_trial(0, 0.41, role="control", **{"val/ap/car": 0.5, "val/ap/bus": 0.3})
    rows = class_differences(ours, theirs)
    assert [row.name for row in rows] == ["car", "bus"]
    assert [row.delta for row in rows] == pytest.approx([0.1, -0.1])


AXES = {
    "amplification": FloatDistribution(1.0, 2.0),
    "other": FloatDistribution(0.1, 10.0, log=True),
    "flag": CategoricalDistribution([True, False]),
}


def searched(count, effect):
    rng = random.Random(1)
    trials = []
    for number in range(count):
        a, other = rng.uniform(1, 2), rng.uniform(0.1, 10)
        sampled = {"amplification": a, "other": other, "flag": rng.random() < 0.5}
        outcome = "stopped" if number % 3 == 0 else "finished"
        trials.append(make_trial(number, effect(a), sampled=sampled, outcome=outcome))
    return make_record(*trials)


def test_importance_finds_the_axis_that_matters(caplog):
    shares = importance(searched(40, lambda a: -((a - 1.4) ** 2)), AXES)
    assert next(iter(shares)) == "amplification"
    assert shares["amplification"] > 0.5
    assert sum(shares.values()) == pytest.approx(1.0)
    assert not caplog.records


def test_importance_needs_enough_trials():
    assert importance(searched(19, lambda a: a), AXES) is None


def test_no_importance_when_all_trials_are_equal():
    assert importance(searched(24, lambda a: 0.4), AXES) is None


@pytest.mark.parametrize(
    ("key", "name"), [("val/nds", "NDS"), ("val/map", "mAP"), ("val/mave", "mAVE")]
)
def test_metric_name(key, name):
    assert metric_name(key) == name
