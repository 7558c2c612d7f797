import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler
from ray.tune.search import Searcher
from spec_samples import small_spec

from sweeps.listeners import Audience, Listener
from sweeps.record import Ledger, RungResult, TrialRecord
from sweeps.search import FeasibleSampler, Proposer, StudySearcher, config_hash, impute
from sweeps.spec import SweepSpec
from sweeps.stopping import Verdict
from sweeps.trial import TASK_KEY, Ending, Task, to_result


@pytest.fixture
def ledgers() -> Iterator[list[Ledger]]:
    opened: list[Ledger] = []
    yield opened
    for ledger in opened:
        ledger.close()


class Driver:
    """Plays Tune's part by hand."""

    def __init__(self, spec: SweepSpec, ledgers: list[Ledger], *, slots: int = 100) -> None:
        spec.directory.mkdir(parents=True, exist_ok=True)
        self.spec = spec
        self.events: list[str] = []
        self.ledger = Ledger(spec.storage_url, spec.name, mode=spec.objective.mode)
        ledgers.append(self.ledger)
        self.searcher = StudySearcher(spec, self.ledger, Audience([Notes(self)]), lambda: slots)
        self._count = 0

    def start(self) -> tuple[str, Task]:
        config = self.try_start()
        assert isinstance(config, tuple), config
        return config

    def try_start(self) -> tuple[str, Task] | str | None:
        self._count += 1
        tune_id = f"id{self._count}"
        config = self.searcher.suggest(tune_id)
        if not isinstance(config, dict):
            return config
        return tune_id, Task(**json.loads(config[TASK_KEY]))

    def rung(self, tune_id: str, index: int, value: float, *, key: str = "val/nds") -> Verdict:
        fraction, val_share = self.spec.stopping.fidelities[index]
        rung = RungResult(
            fraction=fraction,
            val_share=val_share,
            epoch=fraction,
            step=index,
            metrics={key: value},
            checkpoint=f"/ckpt/{index}.pth",
            seconds=10.0 * (index + 1),
        )
        self.last = to_result(rung)
        verdict = self.searcher.judge(tune_id, self.last)
        if verdict.stop:
            self.searcher.on_trial_complete(tune_id, {**self.last, "done": True})
        return verdict

    def end(self, tune_id: str, outcome: Any = "finished", reason: str = "") -> None:
        result = to_result(Ending(outcome=outcome, reason=reason, seconds=33.0))
        self.searcher.on_trial_complete(tune_id, result)

    def finish(self, tune_id: str, *values: float) -> None:
        for index, value in enumerate(values):
            assert not self.rung(tune_id, index, value).stop
        self.end(tune_id)

    def trial(self, label: str) -> TrialRecord:
        return self.ledger.trials[label]


class Notes(Listener):
    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def on_trial_start(self, trial: TrialRecord) -> None:
        self.driver.events.append(f"start {trial.label} {trial.attempts}")

    def on_rung(self, trial: TrialRecord, rung: RungResult, verdict: Verdict) -> None:
        assert trial.rungs[-1] == rung
        self.driver.events.append(f"rung {trial.label} {rung.fraction:g} {verdict.stop}")

    def on_trial_end(self, trial: TrialRecord) -> None:
        self.driver.events.append(f"end {trial.label} {trial.outcome}")


