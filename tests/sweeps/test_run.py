import fcntl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import synthetic_training
from spec_samples import small_spec
from synthetic_training import Bowl

from sweeps.analysis import leaderboard
from sweeps.finalists import best_trials
from sweeps.forecast import compare, forecast
from sweeps.listeners import Listener, SweepContext
from sweeps.record import Ledger, RungResult, SweepRecord, TrialRecord, read_sweep
from sweeps.run import LOCK_NAME, SweepRefused, _locked, _name_token, resume_sweep, run_sweep
from sweeps.search import TrialsFail
from sweeps.spec import load_copy
from sweeps.spool import read_spool, spool_path
from sweeps.stopping import Verdict

# Ray and Tune leave sockets and files to the garbage collector.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _local_ray() -> Iterator[None]:
    # Ray's processes do not find the modules of the tests.
    ray.cloudpickle.register_pickle_by_value(synthetic_training)
    _name_token()
    ray.init(
        num_cpus=2,
        num_gpus=2,  # logical ones
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 << 20,
    )
    # Ray forgets the processes it started, which Python complains of when it collects them.
    node = ray._private.worker._global_node
    processes = [info.process for infos in node.all_processes.values() for info in infos]
    yield
    ray.shutdown()
    for process in processes:
        process.wait(timeout=60)


class Notes(Listener):
    def __init__(self) -> None:
        self.events: list[str] = []

    def on_start(self, sweep: SweepContext) -> None:
        self.events.append(f"start resumed={sweep.resumed}")

    def on_trial_end(self, trial: TrialRecord) -> None:
        self.events.append(f"{trial.role} {trial.outcome}")

    def on_tick(self) -> None:
        if "tick" not in self.events:
            self.events.append("tick")

    def on_end(self, record: SweepRecord, *, interrupted: bool) -> None:
        self.events.append(f"end interrupted={interrupted}")


class Broken(Listener):
    def on_start(self, sweep: SweepContext) -> None:
        raise OSError("no tracker")

    def on_rung(self, trial: TrialRecord, rung: RungResult, verdict: Verdict) -> None:
        raise OSError("no tracker")


def test_a_sweep_runs_to_its_end_and_again_gives_its_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = small_spec(tmp_path, known="[{params: {x: 0.25, y: 0.25}, NDS: 0.4}]")
    notes = Notes()
    record = run_sweep(spec, Bowl(), listeners=[Broken(), notes])
    assert record == read_sweep(spec.storage_url, spec.name)
    assert [trial.number for trial in record.trials] == [0, 1, 2, 3, 4]
    assert [trial.role for trial in record.trials] == ["known"] + ["search"] * 4
    assert record.control is not None
    assert record.control.value == pytest.approx(0.5 - 0.09 - 0.04)
    for trial in record.started:
        assert (trial.outcome, trial.attempts, len(trial.rungs)) == ("finished", 1, 2)
        assert trial.seconds > 0
        records = read_spool(spool_path(spec.trial_dir(trial.label))).records
        assert [r["kind"] for r in records] == ["attempt", "log", "rung", "log", "rung"]
        assert "with 1 threads" in (spec.trial_dir(trial.label) / "trial.log").read_text()
    for trial in record.searched:
        x, y = float(trial.params["x"]), float(trial.params["y"])
        assert trial.value == pytest.approx(0.5 - (x - 0.2) ** 2 - (y - 0.3) ** 2)
    assert sorted(notes.events) == sorted(
        ["start resumed=False", "tick", "control finished", "end interrupted=False"]
        + ["search finished"] * 4
    )
    # A listener that fails is logged once a kind and ends nothing.
    assert caplog.text.count("Broken: OSError") == 1

    assert load_copy(spec.directory) == spec
    with pytest.raises(SweepRefused, match=r"exists in .*: resume it, or name another"):
        run_sweep(spec, Bowl())
    again = resume_sweep(spec, Bowl())
    assert again.trials == record.trials
    with pytest.raises(SweepRefused, match="but objective, known changed"):
        resume_sweep(small_spec(tmp_path, objective="{noise: 0.5}", known="[]"), Bowl())


