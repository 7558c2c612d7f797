import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from sqlalchemy import Table

from sweeps import entries
from sweeps.record import Ledger, RungResult, TrialRecord, read_sweep, sqlite_url, trial_label

DISTRIBUTIONS = {"x": FloatDistribution(0, 1)}


def rung(fraction: float, nds: float) -> RungResult:
    return RungResult(
        fraction=fraction,
        val_share=1.0,
        epoch=fraction,
        step=int(100 * fraction),
        metrics={"val/nds": nds},
        checkpoint="/somewhere/rung.pth",
        seconds=10 * fraction,
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "study.db")


def add(ledger: Ledger, x: float, *, value: float | None = None) -> TrialRecord:
    return ledger.add_trial(
        role="search" if value is None else "known",
        params={"x": x, "seed": 0},
        sampled={"x": x},
        distributions=DISTRIBUTIONS,
        seed=0,
        config_hash="0123abcd",
        value=value,
    )


def add_control(ledger: Ledger) -> TrialRecord:
    return ledger.add_trial(
        role="control",
        params={"enable_aqr": False, "seed": 0},
        sampled={},
        distributions={},
        seed=0,
        config_hash="ffffffff",
    )


def test_a_trial_from_start_to_end_reads_back(url: str) -> None:
    ledger = Ledger(url, "s", mode="max")
    trial = add(ledger, 0.25)
    assert trial.label == "t000-0123abcd"
    assert (trial.state, trial.outcome, trial.attempts) == ("running", None, 0)
    ledger.start_attempt(trial.label)
    ledger.append_rung(trial.label, rung(0.5, 0.3), objective=0.3)
    ledger.append_rung(trial.label, rung(1.0, 0.4), objective=0.4)
    ledger.set_mlflow_run_ids({trial.label: "run-1"})
    ledger.finish(trial.label, outcome="finished", reason="", told=0.4, seconds=12.0, gpu_hours=0.5)
    (read,) = read_sweep(url, "s").trials
    assert read == ledger.trials[trial.label]
    assert read == TrialRecord(
        number=0,
        label="t000-0123abcd",
        role="search",
        params={"x": 0.25, "seed": 0},
        sampled={"x": 0.25},
        seed=0,
        config_hash="0123abcd",
        rungs=(rung(0.5, 0.3), rung(1.0, 0.4)),
        outcome="finished",
        value=0.4,
        told=0.4,
        seconds=12.0,
        gpu_hours=0.5,
        attempts=1,
        mlflow_run_id="run-1",
        state="complete",
    )


def test_a_stopped_trial_has_an_estimate_but_no_value(url: str) -> None:
    ledger = Ledger(url, "s", mode="max")
    trial = add(ledger, 0.5)
    ledger.append_rung(trial.label, rung(0.5, 0.2), objective=0.2)
    ledger.finish(
        trial.label, outcome="stopped", reason="too low", told=0.25, seconds=5.0, gpu_hours=0.0
    )
    (read,) = read_sweep(url, "s").trials
    assert (read.value, read.told, read.imputed, read.reason) == (None, 0.25, True, "too low")


@pytest.mark.parametrize("outcome", ["diverged", "failed"])
def test_a_trial_without_a_result_is_a_failure_of_the_study(url: str, outcome: str) -> None:
    ledger = Ledger(url, "s", mode="max")
    trial = add(ledger, 0.5)
    ledger.finish(trial.label, outcome=outcome, reason="nan", told=None, seconds=5.0, gpu_hours=0.0)
    (read,) = read_sweep(url, "s").trials
    assert (read.outcome, read.state, read.told, read.reason) == (outcome, "fail", None, "nan")


@pytest.mark.parametrize(
    ("outcome", "reason", "told", "message"),
    [
        ("stopped", "", 0.3, "must carry a reason"),
        ("stopped", "low", 0.3, "does not go with the value 0.3"),
        ("failed", "", None, "must carry a reason"),
        ("finished", "", None, "does not go with the value None"),
        ("finished", "", float("nan"), "does not go with the value nan"),
        ("diverged", "nan", 0.3, "does not go with the value 0.3"),
    ],
)
def test_an_end_must_be_whole(
    url: str, outcome: str, reason: str, told: float | None, message: str
) -> None:
    ledger = Ledger(url, "s", mode="max")
    label = add(ledger, 0.5).label
    with pytest.raises(ValueError, match=message):
        ledger.finish(label, outcome=outcome, reason=reason, told=told, seconds=0, gpu_hours=0)
    assert read_sweep(url, "s").trials[0].state == "running"