def test_the_control_comes_first_then_points_up_to_the_budget(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    driver = Driver(small_spec(tmp_path, budget="{trials: 2}"), ledgers)
    (_, control), (_, first), (_, second) = driver.start(), driver.start(), driver.start()
    assert control.label.startswith("control-")
    assert control.params == {"enable_aqr": False, "seed": 3}
    assert (first.label[:5], second.label[:5]) == ("t000-", "t001-")
    assert first.params.keys() == {"x", "y", "seed"}
    assert first.params["seed"] == 3
    assert driver.try_start() == Searcher.FINISHED


def test_no_control_if_the_spec_says_so(tmp_path: Path, ledgers: list[Ledger]) -> None:
    driver = Driver(small_spec(tmp_path, control="false"), ledgers)
    assert driver.start()[1].label.startswith("t000-")


def test_no_more_trials_at_once_than_slots(tmp_path: Path, ledgers: list[Ledger]) -> None:
    driver = Driver(small_spec(tmp_path), ledgers, slots=2)
    first, _ = driver.start()
    driver.start()
    assert driver.try_start() is None
    driver.finish(first, 0.1, 0.2)
    assert driver.start()[1].label.startswith("t001-")


def test_no_new_trial_after_the_hours(
    tmp_path: Path, ledgers: list[Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(small_spec(tmp_path, budget="{trials: 9, hours: 1}"), ledgers)
    tune_id, _ = driver.start()
    monkeypatch.setattr(driver.searcher, "_started_at", driver.searcher._started_at - 3600)
    assert driver.try_start() == Searcher.FINISHED
    driver.finish(tune_id, 0.1, 0.2)
    # The hours before a resume count.
    assert Driver(driver.spec, ledgers).try_start() == Searcher.FINISHED


def test_scores_are_in_the_study_before_the_verdict_is(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    driver = Driver(small_spec(tmp_path, control="false"), ledgers)
    tune_id, task = driver.start()
    driver.rung(tune_id, 0, 0.3)
    study = optuna.load_study(study_name="small", storage=driver.spec.storage_url)
    assert study.trials[0].intermediate_values == {0: 0.3}
    (read,) = driver.ledger.read().trials
    assert read.rungs[0].metrics == {"val/nds": 0.3}
    assert read.rungs[0].checkpoint == "/ckpt/0.pth"
    driver.finish(tune_id, 0.3, 0.4)
    (read,) = driver.ledger.read().trials
    assert (read.outcome, read.value, read.seconds) == ("finished", 0.4, 33.0)
    assert driver.events == [
        f"start {task.label} 1",
        *[f"rung {task.label} {fraction} False" for fraction in ("0.5", "0.5", "1")],
        f"end {task.label} finished",
    ]


def test_a_stopped_trial_is_told_its_rung_and_the_median_gap(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    spec = small_spec(tmp_path, stopping="{rule: fast, rungs: [0.5, 1.0]}", budget="{trials: 5}")
    driver = Driver(spec, ledgers)
    driver.finish(driver.start()[0], 0.9, 0.95)
    for values in ((0.30, 0.40), (0.31, 0.45)):
        driver.finish(driver.start()[0], *values)
    tune_id, task = driver.start()
    assert driver.rung(tune_id, 0, 0.2).stop
    trial = driver.trial(task.label)
    # Gaps 0.10 and 0.14; the control is not one of them.
    assert trial.told == pytest.approx(0.2 + 0.12)
    assert (trial.outcome, trial.imputed, trial.value) == ("stopped", True, None)
    assert trial.reason == "rank 3 of 3 at this rung, the best 2 go on"
    assert driver.ledger.read().trials[2] == trial


@pytest.mark.parametrize(
    ("finished", "expected"),
    [([], 0.2), ([[0.3, 0.4]], 0.3), ([[0.3, 0.4], [0.3, 0.5], [0.0, 0.9]], 0.4)],
)
def test_imputation(finished: list[list[float]], expected: float) -> None:
    assert impute(0, 0.2, finished) == pytest.approx(expected)


def test_control_and_known_points_are_no_peers_and_the_control_is_never_stopped(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    spec = small_spec(
        tmp_path,
        stopping="{rule: fast, rungs: [0.5, 1.0]}",
        known="[{params: {x: 0.1, y: 0.1}, NDS: 0.9}, {params: {x: 0.2, y: 0.1}, NDS: 0.9}]",
    )
    driver = Driver(spec, ledgers)
    control, _ = driver.start()
    first, _ = driver.start()
    driver.rung(control, 0, 0.9)
    assert driver.rung(first, 0, 0.1).reason == "0 of 2 peers at this rung"
    for _ in range(2):
        driver.rung(driver.start()[0], 0, 0.5)
    verdict = driver.rung(control, 0, 0.0)
    assert (verdict.stop, verdict.reason) == (False, "the control runs to its end")


def test_known_points_are_in_the_study_once(tmp_path: Path, ledgers: list[Ledger]) -> None:
    spec = small_spec(tmp_path, known="[{params: {x: 0.1}, NDS: 0.7}]")
    for _ in range(2):
        driver = Driver(spec, ledgers)
        (known,) = driver.ledger.read().trials
        assert (known.role, known.label[:5], known.value) == ("known", "t000-", 0.7)
        assert known.sampled == {"x": 0.1, "y": 0.5}
    driver.start()
    assert driver.start()[1].label.startswith("t001-")


@pytest.mark.parametrize("outcome", ["diverged", "failed"])
def test_a_trial_without_a_result_does_not_end_the_sweep(
    tmp_path: Path, ledgers: list[Ledger], outcome: str
) -> None:
    driver = Driver(small_spec(tmp_path, control="false"), ledgers)
    tune_id, task = driver.start()
    driver.end(tune_id, outcome, "the loss is nan")
    trial = driver.trial(task.label)
    assert (trial.outcome, trial.reason, trial.state) == (outcome, "the loss is nan", "fail")
    assert driver.start()[1].label.startswith("t001-")


def test_a_training_without_its_last_rung_has_failed(tmp_path: Path, ledgers: list[Ledger]) -> None:
    driver = Driver(small_spec(tmp_path), ledgers)
    tune_id, task = driver.start()
    driver.rung(tune_id, 0, 0.3)
    driver.end(tune_id)
    assert driver.trial(task.label).outcome == "failed"
    assert "must report 2 rungs, but ended after 1" in driver.trial(task.label).reason


def test_a_rung_out_of_order_fails_the_trial(tmp_path: Path, ledgers: list[Ledger]) -> None:
    driver = Driver(small_spec(tmp_path), ledgers)
    tune_id, task = driver.start()
    assert driver.rung(tune_id, 1, 0.3).stop
    assert driver.trial(task.label).outcome == "failed"
    assert "in order" in driver.trial(task.label).reason


def test_a_dead_process_fails_its_trial_with_the_reason(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    driver = Driver(small_spec(tmp_path), ledgers)
    tune_id, task = driver.start()
    driver.searcher.note_restart(tune_id)
    driver.searcher.note_death(tune_id, "out of memory")
    driver.searcher.on_trial_complete(tune_id, error=True)
    trial = driver.trial(task.label)
    assert (trial.outcome, trial.attempts) == ("failed", 2)
    assert trial.reason == "the trial's process ended: out of memory"


def test_a_process_that_was_replaced_ends_as_its_training_does(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    driver = Driver(small_spec(tmp_path), ledgers)
    tune_id, task = driver.start()
    driver.rung(tune_id, 0, 0.3)
    driver.searcher.note_death(tune_id, "out of memory")
    driver.searcher.note_restart(tune_id)
    driver.rung(tune_id, 1, 0.4)
    driver.end(tune_id)
    assert (driver.trial(task.label).outcome, driver.trial(task.label).value) == ("finished", 0.4)


def test_a_new_driver_takes_up_what_was_running(tmp_path: Path, ledgers: list[Ledger]) -> None:
    driver = Driver(small_spec(tmp_path, budget="{trials: 3}"), ledgers)
    driver.start()
    done, done_task = driver.start()
    halfway, halfway_task = driver.start()
    driver.finish(done, 0.3, 0.4)
    driver.rung(halfway, 0, 0.2)

    again = Driver(driver.spec, ledgers)
    tune_id, first = again.start()
    _, second = again.start()
    _, third = again.start()
    assert again.try_start() == Searcher.FINISHED
    assert first.label.startswith("control-")
    assert (second.label, second.attempt, second.checkpoint, second.seconds) == (
        halfway_task.label,
        2,
        "/ckpt/0.pth",
        10.0,
    )
    assert second.params == halfway_task.params
    assert third.label.startswith("t002-")
    assert done_task.label not in {first.label, second.label, third.label}
    # A rung that comes again keeps its first score.
    again.rung("id2", 0, 0.9)
    again.rung("id2", 1, 0.25)
    again.end("id2")
    assert [r.metrics["val/nds"] for r in again.trial(second.label).rungs] == [0.2, 0.25]
    again.finish(tune_id, 0.1, 0.1)
    assert [t.number for t in again.ledger.read().trials] == [0, 1, 2]


def test_a_trial_killed_after_its_last_rung_is_finished_without_training(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    driver = Driver(small_spec(tmp_path, budget="{trials: 1}", control="false"), ledgers)
    tune_id, task = driver.start()
    driver.rung(tune_id, 0, 0.2)
    driver.rung(tune_id, 1, 0.3)
    again = Driver(driver.spec, ledgers)
    assert again.trial(task.label).value == 0.3
    assert again.try_start() == Searcher.FINISHED


def test_minimised_errors_are_told_as_they_are(tmp_path: Path, ledgers: list[Ledger]) -> None:
    spec = small_spec(
        tmp_path,
        objective="{metric: mATE, mode: min, noise: 0.01}",
        stopping="{rule: fast, rungs: [0.5, 1.0]}",
        control="false",
    )
    driver = Driver(spec, ledgers)
    for value in (0.3, 0.4):
        tune_id, _ = driver.start()
        driver.rung(tune_id, 0, value, key="val/mate")
    tune_id, task = driver.start()
    assert driver.rung(tune_id, 0, 0.5, key="val/mate").stop
    assert driver.trial(task.label).told == 0.5


def test_what_is_raised_is_kept(tmp_path: Path, ledgers: list[Ledger]) -> None:
    driver = Driver(small_spec(tmp_path), ledgers)
    with pytest.raises(KeyError):
        driver.searcher.on_trial_complete("nobody")
    assert isinstance(driver.searcher.failure, KeyError)


def test_the_hash_follows_params_and_training(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    longer = small_spec(tmp_path, train="{config: configs/nano.py, epochs: 2}")
    assert config_hash(spec, {"x": 1.0, "y": 2.0}) == config_hash(spec, {"y": 2.0, "x": 1.0})
    assert config_hash(spec, {"x": 1.0}) != config_hash(spec, {"x": 1.1})
    assert config_hash(spec, {"x": 1.0}) != config_hash(longer, {"x": 1.0})


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_every_proposal_meets_the_constraints(tmp_path: Path, sampler: str) -> None:
    spec = small_spec(
        tmp_path,
        search=f"{{sampler: {sampler}, seed: 1, startup: 3}}",
        # The optimum of x + y lies far outside.
        constraints="[x + y <= 0.5]",
    )
    space = spec.build_space()
    proposer = Proposer(spec, space, [])
    for number in range(5):
        sampled = proposer.propose()
        assert space.is_feasible(sampled)
        value = float(sampled["x"]) + float(sampled["y"])
        proposer.learn(ended(number, sampled, value))
    if sampler == "gp":
        assert value > 0.45


def ended(number: int, sampled: Any, value: float | None) -> TrialRecord:
    return TrialRecord(
        number=number,
        label=f"t{number:03d}",
        role="search",
        params=sampled,
        sampled=sampled,
        seed=0,
        config_hash="",
        outcome="diverged" if value is None else "finished",
        told=value,
        state="fail" if value is None else "complete",
    )


def test_a_resumed_search_does_not_repeat_its_first_draws(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    first = Proposer(spec, spec.build_space(), []).propose()
    assert Proposer(spec, spec.build_space(), []).propose() == first
    again = Proposer(spec, spec.build_space(), [ended(0, first, 0.3)]).propose()
    assert again != first


def test_the_sampler_learns_that_a_point_diverged(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    trials = [ended(0, {"x": 0.1, "y": 0.1}, 0.3), ended(1, {"x": 0.2, "y": 0.1}, 0.5)]
    proposer = Proposer(spec, spec.build_space(), trials)
    sampled = proposer.propose()
    proposer.learn(ended(2, sampled, None))
    assert [t.value for t in proposer._study.trials] == [0.3, 0.5, 0.3]
    resumed = Proposer(spec, spec.build_space(), [*trials, ended(2, sampled, None)])
    assert [t.value for t in resumed._study.trials] == [0.3, 0.5, 0.3]


def test_the_first_trial_may_diverge(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    proposer = Proposer(spec, spec.build_space(), [])
    proposer.learn(ended(0, proposer.propose(), None))
    assert proposer.propose()


def test_a_random_draw_that_breaks_a_constraint_is_replaced(tmp_path: Path) -> None:
    space = small_spec(tmp_path, constraints="[x + y <= 0.1]").build_space()
    sampler = FeasibleSampler(RandomSampler(seed=0), space, np.random.default_rng(0))
    study = optuna.create_study(sampler=sampler)
    assert space.is_feasible(study.ask(space.distributions()).params)
