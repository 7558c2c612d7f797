"""Proposals and decisions of a sweep with several objectives."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from pareto_samples import pareto_spec, scored
from spec_samples import small_spec
from test_search import Driver

from sweeps.hypervolume import hypervolume
from sweeps.objectives import objectives_of
from sweeps.pareto_proposing import ParetoProposer, full_values
from sweeps.proposing import Proposer
from sweeps.record import Ledger
from sweeps.spec import SweepSpec
from sweeps.task import to_result
from sweeps.trials import ParamValue, RungResult, TrialRecord

optuna.logging.set_verbosity(optuna.logging.ERROR)
TIME = "{noise: 0.01, also: [{metric: time, noise: 0.5}]}"
THREE = (
    "{noise: 0.01, also: [{metric: time, noise: 0.5},"
    " {metric: AP, noise: 0.01, classes: [pedestrian, bicycle]}]}"
)


def spec_of(path: Path, objective: str = TIME, **sections: str) -> SweepSpec:
    sections = {"search": "{sampler: tpe, startup: 4}", "budget": "{trials: 40}", **sections}
    return small_spec(path, objective=objective, **sections)


def proposer(spec: SweepSpec, trials: list[TrialRecord]) -> ParetoProposer:
    return ParetoProposer(spec, spec.build_space(), trials)


def ended(number: int, sampled: dict[str, ParamValue]) -> TrialRecord:
    """Slow where NDS is high: x trades one for the other, y is wrong away from 0.3."""
    x, y = float(sampled["x"]), float(sampled["y"])
    off = (y - 0.3) ** 2
    trial = scored(number, 0.4 + 0.1 * x - off, 100 + 50 * x + 100 * off, (0.3 - off, 0.1))
    return replace(trial, sampled=sampled, params=sampled)


def run(spec: SweepSpec, count: int, trials: list[TrialRecord]) -> list[TrialRecord]:
    source = proposer(spec, trials)
    for _ in range(count):
        trials.append(ended(len(trials), source.propose()))
        source.learn(trials[-1])
    return trials


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
@pytest.mark.parametrize("objective", [TIME, THREE])
def test_points_are_feasible_differ_and_go_on_after_a_resume(
    tmp_path: Path, sampler: str, objective: str
) -> None:
    spec = spec_of(tmp_path, objective, search=f"{{sampler: {sampler}, startup: 4}}")
    trials = run(spec, 4, run(spec, 6, []))
    points = [(trial.sampled["x"], trial.sampled["y"]) for trial in trials]
    assert len(set(points)) == 10
    assert all(spec.build_space().is_feasible(trial.sampled) for trial in trials)


def test_the_same_seed_gives_the_same_points(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert run(spec, 8, []) == run(spec, 8, [])


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_the_search_widens_the_front_more_than_chance_does(tmp_path: Path, sampler: str) -> None:
    def volume(name: str, seed: int) -> float:
        spec = spec_of(tmp_path, search=f"{{sampler: {name}, startup: 4, seed: {seed}}}")
        points = [
            (trial.rungs[-1].metrics["val/nds"] / 0.5, (250 - trial.rungs[-1].seconds) / 150)
            for trial in run(spec, 16, [])
        ]
        return hypervolume(points)

    seeds = range(2 if sampler == "gp" else 5)
    ours = [volume(sampler, seed) for seed in seeds]
    assert sum(ours) > sum(volume("random", seed) for seed in seeds)


def test_starting_points_come_first_and_a_grid_has_its_own(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, start="[{x: 0.25, y: 0.75}, {x: 0.5}]")
    source = proposer(spec, [])
    assert [source.propose() for _ in range(2)] == [{"x": 0.25, "y": 0.75}, {"x": 0.5, "y": 0.5}]
    assert proposer(spec, run(spec, 1, [])).propose() == {"x": 0.5, "y": 0.5}
    grid = spec_of(
        tmp_path,
        space="{x: {low: 0, high: 1, points: 3}, y: {low: 0, high: 1, points: 2}}",
        search="{sampler: grid}",
        budget="{hours: 1}",
    )
    points = [(t.sampled["x"], t.sampled["y"]) for t in run(grid, 2, run(grid, 3, []))]
    assert points == [(0.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.5, 1.0), (1.0, 0.0)]


def test_conditional_spaces_have_their_active_axes_alone(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        space=(
            "{mode: {choices: [a, b]}, x: {low: 0, high: 1, when: \"mode == 'a'\"},"
            " y: {low: 0.5, high: 1, when: \"mode == 'b'\"}}"
        ),
        constraints="[x <= 0.8]",
    )
    source, seen = proposer(spec, []), set()
    for number in range(14):
        sampled = source.propose()
        assert set(sampled) == {"mode", "x" if sampled["mode"] == "a" else "y"}
        seen.add(sampled["mode"])
        trial = scored(number, 0.4 + number / 100, 100.0 - number)
        source.learn(replace(trial, sampled=sampled, params=sampled))
    assert seen == {"a", "b"}


def told(source: ParetoProposer) -> dict[int, Any]:
    """What the samplers are told: (state, values, constraint)."""
    return {
        number: (trial.state.name, trial.values, trial.constraints.get("sound"))
        for number, trial in source._ended().items()
    }


def test_what_went_wrong_is_infeasible_with_the_worst_of_each(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    trials = [
        scored(0, 0.42, 120.0),
        scored(1, 0.40, 100.0),
        scored(2, 0.5, 1.0, outcome="diverged"),
        replace(scored(3, 0.41, 50.0, outcome="stopped"), reason="health: loss_rising"),
        scored(4, 0.4, 100.0, outcome=None),
    ]
    point = {"x": 0.5, "y": 0.5}
    source = proposer(spec, [replace(trial, sampled=point) for trial in trials])
    assert told(source) == {
        0: ("COMPLETE", [0.42, 120.0], -1.0),
        1: ("COMPLETE", [0.40, 100.0], -1.0),
        2: ("COMPLETE", [0.40, 120.0], 1.0),
        3: ("COMPLETE", [0.41, 50.0], 1.0),
        4: ("RUNNING", None, None),
    }
    fine = proposer(spec, [replace(trial, sampled=point) for trial in trials[:2]])
    assert told(fine)[0] == ("COMPLETE", [0.42, 120.0], None)
    alone = proposer(spec, [replace(trials[2], number=0, sampled=point)])
    assert told(alone) == {0: ("FAIL", None, None)}
    assert spec.build_space().is_feasible(alone.propose())


def test_the_search_leaves_a_region_where_trials_diverge(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, search="{sampler: tpe, startup: 6}")
    source, wrong = proposer(spec, []), []
    for number in range(40):
        sampled = source.propose()
        trial = ended(number, sampled)
        if float(sampled["x"]) > 0.5:  # where the NDS is highest
            trial = replace(trial, outcome="diverged", rungs=(), value=None, told=None)
        wrong.append(trial.outcome == "diverged")
        source.learn(trial)
    assert sum(wrong[20:]) < sum(wrong[:20])
    assert sum(wrong[20:]) <= 6


def test_stopped_trials_are_estimated_on_every_objective(tmp_path: Path) -> None:
    objectives = objectives_of(spec_of(tmp_path, THREE))
    stopped = scored(3, 0.38, 80.0, (0.2, 0.1), outcome="stopped", gain=0.0)
    finished = [scored(i, 0.4, 100.0, gain=gain) for i, gain in enumerate((0.01, 0.02, 0.07))]
    values = full_values([*finished, stopped, scored(4, 0.4, 1.0, outcome="failed")], objectives)
    assert sorted(values) == [0, 1, 2, 3]
    # The record's own estimate; the time doubles; both APs gain the median of 0.02.
    assert values[3] == pytest.approx((0.38, 80.0, 0.17))
    alone = full_values([stopped], objectives)
    assert alone[3] == pytest.approx((0.38, 80.0, 0.15))


@pytest.fixture
def ledgers() -> Iterator[list[Ledger]]:
    opened: list[Ledger] = []
    yield opened
    for ledger in opened:
        ledger.close()


class Timed(Driver):
    """Plays Tune's part, with rungs that took their time."""

    def at(self, tune_id: str, index: int, nds: float, seconds: float, **metrics: float):
        fraction, val_share = self.spec.stopping.fidelities[index]
        rung = RungResult(
            fraction=fraction,
            val_share=val_share,
            epoch=fraction,
            step=index,
            metrics={"val/nds": nds, **metrics},
            checkpoint=None,
            seconds=seconds,
        )
        self.last = to_result(rung)
        verdict = self.searcher.judge(tune_id, self.last)
        if verdict.stop:
            self.searcher.on_trial_complete(tune_id, {**self.last, "done": True})
        return verdict

    def train(self, tune_id: str, nds: float, seconds: float) -> None:
        for index, share in enumerate((0.5, 1.0)):
            assert not self.at(tune_id, index, nds, seconds * share).stop
        self.end(tune_id)