def test_known_points_and_the_control(url: str) -> None:
    ledger = Ledger(url, "s", mode="max")
    known = add(ledger, 0.1, value=0.33)
    control = add_control(ledger)
    trial = add(ledger, 0.2)
    ledger.set_attr("metric", "val/nds")
    ledger.set_mlflow_run_ids({known.label: "run-k"})
    record = read_sweep(url, "s")
    assert [t.label for t in record.trials] == [known.label, trial.label]
    assert record.trials[0].value == 0.33
    assert record.trials[0].mlflow_run_id == "run-k"
    assert record.control == control
    assert record.searched == (trial,)
    assert record.started == (control, trial)
    assert record.attrs == {"metric": "val/nds"}


def test_a_trial_stopped_before_its_first_score_has_no_value(url: str) -> None:
    ledger = Ledger(url, "s", mode="max")
    label = add(ledger, 0.5).label
    ledger.finish(
        label, outcome="stopped", reason="health: flat", told=None, seconds=5.0, gpu_hours=0.1
    )
    (read,) = read_sweep(url, "s").trials
    assert (read.outcome, read.state, read.told, read.imputed) == ("stopped", "fail", None, False)
    assert read.gpu_hours == 0.1
    ledger.append_rung(label := add(ledger, 0.6).label, rung(0.5, 0.2), objective=0.2)
    with pytest.raises(ValueError, match="does not go with the value None"):
        ledger.finish(label, outcome="stopped", reason="low", told=None, seconds=5.0, gpu_hours=0)


def test_repeats_of_the_control_and_of_finalists_read_back(url: str) -> None:
    ledger = Ledger(url, "s", mode="max")
    controls = [add_control(ledger), add_control(ledger)]
    trial = add(ledger, 0.2)
    finalist = ledger.add_trial(
        role="finalist",
        params={"x": 0.2, "seed": 1},
        sampled={"x": 0.2},
        distributions=DISTRIBUTIONS,
        seed=1,
        config_hash="89abcdef",
        repeats=trial.number,
    )
    record = read_sweep(url, "s")
    assert [each.label for each in controls] == ["control-ffffffff", "control2-ffffffff"]
    assert (record.control, record.control_repeats) == (controls[0], (controls[1],))
    assert record.controls == tuple(controls)
    assert record.finalists == (finalist,)
    assert (finalist.number, finalist.repeats) == (1, 0)
    assert record.searched == (trial,)
    assert record.started == (*controls, trial, finalist)
    assert Ledger(url, "s", mode="max").trials == ledger.trials


def test_an_end_that_was_cut_short_left_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(url, "s", mode="max")
    label = add(ledger, 0.5).label
    end = {"outcome": "finished", "reason": "", "told": 0.4, "seconds": 1.0, "gpu_hours": 0.0}
    upsert = entries._upsert

    def killed(connection: Any, table: Table, *args: Any) -> None:
        upsert(connection, table, *args)
        if table.name == "trial_values":  # the last one before the state
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(entries, "_upsert", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.finish(label, **end)
    read = read_sweep(url, "s").trials[0]
    assert (read.state, read.outcome, read.told) == ("running", None, None)
    again = Ledger(url, "s", mode="max")
    assert again.trials[label] == read
    again.finish(label, **end)
    study = optuna.load_study(study_name="s", storage=url)
    assert (study.trials[0].state, study.trials[0].value) == (TrialState.COMPLETE, 0.4)


def test_a_reader_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has this sweep been started"):
        read_sweep(sqlite_url(tmp_path / "study.db"), "s")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_sweep_of_a_storage_is_an_error(url: str) -> None:
    Ledger(url, "s", mode="max")
    with pytest.raises(KeyError):
        read_sweep(url, "other")


def test_the_label_is_role_number_and_hash() -> None:
    assert trial_label("search", 7, "0123abcd") == "t007-0123abcd"
    assert trial_label("control", 0, "0123abcd") == "control-0123abcd"


def test_readers_during_the_start_disturb_nobody(url: str, tmp_path: Path) -> None:
    over = threading.Event()
    unexpected: list[Exception] = []

    def read_without_pause() -> None:
        while not over.is_set():
            try:
                read_sweep(url, "s")
            except (FileNotFoundError, KeyError):
                continue
            except Exception as error:  # noqa: BLE001  (whatever it is, the test shows it)
                unexpected.append(error)

    readers = [threading.Thread(target=read_without_pause) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        ledger = Ledger(url, "s", mode="max")
        ledger.close()
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert unexpected == []
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


def test_tables_that_a_kill_left_half_made_are_made_anew(url: str, tmp_path: Path) -> None:
    (tmp_path / ".study.db.partial").write_bytes(b"half a database")
    Ledger(url, "s", mode="max").close()
    assert read_sweep(url, "s").trials == ()
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]
