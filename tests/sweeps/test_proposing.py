"""Starting points, grids and conditional spaces, as proposals; more in test_search.py."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from spec_samples import small_spec

from sweeps.proposing import Proposer
from sweeps.spec import SweepSpec
from sweeps.trials import ParamValue, Role, TrialRecord
from sweeps.twin import Twin

CONDITIONAL = (
    "{mode: {choices: [a, b]}, x: {low: 0, high: 1, when: \"mode == 'a'\"},"
    " y: {low: 0.5, high: 1, when: \"mode == 'b'\"}}"
)


def ended(
    number: int, sampled: Mapping[str, ParamValue], value: float | None, role: Role = "search"
) -> TrialRecord:
    return TrialRecord(
        number=number,
        label=f"t{number:03d}",
        role=role,
        params=sampled,
        sampled=sampled,
        seed=0,
        config_hash="",
        outcome="diverged" if value is None else "finished",
        told=value,
        state="fail" if value is None else "complete",
    )


def proposer(spec: SweepSpec, trials: list[TrialRecord]) -> Proposer:
    return Proposer(spec, spec.build_space(), trials)


def twin(source: Proposer) -> optuna.Study:
    """What Optuna's samplers are told."""
    assert isinstance(source._source, Twin)
    return source._source._study


def run(spec: SweepSpec, count: int, trials: list[TrialRecord]) -> list[TrialRecord]:
    """So many proposals, each ended before the next; b is better than a."""
    source = proposer(spec, trials)
    for _ in range(count):
        sampled = source.propose()
        value = 0.1 if sampled.get("mode") == "a" else 0.5 + 0.1 * float(sampled.get("y", 0.0))
        trials.append(ended(len(trials), sampled, value))
        source.learn(trials[-1])
    return trials


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_starting_points_come_first_and_once(tmp_path: Path, sampler: str) -> None:
    spec = small_spec(
        tmp_path,
        start="[{x: 0.25, y: 0.75}, {x: 0.5}]",
        search=f"{{sampler: {sampler}}}",
    )
    known = ended(0, {"x": 0.9, "y": 0.1}, 0.2, role="known")
    first = run(spec, 1, [known])
    assert first[1].sampled == {"x": 0.25, "y": 0.75}
    # A new driver goes on with the second, whose y is the knob's default.
    rest = run(spec, 2, first)
    assert rest[2].sampled == {"x": 0.5, "y": 0.5}
    assert rest[3].sampled not in [trial.sampled for trial in rest[:3]]


def test_starting_points_may_run_at_once(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, start="[{x: 0.25, y: 0.75}, {x: 0.5}]", search="{sampler: tpe}")
    source = proposer(spec, [])
    assert [source.propose()["x"] for _ in range(2)] == [0.25, 0.5]
    source.learn(ended(1, {"x": 0.5, "y": 0.5}, 0.3))
    source.learn(ended(0, {"x": 0.25, "y": 0.75}, None))
    told = [(t.number, t.params["x"], t.value) for t in twin(source).trials]
    assert told == [(0, 0.25, 0.3), (1, 0.5, 0.3)]


def test_a_grid_visits_each_feasible_point_once_and_a_resume_goes_on(tmp_path: Path) -> None:
    spec = small_spec(
        tmp_path,
        space="{x: {low: 0, high: 1, points: 3}, y: {low: 0, high: 1, step: 0.5}}",
        search="{sampler: grid}",
        budget="{hours: 1}",
    )
    assert spec.budget.trials == 8  # of nine, (1, 1) breaks x + y <= 1.5
    trials = run(spec, 3, [])
    trials[1] = ended(1, trials[1].sampled, None)  # a failure is no reason to come again
    trials = run(spec, 5, trials)
    points = [(trial.sampled["x"], trial.sampled["y"]) for trial in trials]
    halves = (0.0, 0.5, 1.0)
    assert points == [(x, y) for x in halves for y in halves if x + y <= 1.5]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_proposal_has_its_active_axes_alone(tmp_path: Path, sampler: str) -> None:
    spec = small_spec(
        tmp_path,
        space=CONDITIONAL,
        constraints="[x + y <= 1, x <= 0.8]",  # never both: only the second applies
        search=f"{{sampler: {sampler}, startup: 4}}",
        budget="{trials: 30}",
    )
    trials = run(spec, 10, [])
    trials.append(ended(10, {"mode": "a", "x": 0.3}, None))
    trials = run(spec, 10, trials)  # as after a resume, with a trial that diverged
    for trial in trials:
        assert set(trial.sampled) == {"mode", "x" if trial.sampled["mode"] == "a" else "y"}
        assert float(trial.sampled.get("x", 0.0)) <= 0.8
    assert {trial.sampled["mode"] for trial in trials} == {"a", "b"}