def test_trials_that_go_wrong_end_alone(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, budget="{trials: 6}")
    record = run_sweep(spec, Bowl(goes_wrong=True))
    assert [trial.outcome for trial in record.trials] == [
        "finished",
        "diverged",
        "failed",
        "finished",
        "failed",
        "finished",
    ]
    _, diverged, failed, died_once, died_always, _ = record.trials
    assert diverged.reason == "the loss is nan at step 3"
    assert failed.reason.startswith("RuntimeError: a corrupt sample\nlog: ")
    assert died_once.attempts == 2
    assert died_always.attempts == 3
    assert died_always.reason.startswith("the trial's process ended: ")
    assert "no reason known" not in died_always.reason


def test_hopeless_trials_are_stopped_between_rungs(tmp_path: Path) -> None:
    rungs = (0.25, 0.5, 1.0)
    spec = small_spec(
        tmp_path,
        stopping="{rule: fast, rungs: [0.25, 0.5, 1.0]}",
        budget="{trials: 8}",
        resources="{concurrent: 1}",
    )
    record = run_sweep(spec, Bowl(rungs=rungs))
    stopped = [trial for trial in record.trials if trial.outcome == "stopped"]
    assert stopped
    for trial in stopped:
        assert len(trial.rungs) < 3
        assert trial.reason.startswith("rank ")
        assert trial.imputed
        assert trial.value is None
        spooled = read_spool(spool_path(spec.trial_dir(trial.label))).records
        assert sum(r["kind"] == "rung" for r in spooled) == len(trial.rungs)
    assert record.control is not None
    assert record.control.outcome == "finished"


def test_a_control_gives_the_noise_and_the_best_go_to_the_finals(tmp_path: Path) -> None:
    spec = small_spec(
        tmp_path,
        objective="{}",
        control="{seeds: 2}",
        finalists="{top: 2, seeds: 2}",
        budget="{trials: 3}",
        stopping="{rule: safe, rungs: [0.5, 1.0]}",
    )
    expected = forecast(spec, full_hours=None, slots=2)
    train = Bowl(seed_effect=0.01)
    record = run_sweep(spec, train, forecast=expected.dump())
    assert record.attrs["noise"] is None
    # Seeds 3 and 4 for the noise, 5 for the finals; the finals use 4 and 5.
    assert [trial.seed for trial in record.controls] == [3, 4, 5]
    chosen = best_trials(record.searched, 2, "max")
    assert [(t.repeats, t.seed) for t in record.finalists] == [
        (chosen[0].number, 4),
        (chosen[1].number, 4),
        (chosen[0].number, 5),
        (chosen[1].number, 5),
    ]
    assert [trial.number for trial in record.trials] == list(range(7))
    for trial in record.finalists:
        first = record.trials[trial.repeats or 0]
        assert trial.outcome == "finished"
        assert {**trial.params, "seed": 3} == first.params
        assert trial.value == pytest.approx((first.value or 0) + 0.01 * (trial.seed - 3))
    board = leaderboard(record)
    assert board.spread.source == "measured"
    assert [row.num_scores for row in board.finalists] == [2, 2]
    assert record.attrs["ended_by"]["limit"] == "trials"
    assert record.attrs["spent"]["hours"] > 0
    came = {row.what: row.actual for row in compare(expected, record)}
    assert came["searched trials"] == 3
    assert came["full trainings, all in all"] == 3 + 3 + 4
    again = resume_sweep(spec, train)
    assert (again.trials, again.controls) == (record.trials, record.controls)


