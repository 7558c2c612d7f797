import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from spec_samples import small_spec

from sweeps.budget import Course, course_of
from sweeps.forecast import Forecast, excess, forecast, read_forecast
from sweeps.simulation import MAX_TRIALS, Curves, Setting, rank_correlation, simulate
from sweeps.stopping import decide

RUNGS = ((0.25, 0.5), (0.5, 0.5), (1.0, 1.0))


def setting(**changes) -> Setting:
    given = {
        "course": Course(num_controls=1, num_finals=0, gpus=1, trials=12),
        "rule": "safe",
        "curves": Curves(fidelities=RUNGS),
        "noise_is_declared": True,
        "full_hours": 2.0,
        "slots": 2,
        **changes,
    }
    return Setting(**given)


def test_the_curves_are_those_of_the_model():
    curves = Curves(fidelities=((0.25, 0.25), (0.5, 1.0), (1.0, 1.0)), spread=0.006, noise=0.0)
    rng = np.random.default_rng(0)
    drawn = [curves.draw(rng) for _ in range(4000)]
    scores = np.array([scores for _, scores in drawn])
    assert np.allclose(scores[:, 2], [final for final, _ in drawn])
    assert scores.std(axis=0) == pytest.approx([0.006] * 3, rel=0.05)
    for rung, (fraction, expected) in enumerate(((0.25, 0.7), (0.5, 0.85))):
        assert rank_correlation(fraction) == pytest.approx(expected)
        measured = spearmanr(scores[:, rung], scores[:, 2]).statistic
        assert measured == pytest.approx(expected, abs=0.03)


def test_with_several_objectives_only_what_is_behind_on_all_is_stopped():
    stopped = []
    for number in (1, 2, 3):
        chosen = setting(num_objectives=number, rule="fast")
        runs = [simulate(chosen, np.random.default_rng(seed)) for seed in range(100)]
        stopped.append(sum(judged.stop for run in runs for judged in run.judgements))
    one, two, three = stopped
    assert one > 1.5 * two > 1.5**2 * three > 0


def test_fewer_scenes_make_scores_noisier():
    curves = Curves(fidelities=((0.5, 0.25), (1.0, 1.0)), spread=0.0, noise=0.01)
    rng = np.random.default_rng(0)
    scores = np.array([curves.draw(rng)[1] for _ in range(4000)])
    assert scores.std(axis=0) == pytest.approx([0.02, 0.01], rel=0.05)


