import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler
from ray.tune.search import Searcher
from spec_samples import small_spec

from sweeps.forecast import setting_of
from sweeps.listeners import Audience, Listener
from sweeps.noise import PRIOR_DEVIATION
from sweeps.proposing import FeasibleSampler, Proposer
from sweeps.record import Ledger, RungResult, TrialRecord
from sweeps.search import MOST_FAILED, StudySearcher, TrialsFail
from sweeps.simulation import simulate
from sweeps.spec import SweepSpec, config_hash
from sweeps.stopping import Verdict, impute
from sweeps.task import TASK_KEY, Ending, Task, to_result
from sweeps.twin import Twin


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
        self.searcher.note_start(tune_id)
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
    let_pass(monkeypatch, driver, hours=1)
    assert driver.try_start() == Searcher.FINISHED
    driver.finish(tune_id, 0.1, 0.2)
    # The hours before a resume count.
    assert Driver(driver.spec, ledgers).try_start() == Searcher.FINISHED


FINALS = {
    "budget": "{trials: 3}",
    "finalists": "{top: 2, seeds: 2}",
    "stopping": "{rule: fast, rungs: [0.5, 1.0]}",
}


def play_search(driver: Driver, values: tuple[float, ...]) -> list[Task]:
    """The control, then searched trials with these values."""
    driver.finish(driver.start()[0], 0.1, 0.2)
    tasks = []
    for value in values:
        tune_id, task = driver.start()
        driver.finish(tune_id, value, value)
        tasks.append(task)
    return tasks