def test_gpu_hours_end_a_sweep_and_lose_nothing(tmp_path: Path) -> None:
    spec = small_spec(
        tmp_path,
        budget="{gpu_hours: 0.0016}",  # 5.8 s
        resources="{gpus: 1, cpus: 1}",
        control="false",
        search="{sampler: random, seed: 3}",
    )
    record = run_sweep(spec, Bowl(pause_s=0.4))
    assert len(record.searched) >= 2
    assert all(trial.outcome == "finished" for trial in record.searched)
    assert record.attrs["ended_by"]["limit"] == "gpu_hours"
    # None began beyond the limit: when the last one did, all but one of the others had ended.
    *others, _ = [trial.gpu_hours for trial in record.searched]
    assert sum(others) - max(others) <= 0.0016
    # One training more than the limit at most, and what two slots wait for Tune.
    assert 0.0016 - 1.6 / 3600 <= record.attrs["spent"]["trial_hours"] <= 0.0016 + 6 / 3600
    assert sum(trial.gpu_hours for trial in record.searched) <= record.attrs["spent"]["trial_hours"]
    again = resume_sweep(spec, Bowl(pause_s=0.4))
    assert again.trials == record.trials


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    spec.directory.mkdir(parents=True)
    with (spec.directory / LOCK_NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 7 on somewhere")
        file.flush()
        with pytest.raises(SweepRefused, match=r"another driver .*process 7 on somewhere"):
            run_sweep(spec, Bowl())


def test_who_only_looks_at_the_lock_keeps_no_driver_out(tmp_path: Path) -> None:
    path = tmp_path / LOCK_NAME
    path.touch()
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (file.fileno(), fcntl.LOCK_UN)).start()
        with _locked(tmp_path):
            assert path.read_text().startswith("process ")


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(SweepRefused, match="run it first"):
        resume_sweep(small_spec(tmp_path), Bowl())


def test_a_trial_that_fits_nowhere_is_refused_and_may_be_run_smaller(tmp_path: Path) -> None:
    with pytest.raises(SweepRefused, match=r"must hold one trial, 3 CPU, but none of its 1 does"):
        run_sweep(small_spec(tmp_path, resources="{cpus: 3}"), Bowl())
    record = run_sweep(small_spec(tmp_path, budget="{trials: 1}"), Bowl())
    assert [trial.outcome for trial in record.searched] == ["finished"]


def test_a_resume_may_raise_the_budget_and_change_nothing_else(tmp_path: Path) -> None:
    first = run_sweep(small_spec(tmp_path, budget="{trials: 2}"), Bowl())
    spec = small_spec(tmp_path, budget="{trials: 3}")
    more = resume_sweep(spec, Bowl())
    assert more.trials[:2] == first.trials
    assert [trial.outcome for trial in more.searched] == ["finished"] * 3
    assert "3 trials" in more.attrs["ended_by"]["reason"]
    assert load_copy(spec.directory).budget.trials == 3
    # What was edited in the sweep's own directory is held to the study.
    edited = small_spec(tmp_path, budget="{trials: 3}", stopping="{rule: fast, rungs: [0.5, 1.0]}")
    edited.write_copy(spec.directory)
    with pytest.raises(SweepRefused, match=r"begun with another spec, of which stopping changed"):
        resume_sweep(edited, Bowl())


def test_a_sweep_in_which_nothing_trains_ends_and_may_be_resumed(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, budget="{trials: 12}", control="false")
    with pytest.raises(TrialsFail, match=r"last 8 trainings failed.*the data set is not mounted"):
        run_sweep(spec, Bowl(is_broken=True))
    record = resume_sweep(spec, Bowl())
    outcomes = [trial.outcome for trial in record.searched]
    assert len(outcomes) == 12
    assert 8 <= outcomes.count("failed") <= 9  # one may have run beside the last
    assert outcomes.count("finished") == 12 - outcomes.count("failed")


def test_a_resume_without_its_study_is_refused(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, budget="{trials: 1}", control="false")
    run_sweep(spec, Bowl())
    study = spec.directory / "study.db"
    study.rename(tmp_path / "elsewhere.db")
    with pytest.raises(SweepRefused, match=r"holds no trial of the sweep 'small', but .*t000"):
        resume_sweep(spec, Bowl())
    (tmp_path / "elsewhere.db").replace(study)
    assert len(resume_sweep(spec, Bowl()).searched) == 1


def test_a_sweep_begun_before_a_key_was_there_goes_on(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, budget="{trials: 1}", control="false")
    run_sweep(spec, Bowl())
    ledger = Ledger(spec.storage_url, spec.name, mode="max")
    before = spec.dump()
    del before["resources"]["silence_minutes"]
    ledger.set_attr("spec", before)
    ledger.close()
    assert len(resume_sweep(spec, Bowl()).searched) == 1