@given(
    rule=st.sampled_from(["safe", "fast", "none"]),
    trials=st.integers(1, 20),
    slots=st.integers(1, 6),
    noise=st.floats(0, 0.02),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_every_simulated_trial_ends_as_the_real_rule_says(rule, trials, slots, noise, seed):
    curves = Curves(fidelities=RUNGS, noise=noise)
    course = Course(num_controls=1, num_finals=0, gpus=1, trials=trials)
    sweep = simulate(
        setting(rule=rule, curves=curves, course=course, slots=slots), np.random.default_rng(seed)
    )
    assert len(sweep.searched) == trials
    assert all(trial.end is not None for trial in sweep.trials)
    for place, judged in enumerate(sweep.judgements):
        earlier = sweep.judgements[:place]
        verdict = decide(
            rule,
            value=judged.value,
            peers=[other.value for other in earlier if other.rung == judged.rung],
            noise=noise,
            val_share=RUNGS[judged.rung][1],
        )
        assert verdict.stop == judged.stop
    for number, trial in enumerate(sweep.trials):
        stops = [j.rung for j in sweep.judgements if j.trial == number and j.stop]
        assert trial.stopped == bool(stops)
        assert trial.rungs == (stops[0] + 1 if stops else len(RUNGS))
    hours = sum(trial.end - trial.begun for trial in sweep.trials)
    spent = sum(2.0 * RUNGS[trial.rungs - 1][0] for trial in sweep.trials)
    assert hours == pytest.approx(spent)
    assert spent / slots <= sweep.hours + 1e-9 <= spent + 1e-9


def test_no_more_than_the_slots_run_at_once():
    sweep = simulate(setting(slots=3), np.random.default_rng(1))
    starts = [trial.begun for trial in sweep.trials]
    for now in starts:
        assert sum(t.begun <= now < t.end for t in sweep.trials) <= 3


def test_finals_come_after_the_search_and_run_to_their_end():
    course = Course(num_controls=2, num_finals=6, gpus=1, trials=8)
    sweep = simulate(setting(course=course, rule="fast"), np.random.default_rng(2))
    kinds = [trial.kind for trial in sweep.trials]
    assert kinds == ["control"] * 2 + ["search"] * 8 + ["finals"] * 6
    last = max(trial.end for trial in sweep.searched)
    finals = [trial for trial in sweep.trials if trial.kind == "finals"]
    assert all(trial.begun >= last and trial.rungs == len(RUNGS) for trial in finals)


@pytest.mark.parametrize("limits", [{"trials": 2500}, {"hours": 1e6}])
def test_a_long_search_runs_to_its_end_and_has_its_finals(limits) -> None:
    course = Course(num_controls=1, num_finals=6, gpus=1, **limits)
    sweep = simulate(setting(course=course, slots=8), np.random.default_rng(3))
    assert len(sweep.searched) == limits.get("trials", MAX_TRIALS)
    assert [trial.kind for trial in sweep.trials[-6:]] == ["finals"] * 6


@pytest.mark.parametrize("rule", ["safe", "fast"])
def test_verdicts_on_many_peers_are_those_of_the_real_rule(rule) -> None:
    course = Course(num_controls=0, num_finals=0, gpus=1, trials=2500)
    sweep = simulate(setting(course=course, rule=rule, slots=8), np.random.default_rng(4))
    late = [place for place, judged in enumerate(sweep.judgements) if judged.trial >= 2000]
    others = [sweep.judgements[place] for place in late]
    expected = [
        decide(
            rule,
            value=judged.value,
            peers=[j.value for j in sweep.judgements[:place] if j.rung == judged.rung],
            noise=setting().curves.noise,
            val_share=RUNGS[judged.rung][1],
        ).stop
        for place, judged in zip(late, others, strict=True)
    ]
    differing = sum(judged.stop != stop for judged, stop in zip(others, expected, strict=True))
    assert len(others) > 500
    assert differing < 0.01 * len(others)


@pytest.mark.parametrize(
    ("course", "limit"),
    [
        ({"gpu_hours": 20.0, "gpus": 1}, "gpu_hours"),
        ({"hours": 11.0}, "hours"),
        ({"hours": 11.0, "num_finals": 3}, "hours"),
        ({"gpu_hours": 20.0, "gpus": 1, "num_finals": 3}, "gpu_hours"),
        ({"trials": 4, "gpu_hours": 900.0, "gpus": 1}, "trials"),
    ],
)
@pytest.mark.parametrize("seed", range(8))
def test_a_limit_is_passed_by_one_training_at_most(course, limit, seed):
    given = Course(**{"num_controls": 1, "num_finals": 0, "gpus": 0, **course})
    sweep = simulate(setting(course=given, rule="safe", slots=3), np.random.default_rng(seed))
    hours = sum(trial.end - trial.begun for trial in sweep.trials)
    assert sweep.limit == limit
    if given.gpu_hours is not None:
        assert hours <= given.gpu_hours + 2.0
    if given.hours is not None:
        assert sweep.hours <= given.hours + (0.0 if given.num_finals else 2.0)
    finals = [trial for trial in sweep.trials if trial.kind == "finals"]
    assert len(finals) == given.num_finals


def spec(path: Path, **sections: str):
    given = {
        "objective": "{noise: 0.002}",
        "control": "false",
        "budget": "{trials: 12}",
        "stopping": "{rule: safe, rungs: [0.25, 0.5, 1.0]}",
        **sections,
    }
    return small_spec(path, **given)


def test_a_forecast_agrees_with_what_was_measured_before(tmp_path: Path):
    # The recorded simulation: 12 trials, spread .006, noise .002; the best one stopped 3 times of
    # 100 at .81 of the cost by the margin rule, 20 to 25 of 100 at about .55 by halving.
    safe = forecast(spec(tmp_path), full_hours=None, slots=2)
    assert 0.01 <= safe.losing_best <= 0.06
    assert 0.74 <= safe.trainings.mean / 12 <= 0.86
    fast = forecast(
        spec(tmp_path, stopping="{rule: fast, rungs: [0.25, 0.5, 1.0]}"), full_hours=None, slots=2
    )
    assert 0.06 <= fast.losing_best <= 0.25
    assert fast.trainings.mean < safe.trainings.mean - 1
    none = forecast(
        spec(tmp_path, stopping="{rule: none, rungs: [0.25, 0.5, 1.0]}"), full_hours=None, slots=2
    )
    assert (none.losing_best, none.trainings.mean) == (0.0, 12.0)


def test_more_noise_means_a_wider_margin(tmp_path: Path):
    quiet = forecast(spec(tmp_path, objective="{noise: 0.0005}"), full_hours=None, slots=1)
    loud = forecast(spec(tmp_path, objective="{noise: 0.02}"), full_hours=None, slots=1)
    assert loud.stopped.mean < quiet.stopped.mean / 2


def test_hours_come_from_the_time_of_a_training_and_the_slots(tmp_path: Path):
    plain = spec(
        tmp_path,
        stopping="{rule: none, rungs: [1.0]}",
        resources="{gpus: 1}",
        control="true",
        finalists="{top: 2, seeds: 2}",
    )
    # 12 trials, the control, and in the finals 2 x (2 finalists + the control).
    got = forecast(plain, full_hours=2.5, slots=4)
    assert got.trainings.mean == 12 + 1 + 6
    assert got.gpu_hours is not None
    assert got.hours is not None
    assert got.gpu_hours.mean == pytest.approx(19 * 2.5)
    assert got.hours.mean == pytest.approx(2.5 * (math.ceil(13 / 4) + math.ceil(6 / 4)))
    unknown = forecast(plain, full_hours=None, slots=4)
    assert (unknown.gpu_hours, unknown.hours, unknown.full_hours) == (None, None, None)
    assert unknown.trainings == got.trainings


def test_a_forecast_reads_back(tmp_path: Path):
    for hours in (None, 2.0):
        made = forecast(spec(tmp_path), full_hours=hours, slots=2)
        again = read_forecast(json.loads(json.dumps(made.dump())))
        assert isinstance(again, Forecast)
        assert again == made


def test_what_exceeds_the_budget_is_told_with_what_would_fit(tmp_path: Path):
    resources = "{gpus: 1}"
    enough = spec(tmp_path, resources=resources, budget="{trials: 12, gpu_hours: 40}")
    assert excess(enough, full_hours=2.0, slots=2) is None
    little = spec(tmp_path, resources=resources, budget="{trials: 12, gpu_hours: 10, hours: 50}")
    told = excess(little, full_hours=2.0, slots=2)
    assert told is not None
    assert "but budget.gpu_hours is 10 (" in told
    assert "hours is 50" not in told
    number = int(told.rsplit(" ", 1)[1])
    assert "or budget.trials to" in told

    def gpu_hours(trials: int) -> float:
        tried = spec(tmp_path, resources=resources, budget=f"{{trials: {trials}}}")
        span = forecast(tried, full_hours=2.0, slots=2).gpu_hours
        assert span is not None
        return span.mean

    assert gpu_hours(number) <= 10 < gpu_hours(number + 1)


def test_thousands_of_trials_are_forecast_and_judged_as_they_are_asked_for(tmp_path: Path) -> None:
    asked = {"stopping": "{rule: none, rungs: [1.0]}", "finalists": "{top: 2, seeds: 2}"}
    free = forecast(spec(tmp_path, budget="{trials: 3000}", **asked), full_hours=1.0, slots=8)
    assert (free.searched.mean, free.trainings.mean) == (3000, 3004)
    limited = spec(tmp_path, budget="{trials: 3000, hours: 150}", **asked)
    told = excess(limited, full_hours=1.0, slots=8)
    assert told is not None
    assert told.startswith(
        "3000 searched trials with control and finals would take about 376 hours"
    )
    # 150 rounds of 8, the last one for the finals; to one in a hundred.
    fitting = int(told.rsplit(" ", 1)[1])
    assert 1180 <= fitting <= 1192


def test_a_budget_for_less_than_control_one_trial_and_finals_is_refused(tmp_path: Path):
    def given(hours: float):
        return spec(
            tmp_path,
            control="true",
            finalists="{top: 1, seeds: 1}",
            budget=f"{{hours: {hours}}}",
        )

    # The control and one trial side by side, then the finalist and the control again.
    assert excess(given(4.1), full_hours=2.0, slots=2) is None
    told = excess(given(3.9), full_hours=2.0, slots=2)
    assert told is not None
    assert told.endswith("set budget.hours to 4")


def test_without_a_time_nor_a_number_of_trials_there_is_no_forecast(tmp_path: Path):
    with pytest.raises(ValueError, match="needs a number of trials"):
        forecast(spec(tmp_path, budget="{hours: 5}"), full_hours=None, slots=1)


def test_the_course_of_a_spec(tmp_path: Path):
    made = course_of(
        spec(tmp_path, objective="{}", control="{seeds: 3}", finalists="{top: 2, seeds: 4}")
    )
    # The control has two of the four seeds already.
    assert (made.num_controls, made.num_finals, made.num_trainings) == (3, 8 + 2, 3 + 12 + 10)
    assert course_of(spec(tmp_path)).num_finals == 0