def test_the_best_trials_and_the_control_are_repeated_with_new_seeds(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    driver = Driver(small_spec(tmp_path, **FINALS), ledgers)
    first, second, third = play_search(driver, (0.30, 0.31, 0.32))
    finals = []
    while isinstance(got := driver.try_start(), tuple):
        finals.append(got[1])
        driver.finish(got[0], 0.0, 0.1)  # no final is stopped, however low it stands
    assert got == Searcher.FINISHED
    assert [(task.label.split("-")[0], task.params["seed"]) for task in finals] == [
        ("control2", 4),
        ("t003", 4),
        ("t004", 4),
        ("control3", 5),
        ("t005", 5),
        ("t006", 5),
    ]
    assert finals[1].params == {**third.params, "seed": 4}
    assert finals[2].params == {**second.params, "seed": 4}
    assert len({task.label for task in finals}) == 6
    record = driver.ledger.read()
    assert [trial.repeats for trial in record.finalists] == [2, 1, 2, 1]
    assert record.attrs["ended_by"] == {"limit": "trials", "reason": "all 3 trials have begun"}
    assert first.label in {trial.label for trial in record.searched}


def test_hours_that_end_after_the_last_final_has_begun_cut_nothing_off(
    tmp_path: Path, ledgers: list[Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec(tmp_path, **{**FINALS, "budget": "{trials: 3, hours: 5}"})
    driver = Driver(spec, ledgers)
    play_search(driver, (0.30, 0.31, 0.32))
    begun = [driver.start()[0] for _ in range(5)]
    let_pass(monkeypatch, driver, hours=5)
    assert driver.try_start() == Searcher.FINISHED
    assert driver.ledger.read().attrs["ended_by"]["limit"] == "hours"
    assert driver.ledger.read().attrs["ended_by"]["reason"].endswith("before the finals ended")
    assert len(begun) == 5

    other = Driver(small_spec(tmp_path / "other", **{**FINALS, "budget": "{trials: 3}"}), ledgers)
    play_search(other, (0.30, 0.31, 0.32))
    for _ in range(6):
        other.start()
    monkeypatch.setattr(other.searcher, "_course", replace(other.searcher._course, hours=5.0))
    let_pass(monkeypatch, other, hours=5)
    assert other.try_start() == Searcher.FINISHED
    assert other.ledger.read().attrs["ended_by"]["limit"] == "trials"


def test_finals_wait_for_the_last_search_trial(tmp_path: Path, ledgers: list[Ledger]) -> None:
    driver = Driver(small_spec(tmp_path, **FINALS), ledgers)
    play_search(driver, (0.30, 0.31))
    last, task = driver.start()
    assert driver.try_start() is None
    driver.finish(last, 0.32, 0.40)
    _, control = driver.start()
    _, final = driver.start()
    assert control.label.startswith("control2-")
    assert final.params["x"] == task.params["x"]


@pytest.mark.parametrize("num_done", range(7))
def test_a_new_driver_repeats_no_final_and_loses_none(
    tmp_path: Path, ledgers: list[Ledger], num_done: int
) -> None:
    driver = Driver(small_spec(tmp_path, **FINALS), ledgers)
    play_search(driver, (0.30, 0.31, 0.32))
    begun = []
    for i in range(num_done):
        tune_id, task = driver.start()
        begun.append(task.label)
        if i < num_done - 1:  # the last one is under way when the driver dies
            driver.finish(tune_id, 0.3, 0.3) if num_done < 7 else driver.end(tune_id, "failed", "x")
    again = Driver(driver.spec, ledgers)
    labels = begun[:-1]
    while isinstance(got := again.try_start(), tuple):
        labels.append(got[1].label)
        again.finish(got[0], 0.3, 0.3)
    assert got == Searcher.FINISHED
    assert len(labels) == len(set(labels)) == 6
    assert set(begun) <= set(labels)
    record = again.ledger.read()
    assert len(record.finalists) == 4
    assert len(record.controls) == 3
    assert all(trial.outcome for trial in record.started)


def test_a_search_without_a_result_has_no_finals(tmp_path: Path, ledgers: list[Ledger]) -> None:
    driver = Driver(small_spec(tmp_path, **FINALS), ledgers)
    driver.finish(driver.start()[0], 0.1, 0.2)
    for _ in range(3):
        driver.end(driver.start()[0], "diverged", "nan")
    assert driver.try_start() == Searcher.FINISHED


def test_the_control_measures_the_noise_before_safe_stops_anything(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    spec = small_spec(
        tmp_path,
        objective="{}",
        control="{seeds: 2}",
        stopping="{rule: safe, rungs: [0.5, 1.0]}",
        budget="{trials: 8}",
    )
    driver = Driver(spec, ledgers)
    (first, one), (second, two) = driver.start(), driver.start()
    assert [task.label.split("-")[0] for task in (one, two)] == ["control", "control2"]
    assert [task.params["seed"] for task in (one, two)] == [3, 4]
    for value in (0.30, 0.31, 0.32, 0.33):
        driver.rung(driver.start()[0], 0, value)
    driver.finish(first, 0.3, 0.40)
    hopeless, _ = driver.start()
    verdict = driver.rung(hopeless, 0, 0.0)
    assert (verdict.stop, verdict.reason) == (
        False,
        "the control has not measured the noise yet",
    )
    driver.finish(second, 0.3, 0.41)
    verdict = driver.rung(driver.start()[0], 0, 0.0)
    # Scatter 0.01/sqrt(2) with one degree of freedom, drawn towards 0.002 with one.
    sigma = np.sqrt((0.002**2 + 0.01**2 / 2) / 2)
    assert verdict.stop
    assert verdict.reason.endswith(f"less 1.4 x {sigma:.4f}")


def test_gpu_hours_end_the_search_and_a_resume_counts_what_was_spent(
    tmp_path: Path, ledgers: list[Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec(
        tmp_path, budget="{gpu_hours: 2}", resources="{gpus: 1}", control="false", known="[]"
    )
    driver = Driver(spec, ledgers)
    tune_id, task = driver.start()
    begin_earlier(driver, 1.5)
    assert isinstance(driver.try_start(), tuple)  # half an hour is left
    begin_earlier(driver, 0.25)  # each of the two: 2 h are spent
    assert driver.try_start() == Searcher.FINISHED
    # What runs goes on to its end.
    driver.finish(tune_id, 0.1, 0.2)
    assert driver.trial(task.label).outcome == "finished"
    record = driver.ledger.read()
    assert record.attrs["ended_by"]["limit"] == "gpu_hours"
    assert "2 of 2 GPU-hours are spent" in record.attrs["ended_by"]["reason"]
    assert record.attrs["spent"]["trial_hours"] == pytest.approx(2.0, abs=0.01)
    again = Driver(spec, ledgers)
    _, waiting = again.start()  # the one that ran when the driver died
    assert waiting.attempt == 2
    assert again.try_start() == Searcher.FINISHED


def let_pass(monkeypatch: pytest.MonkeyPatch, driver: Driver, *, hours: float) -> None:
    """Let the driver have run for so many hours longer."""
    spending = driver.searcher._spending
    monkeypatch.setattr(spending, "_started_at", spending._started_at - hours * 3600)


def begin_earlier(driver: Driver, hours: float) -> None:
    for running in driver.searcher._running.values():
        assert running.since is not None
        running.since -= hours * 3600


def test_hours_count_while_a_trial_has_its_place_in_whichever_process(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    spec = small_spec(tmp_path, budget="{gpu_hours: 9}", resources="{gpus: 1}", control="false")
    driver = Driver(spec, ledgers)
    tune_id, _ = driver.start()
    spent = driver.searcher._spending
    begin_earlier(driver, 3)
    driver.searcher.note_death(tune_id, "the node is gone")
    assert spent.trial_hours == pytest.approx(3, abs=0.01)
    driver.searcher.note_restart(tune_id)
    assert not spent.running_hours()  # it waits for another place
    driver.searcher.note_start(tune_id)
    begin_earlier(driver, 2)
    driver.searcher.note_start(tune_id)  # preempted: Ray names no death
    begin_earlier(driver, 1)
    driver.finish(tune_id, 0.1, 0.2)
    assert spent.trial_hours == pytest.approx(6, abs=0.01)
    # Suggested, and without a place yet: nothing is spent, and a whole training spoken for.
    assert isinstance(driver.searcher.suggest("waits"), dict)
    assert spent.trial_hours == pytest.approx(6, abs=0.01)
    assert driver.searcher._progress().rest_hours == pytest.approx(33 / 3600)


@pytest.mark.parametrize("ends", ["dies", "raises"])
def test_a_last_score_stands_whatever_becomes_of_its_training(
    tmp_path: Path, ledgers: list[Ledger], ends: str
) -> None:
    driver = Driver(small_spec(tmp_path, control="false"), ledgers)
    tune_id, task = driver.start()
    driver.rung(tune_id, 0, 0.3)
    driver.rung(tune_id, 1, 0.4)
    if ends == "dies":
        driver.searcher.note_death(tune_id, "no space left")
        driver.searcher.on_trial_complete(tune_id, error=True)
    else:
        driver.end(tune_id, "failed", "OSError: no space left for final.pth")
    trial = driver.trial(task.label)
    assert (trial.outcome, trial.value) == ("finished", 0.4)
    assert trial.reason.startswith("after its last score: ")
    assert "no space left" in trial.reason


def test_a_sweep_ends_if_training_after_training_fails_before_a_score(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    spec = small_spec(tmp_path, budget="{hours: 72}", control="false")
    driver = Driver(spec, ledgers, slots=2)
    for _ in range(MOST_FAILED - 1):
        driver.end(driver.start()[0], "failed", "the disk is gone")
    tune_id, _ = driver.start()
    driver.rung(tune_id, 0, 0.3)
    driver.end(tune_id, "failed", "a corrupt sample")  # one that scored
    for _ in range(MOST_FAILED - 1):
        driver.end(driver.start()[0], "failed", "the disk is gone")
    tune_id, task = driver.start()
    with pytest.raises(TrialsFail, match=r"last 8 trainings failed.*so: the disk is gone"):
        driver.end(tune_id, "failed", "the disk is gone")
    assert driver.trial(task.label).outcome == "failed"
    # A resume has the rest of the budget.
    again = Driver(spec, ledgers, slots=2)
    again.finish(again.start()[0], 0.1, 0.2)


def test_a_raised_budget_takes_back_that_the_search_has_ended(
    tmp_path: Path, ledgers: list[Ledger]
) -> None:
    driver = Driver(small_spec(tmp_path, budget="{trials: 1}", control="false"), ledgers)
    driver.finish(driver.start()[0], 0.1, 0.2)
    assert driver.try_start() == Searcher.FINISHED
    assert driver.ledger.read().attrs["ended_by"]["limit"] == "trials"
    more = Driver(small_spec(tmp_path, budget="{trials: 2}", control="false"), ledgers)
    more.finish(more.start()[0], 0.1, 0.2)
    assert more.ledger.read().attrs["ended_by"] is None
    assert more.try_start() == Searcher.FINISHED
    assert "2 trials" in more.ledger.read().attrs["ended_by"]["reason"]


@pytest.mark.parametrize("rule", ["safe", "fast", "none"])
@pytest.mark.parametrize("noise", ["{noise: 0.002}", "{}"])
def test_a_real_sweep_stops_what_the_forecast_stops(
    tmp_path: Path, ledgers: list[Ledger], rule: str, noise: str
) -> None:
    rungs = "rungs: [0.25, 0.5, 1.0], val_shares: [0.5, 1.0, 1.0]"
    spec = small_spec(
        tmp_path,
        objective=noise,
        control="{seeds: 2}",
        stopping=f"{{rule: {rule}, {rungs}}}",
        budget="{trials: 12}",
        finalists="{top: 1, seeds: 1}",
    )
    driver = Driver(spec, ledgers, slots=1)
    # The control's two scores differ so that the measured noise is the simulated one.
    gap = np.sqrt(2 * (2 * PRIOR_DEVIATION**2 - PRIOR_DEVIATION**2))
    setting = setting_of(spec, full_hours=1.0, slots=1)
    sweep = simulate(setting, np.random.default_rng(5))
    ends = []
    for number, trial in enumerate(sweep.trials):
        tune_id, _ = driver.start()
        scores = trial.scores if trial.kind == "search" else (0.0, 0.0, gap * (number == 1))
        for index, score in enumerate(scores):
            if driver.rung(tune_id, index, score).stop:
                break
        else:
            driver.end(tune_id)
        ends.append((trial.kind, trial.stopped, trial.rungs))
    assert driver.try_start() == Searcher.FINISHED
    record = driver.ledger.read()
    expected = [(stopped, rungs) for kind, stopped, rungs in ends if kind == "search"]
    assert [(t.outcome == "stopped", len(t.rungs)) for t in record.searched] == expected
    assert any(stopped for stopped, _ in expected) == (rule != "none")


def test_flags_of_the_health_rules_are_in_the_record(tmp_path: Path, ledgers: list[Ledger]) -> None:
    driver = Driver(small_spec(tmp_path, control="false"), ledgers)
    tune_id, _ = driver.start()
    reason = "health: loss_rising: it rises"
    ending = Ending(outcome="stopped", reason=reason, seconds=5.0)
    driver.searcher.on_trial_complete(tune_id, to_result(ending, {"loss_rising": "it rises"}))
    (read,) = driver.ledger.read().trials
    assert (read.outcome, read.told, read.state) == ("stopped", None, "fail")
    assert read.flags == {"loss_rising": "it rises"}
    assert read.reason == reason


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


def twin(proposer: Proposer) -> optuna.Study:
    assert isinstance(proposer._source, Twin)
    return proposer._source._study


def test_tpe_is_told_the_worst_value_of_a_point_that_diverged(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, search="{sampler: tpe, seed: 3}")
    trials = [ended(0, {"x": 0.1, "y": 0.1}, 0.3), ended(1, {"x": 0.2, "y": 0.1}, 0.5)]
    proposer = Proposer(spec, spec.build_space(), trials)
    sampled = proposer.propose()
    assert [t.constraints for t in twin(proposer).trials] == [{}, {}, {}]
    waiting = proposer.propose()
    proposer.learn(ended(2, sampled, None))
    told = [(t.value, t.constraints, t.state.name) for t in twin(proposer).trials]
    assert told == [
        (0.3, {"sound": -1.0}, "COMPLETE"),
        (0.5, {"sound": -1.0}, "COMPLETE"),
        (0.3, {"sound": 1.0}, "COMPLETE"),
        (None, {}, "RUNNING"),
    ]
    assert twin(proposer).trials[3].params == waiting
    resumed = Proposer(spec, spec.build_space(), [*trials, ended(2, sampled, None)])
    assert [t.value for t in twin(resumed).trials] == [0.3, 0.5, 0.3]


@pytest.mark.parametrize(
    ("sampler", "outcome"), [("gp", "diverged"), ("gp", "stopped"), ("tpe", "failed")]
)
def test_the_search_leaves_a_region_that_goes_wrong(
    tmp_path: Path, sampler: str, outcome: str
) -> None:
    # The score does not tell where trainings go wrong: beyond x = 0.5, all of them.
    spec = small_spec(
        tmp_path, search=f"{{sampler: {sampler}, seed: 2, startup: 6}}", constraints="[]"
    )
    proposer = Proposer(spec, spec.build_space(), [])
    beyond = []
    for number in range(44 if sampler == "tpe" else 24):
        sampled = proposer.propose()
        wrong = float(sampled["x"]) > 0.5
        beyond.append(wrong)
        trial = ended(number, sampled, None if wrong else float(sampled["y"]))
        if wrong:
            reason = "health: loss_rising: it rises" if outcome == "stopped" else "nan"
            trial = replace(trial, outcome=outcome, reason=reason)
        proposer.learn(trial)
    assert any(beyond)
    # Half of all points lie there. The GP is sure of it sooner; then it tries where the edge is.
    last, most = (20, 4) if sampler == "tpe" else (10, 2)
    assert sum(beyond[-last:]) <= most, beyond


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