def test_tpe_learns_in_a_conditional_space(tmp_path: Path) -> None:
    spec = small_spec(
        tmp_path,
        space=CONDITIONAL,
        constraints="[]",
        search="{sampler: tpe, startup: 6}",
        budget="{trials: 30}",
    )
    late = run(spec, 30, [])[10:]
    assert sum(trial.sampled["mode"] == "b" for trial in late) >= 14


FOREIGN = "[{params: {x: 0.1, y: 0.1}, NDS: 0.9}, {params: {x: 0.2, y: 0.1}, NDS: 0.8}]"


def known_and_own(*values: float) -> list[TrialRecord]:
    """Two known points and trials with these scores."""
    known = [
        ended(i, {"x": x, "y": 0.1}, v, "known")
        for i, (x, v) in enumerate([(0.1, 0.9), (0.2, 0.8)])
    ]
    return known + [ended(2 + i, {"x": 0.5, "y": 0.1 * i}, v) for i, v in enumerate(values)]


def test_tpe_takes_the_order_of_foreign_points_and_not_their_level(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, search="{sampler: tpe}", known=FOREIGN)
    alone = proposer(spec, known_and_own())
    assert [t.value for t in twin(alone).trials] == [0.9, 0.8]
    later = proposer(spec, known_and_own(0.4, 0.5))
    assert [t.value for t in twin(later).trials] == pytest.approx([0.5, 0.4, 0.4, 0.5])
    later.propose()
    later.learn(ended(4, {"x": 0.9, "y": 0.2}, 0.7))
    assert [t.value for t in twin(later).trials] == pytest.approx([0.55, 0.45, 0.4, 0.5, 0.7])


def test_tpe_takes_points_of_this_code_as_they_are(tmp_path: Path) -> None:
    same = FOREIGN.replace("}, NDS", "}, code: same, NDS")
    spec = small_spec(tmp_path, search="{sampler: tpe}", known=same)
    told = [t.value for t in twin(proposer(spec, known_and_own(0.4, 0.5))).trials]
    assert told == [0.9, 0.8, 0.4, 0.5]


def test_tpe_takes_the_gain_of_foreign_points_over_their_control(tmp_path: Path) -> None:
    compared = FOREIGN.replace("}, NDS", "}, control: 0.85, NDS")
    spec = small_spec(tmp_path, search="{sampler: tpe}", known=compared)
    source = proposer(spec, known_and_own(0.4, 0.5))
    control = replace(ended(0, {}, 0.45, "control"), value=0.45)
    source.observe(control)
    assert [t.value for t in twin(source).trials] == pytest.approx([0.5, 0.4, 0.4, 0.5])


def test_cmaes_closes_in_and_meets_the_constraints(tmp_path: Path) -> None:
    spec = small_spec(
        tmp_path, search="{sampler: cmaes, seed: 0, startup: 4}", budget="{trials: 80}"
    )
    space, source = spec.build_space(), proposer(spec, [])
    values = []
    for number in range(80):
        sampled = source.propose()
        assert space.is_feasible(sampled)
        x, y = float(sampled["x"]), float(sampled["y"])
        values.append(-((x - 0.3) ** 2) - (y - 0.6) ** 2)
        # One in ten goes wrong: it is told as the worst, and the covariance lives on.
        source.learn(ended(number, sampled, None if number % 10 == 9 else values[-1]))
    first, last = values[:20], values[-20:]
    assert sorted(last)[10] > -0.01 > sorted(first)[10]