def test_a_searcher_takes_the_proposer_that_its_objectives_need(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    several = Timed(spec_of(tmp_path / "several"), ledgers)
    assert isinstance(several.searcher._proposer, ParetoProposer)
    single = Timed(small_spec(tmp_path / "single"), ledgers)
    assert isinstance(single.searcher._proposer, Proposer)


def test_a_trial_goes_on_while_one_objective_speaks_for_it(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    spec = spec_of(tmp_path, stopping="{rule: safe, rungs: [0.5, 1.0]}")
    driver = Timed(spec, ledgers)
    driver.train(driver.start()[0], 0.3, 90.0)  # the control
    for i in range(4):
        driver.train(driver.start()[0], 0.4 + i / 100, 100.0 + i)
    quick, slow = driver.start()[0], driver.start()[0]
    verdict = driver.at(quick, 0, 0.1, 30.0)
    assert not verdict.stop
    assert "NDS: 0.1000 is below" in verdict.reason
    assert "time: 30.0000 is below" in verdict.reason
    verdict = driver.at(slow, 0, 0.1, 80.0)
    assert verdict.stop
    assert "time: 80.0000 is above" in verdict.reason
    trial = next(t for t in driver.ledger.trials.values() if t.outcome == "stopped")
    assert trial.reason == verdict.reason
    # The study's value is that of the first objective: no rung of the finished ones gained any.
    assert trial.told == pytest.approx(0.1)


def test_a_trial_that_does_not_report_an_objective_fails(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    driver = Timed(spec_of(tmp_path, THREE, control="false"), ledgers)
    trial, task = driver.start()
    verdict = driver.at(trial, 0, 0.4, 10.0, **{"val/ap/bicycle": 0.1})
    told = "a trial must report val/ap/pedestrian at every rung, but did not"
    assert (verdict.stop, verdict.reason) == (True, told)
    record = driver.trial(task.label)
    assert (record.outcome, record.reason, record.rungs) == ("failed", told, ())


def test_the_finals_repeat_the_front(tmp_path: Path, ledgers: list[Ledger]) -> None:
    spec = spec_of(tmp_path, budget="{trials: 4}", finalists="{top: 3, seeds: 1}", control="false")
    driver = Timed(spec, ledgers)
    for nds, seconds in ((0.42, 120.0), (0.43, 130.0), (0.41, 125.0), (0.40, 90.0)):
        driver.train(driver.start()[0], nds, seconds)
    repeated = []
    for _ in range(3):
        tune_id, task = driver.start()
        assert task.role == "finalist"
        repeated.append(driver.trial(task.label).repeats)
        driver.train(tune_id, 0.4, 100.0)
    assert repeated == [1, 0, 3]  # the front, the best NDS first; t002 is behind t000


ALSO = {
    2: "[{metric: time, noise: 1}]",
    3: "[{metric: time, noise: 1}, {metric: AP, classes: [bicycle], noise: 0.01}]",
    4: "[{metric: time, noise: 1}, {metric: AP, classes: [bicycle], noise: 0.01},"
    " {metric: AP, classes: [pedestrian], noise: 0.01}]",
}


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
@pytest.mark.parametrize("num_objectives", ALSO)
def test_the_time_of_a_proposal_after_24_trials(
    benchmark: Any, tmp_path: Path, sampler: str, num_objectives: int
) -> None:
    spec = pareto_spec(tmp_path, ALSO[num_objectives], sampler=sampler)
    space, rng = spec.build_space(), np.random.default_rng(0)
    trials = []
    for number in range(25):
        sampled = space.draw(rng)
        a, r = float(sampled["amplification"]), float(sampled["residual_weight"])
        made = scored(number, 0.4 + a / 50 - r / 30, 100 + 9 * a, (0.3 - a / 40 + r / 20, r / 10))
        trials.append(replace(made, sampled=sampled, params=sampled))
    running = replace(trials[-1], outcome=None, rungs=(), value=None, told=None)
    source = ParetoProposer(spec, space, [*trials[:-1], running])
    assert space.is_feasible(benchmark.pedantic(source.propose, rounds=3, iterations=1))
