import json
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.health import parse_rules
from sweeps.spool import (
    MAX_POINTS,
    NUM_NEWEST,
    SpoolCurves,
    SpoolWriter,
    read_spool,
    spool_path,
)
from sweeps.task import TASK_KEY, Ending, Task, flags_of, from_result, to_result
from sweeps.tracked import Delivery, flag_tags, points_of
from sweeps.training import ProcessLost
from sweeps.trial import (
    LATEST_NAME,
    LOG_NAME,
    Attempt,
    Job,
    Report,
    SweepTrainable,
    TrialStopped,
    find_rung,
)
from sweeps.trials import Role, RungResult
from sweeps.watch import MAX_JUDGEMENTS

FIDELITIES = ((0.5, 0.25), (1.0, 1.0))
LABEL = "t000-0123abcd"
Body = Callable[[Report, Path, Path | None], None]


def job_of(tmp_path: Path, body: Body, *, silence_s: float | None = None) -> Job:
    def train(params: object, *, report: Report, workdir: Path, resume_from: Path | None) -> None:
        body(report, workdir, resume_from)

    return Job(
        train_fn=train,
        trials_dir=tmp_path,
        fidelities=FIDELITIES,
        metric="val/nds",
        num_threads=1,
        silence_s=silence_s,
    )


def task_of(label: str = LABEL, checkpoint: str | None = None) -> Task:
    return Task(label=label, params={}, attempt=1, checkpoint=checkpoint, seconds=100.0)


def attempt(
    tmp_path: Path, body: Body, *, checkpoint: str | None = None, silence_s: float | None = None
) -> Attempt:
    job = job_of(tmp_path, body, silence_s=silence_s)
    return Attempt(job, task_of(checkpoint=checkpoint))


def tell(report: Report, index: int, nds: float = 0.3) -> None:
    fraction, val_share = FIDELITIES[index]
    report.rung(
        {"val/nds": nds},
        fraction=fraction,
        val_share=val_share,
        epoch=fraction,
        step=index,
        checkpoint=Path("rung.pth"),
    )


def full(report: Report, workdir: Path, resume_from: Path | None) -> None:
    tell(report, 0, 0.3)
    tell(report, 1, 0.4)


def ending(event: object) -> Ending:
    assert isinstance(event, Ending), event
    return event


def test_a_training_goes_from_rung_to_rung_to_its_end(tmp_path: Path) -> None:
    run = attempt(tmp_path, full)
    first, second, last = run.next(), run.next(), ending(run.next())
    assert isinstance(first, RungResult)
    assert isinstance(second, RungResult)
    assert (first.fraction, first.val_share, first.metrics) == (0.5, 0.25, {"val/nds": 0.3})
    assert first.checkpoint == str(Path("rung.pth").resolve())
    assert (last.outcome, last.reason) == ("finished", "")
    assert 100.0 < first.seconds <= second.seconds <= last.seconds < 110.0


def test_nothing_is_trained_past_a_rung_before_the_verdict(tmp_path: Path) -> None:
    went_on = threading.Event()

    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        tell(report, 0)
        went_on.set()

    run = attempt(tmp_path, body)
    run.next()
    assert not went_on.wait(0.1)
    assert ending(run.next()).outcome == "finished"
    assert went_on.is_set()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_trial(tmp_path: Path, bad: float) -> None:
    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        report.log({"train/loss": 1.0, "train/grad_norm": math.inf}, step=1)
        report.log({"train/loss_cls": bad}, step=2)
        tell(report, 0)

    end = ending(attempt(tmp_path, body).next())
    assert (end.outcome, end.reason) == ("diverged", f"train/loss_cls is {bad:g} at step 2")
    logged = [record["step"] for record in read_spool(spool_path(tmp_path / LABEL)).records[1:]]
    assert logged == [1]


def test_a_stopped_training_ends_normally_and_cleans_up(tmp_path: Path) -> None:
    seen: list[str] = []

    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        try:
            tell(report, 0)
            seen.append("trained on")
        except TrialStopped:
            seen.append("stopped")
            raise
        finally:
            seen.append("cleaned up")

    run = attempt(tmp_path, body)
    run.next()
    assert run.stop()
    assert seen == ["stopped", "cleaned up"]


def test_a_training_between_rungs_stops_at_its_next_log(tmp_path: Path) -> None:
    goes, told = threading.Event(), threading.Event()

    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        told.set()
        goes.wait()
        report.log({"train/loss": 1.0}, step=1)

    run = attempt(tmp_path, body)
    thread = threading.Thread(target=run.next)
    thread.start()
    told.wait()
    run._is_stopping.set()
    goes.set()
    assert run.stop()
    thread.join()


def test_an_attempt_that_never_began_stops(tmp_path: Path) -> None:
    assert attempt(tmp_path, full).stop()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["val/nds", "val/mate"])
def test_a_metric_that_is_not_finite_is_a_divergence(
    tmp_path: Path, key: str, value: float
) -> None:
    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        report.rung(
            {"val/nds": 0.3, key: value},
            fraction=0.5,
            val_share=0.25,
            epoch=0.5,
            step=1,
            checkpoint=None,
        )

    end = ending(attempt(tmp_path, body).next())
    assert (end.outcome, end.reason) == ("diverged", f"{key} is {value} at 50% of the budget")


def test_a_loss_that_is_not_finite_is_a_divergence(tmp_path: Path) -> None:
    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        raise FloatingPointError("the loss is nan at step 7")

    end = ending(attempt(tmp_path, body).next())
    assert (end.outcome, end.reason) == ("diverged", "the loss is nan at step 7")


def test_a_failure_carries_the_log_and_its_path(tmp_path: Path) -> None:
    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        print("reading samples")
        raise KeyError("missing sample")

    end = ending(attempt(tmp_path, body).next())
    log = tmp_path / LABEL / LOG_NAME
    assert end.outcome == "failed"
    assert end.reason.splitlines()[0] == "KeyError: 'missing sample'"
    assert f"log: {log}" in end.reason
    assert "reading samples" in log.read_text()
    assert "Traceback (most recent call last)" in log.read_text()


def test_even_an_exit_is_a_failure_of_the_trial_alone(tmp_path: Path) -> None:
    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        sys.exit(3)

    assert ending(attempt(tmp_path, body).next()).reason.startswith("SystemExit: 3")


@pytest.mark.timeout(30)
def test_an_error_around_the_training_is_a_failure(tmp_path: Path) -> None:
    # No timer can be set for so long.
    end = ending(attempt(tmp_path, full, silence_s=1e12).next())
    assert end.outcome == "failed"
    assert end.reason.startswith("OverflowError: ")
    assert 100.0 <= end.seconds < 110.0


@pytest.mark.timeout(30)
def test_a_spool_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    run = attempt(tmp_path, full)
    spool_path(tmp_path / LABEL).mkdir()
    assert ending(run.next()).reason.startswith("IsADirectoryError: [Errno 21]")


@pytest.mark.parametrize(
    ("metrics", "fraction", "message"),
    [
        ({"val/map": 0.1}, 0.5, "must report val/nds, but got ['val/map']"),
        ({"val/nds": 0.1}, 0.4, "must be one of [(0.5, 0.25), (1.0, 1.0)]"),
    ],
)
def test_a_rung_that_is_none_is_a_failure(
    tmp_path: Path, metrics: dict[str, float], fraction: float, message: str
) -> None:
    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        report.rung(metrics, fraction=fraction, val_share=0.25, epoch=0.5, step=1, checkpoint=None)

    end = ending(attempt(tmp_path, body).next())
    assert end.outcome == "failed"
    assert message in end.reason


def test_the_log_holds_prints_logging_and_native_output(tmp_path: Path) -> None:
    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        print("a print")
        logging.getLogger("some.library").info("a record")
        os.write(2, b"a native line\n")

    attempt(tmp_path, body).next()
    text = (tmp_path / LABEL / LOG_NAME).read_text()
    assert "a native line" in text
    assert "a record" in text


def test_the_newest_checkpoint_is_handed_over(tmp_path: Path) -> None:
    seen: list[Path | None] = []

    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        seen.append(resume_from)

    named, latest = tmp_path / "rung.pth", tmp_path / LABEL / LATEST_NAME
    attempt(tmp_path, body).next()
    latest.write_text("")
    attempt(tmp_path, body).next()
    named.write_text("")
    os.utime(named, (1, 1))
    attempt(tmp_path, body, checkpoint=str(named)).next()
    os.utime(latest, (0, 0))
    attempt(tmp_path, body, checkpoint=str(named)).next()
    assert seen == [None, latest, latest, named]


def test_a_named_checkpoint_that_is_gone_fails_the_trial(tmp_path: Path) -> None:
    end = ending(attempt(tmp_path, full, checkpoint="/nowhere/rung.pth").next())
    assert end.outcome == "failed"
    assert "/nowhere/rung.pth must exist to go on from" in end.reason


def test_the_spool_holds_logs_rungs_and_artifacts(tmp_path: Path) -> None:
    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        report.log({"train/loss": 2.0}, step=1)
        report.artifact(workdir / "config.py")
        full(report, workdir, resume_from)

    run = attempt(tmp_path, body)
    run.next()
    records = read_spool(spool_path(tmp_path / LABEL)).records
    assert [record["kind"] for record in records] == ["attempt", "log", "artifact", "rung"]
    assert records[1]["values"] == {"train/loss": 2.0}
    assert records[2]["path"] == str(tmp_path / LABEL / "config.py")
    assert records[3]["metrics"] == {"val/nds": 0.3}
    run.stop()


def test_a_spool_is_read_in_whole_lines_from_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "spool.jsonl"
    assert read_spool(path).records == ()
    writer = SpoolWriter(path)
    writer.log({"a": 1.0}, step=1)
    first = read_spool(path)
    assert len(first.records) == 1
    writer.log({"a": float("nan")}, step=2)
    with path.open("ab") as file:
        file.write(b'{"kind": "log", "st')
    second = read_spool(path, first.offset)
    assert [record["step"] for record in second.records] == [2]
    # That writer was killed in a line; the next one begins a new line.
    writer.close()
    writer = SpoolWriter(path)
    writer.log({"a": 3.0}, step=3)
    writer.close()
    third = read_spool(path, second.offset)
    assert [record["step"] for record in third.records] == [3]
    assert read_spool(path, third.offset).records == ()


def test_events_survive_a_result() -> None:
    rung = RungResult(
        fraction=0.5,
        val_share=1.0,
        epoch=1.0,
        step=3,
        metrics={"val/nds": 0.1},
        checkpoint=None,
        seconds=2.0,
    )
    end = Ending(outcome="failed", reason="why", seconds=3.0)
    assert from_result(json.loads(json.dumps(to_result(rung)))) == rung
    assert from_result(to_result(end)) == end
    assert (to_result(rung)["done"], to_result(end)["done"]) == (False, True)


@pytest.mark.parametrize(
    ("fraction", "val_share", "index"),
    [(0.5, 0.25, 0), (0.5 + 1e-9, 0.25, 0), (1.0, 1.0, 1), (0.5, 1.0, None), (0.4, 0.25, None)],
)
def test_a_rung_is_found_by_both_shares(
    fraction: float, val_share: float, index: int | None
) -> None:
    assert find_rung(FIDELITIES, fraction, val_share) == index


# A process that Tune gives one trial after the other.


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Callable[[Job, Task], SweepTrainable]:
    """Takes up its first trial, outside of Ray."""
    context = SimpleNamespace(get_node_id=lambda: "node")
    monkeypatch.setattr("sweeps.trial.get_runtime_context", lambda: context)
    monkeypatch.setattr("sweeps.trial.get_current_placement_group", lambda: None)
    monkeypatch.setattr("sweeps.trial.use_threads", lambda number: None)
    monkeypatch.setattr("sweeps.trial.heed_sigterm", lambda: None)

    def start(job: Job, task: Task) -> SweepTrainable:
        trainable = object.__new__(type("Trial", (SweepTrainable,), {"job": job}))
        trainable.setup(config(task))
        return trainable

    return start


def config(task: Task) -> dict[str, str]:
    return {TASK_KEY: task.to_json()}


def test_a_process_trains_one_trial_after_the_other(tmp_path: Path, process: Any) -> None:
    first = process(job_of(tmp_path, full), task_of())
    assert isinstance(from_result(first.step()), RungResult)
    assert first.reset_config(config(task_of("t001-0123abcd")))
    events = [from_result(first.step()) for _ in range(3)]
    assert ending(events[-1]).outcome == "finished"
    assert len(read_spool(spool_path(tmp_path / "t001-0123abcd")).records) == 3
    first.cleanup()


def test_after_a_training_that_does_not_end_the_next_trial_asks_for_another_process(
    tmp_path: Path, process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.trial.STOP_TIMEOUT_S", 0.2)
    is_free = threading.Event()

    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        try:
            tell(report, 0)
        finally:
            is_free.wait()

    trainable = process(job_of(tmp_path, body), task_of())
    trainable.step()
    stuck = trainable._attempt
    try:
        assert trainable.reset_config(config(task_of("t001-0123abcd")))
        with pytest.raises(ProcessLost, match="the training before it does not end"):
            trainable.step()
        assert not (tmp_path / "t001-0123abcd").exists()
        trainable.cleanup()
    finally:
        is_free.set()
    assert stuck.stop()


def test_a_trial_without_a_directory_fails_with_the_reason(tmp_path: Path, process: Any) -> None:
    refused = ["t000-0123abcd", "t001-0123abcd"]  # at the start of a process, and later
    for label in refused:
        (tmp_path / label).write_text("in the way")
    trainable = process(job_of(tmp_path, full), task_of(refused[0]))
    for label, next_label in zip(refused, [refused[1], "t002-0123abcd"], strict=True):
        result = trainable.step()
        end = ending(from_result(result))
        assert (end.outcome, end.seconds, result["done"]) == ("failed", 100.0, True)
        assert end.reason.startswith("FileExistsError: [Errno 17]")
        assert label in end.reason
        assert trainable.reset_config(config(task_of(next_label)))
    assert isinstance(from_result(trainable.step()), RungResult)
    trainable.cleanup()


# A training whose control falls beside it, and which logs an epoch of ten steps in each tenth.


def judged(
    tmp_path: Path,
    body: Body,
    *,
    rules: object,
    label: str = LABEL,
    epochs: float | None = 1.0,
    role: Role = "search",
) -> Attempt:
    def train(params: object, *, report: Report, workdir: Path, resume_from: Path | None) -> None:
        body(report, workdir, resume_from)

    job = Job(
        train_fn=train,
        trials_dir=tmp_path,
        fidelities=FIDELITIES,
        metric="val/nds",
        num_threads=1,
        health=parse_rules(rules),
        epochs=epochs,
    )
    task = Task(label=label, params={}, attempt=1, checkpoint=None, seconds=0.0, role=role)
    return Attempt(job, task)


def train_with(values: Mapping[str, float], *, start: int = 0, steps: int = 100) -> Body:
    """Logs the same values every ten steps of a hundred, then reports its rungs."""

    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        for step in range(start + 10, steps + 1, 10):
            report.log({**values, "train/epoch": step / 100}, step=step)
        full(report, workdir, resume_from)

    return body


CHANGE = "aqr/modulation_effect_pers/relative_change"
SUPPRESSED = {"aqr/camera_weights_stats/mean": 0.1}
STOP_REASON = (
    f"health: relative_change_pers: {CHANGE} is 0.9 at steps 10-20, above 0.5: "
    "the modulation replaces the camera features"
)


def flags(tmp_path: Path, label: str = LABEL) -> list[tuple[str, bool]]:
    records = read_spool(spool_path(tmp_path / label)).records
    return [(each["rule"], each["stop"]) for each in records if each["kind"] == "flag"]


def test_an_unhealthy_trial_ends_before_its_first_score_with_the_reason(tmp_path: Path) -> None:
    run = judged(tmp_path, train_with({CHANGE: 0.9}), rules="default")
    end = ending(run.next())
    assert (end.outcome, end.reason) == ("stopped", STOP_REASON)
    assert flags(tmp_path) == [("relative_change_pers", True)]
    result = to_result(end, run.flags)
    assert result["done"]
    assert flags_of(result) == {"relative_change_pers": STOP_REASON.split(": ", 2)[2]}
    steps = [r["step"] for r in read_spool(spool_path(tmp_path / LABEL)).records if "step" in r]
    assert steps == [10, 20]


def test_a_flag_is_said_once_and_the_training_goes_on(tmp_path: Path) -> None:
    run = judged(tmp_path, train_with(SUPPRESSED), rules="default")
    rung = run.next()
    assert isinstance(rung, RungResult)
    assert flags(tmp_path) == [("weights_low", False)]
    said = flags_of(to_result(rung, run.flags))
    assert list(said) == ["weights_low"]
    assert "is 0.1 at steps 10-20, below 0.2" in said["weights_low"]
    run.next()
    assert ending(run.next()).outcome == "finished"
    assert flags(tmp_path) == [("weights_low", False)]


def test_a_flag_of_an_earlier_attempt_is_remembered(tmp_path: Path) -> None:
    judged(tmp_path, train_with(SUPPRESSED), rules="default").next()
    again = judged(tmp_path, train_with(SUPPRESSED), rules="default")
    rung = again.next()
    assert isinstance(rung, RungResult)
    assert list(again.flags) == ["weights_low"]
    assert flags(tmp_path) == [("weights_low", False)]
    healthy = judged(tmp_path, train_with({}), rules="off")
    healthy.next()
    assert list(healthy.flags) == ["weights_low"]


def test_an_attempt_is_not_judged_by_what_the_last_one_did_later(tmp_path: Path) -> None:
    bad, good = {CHANGE: 0.9}, {CHANGE: 0.1}
    assert ending(judged(tmp_path, train_with(bad), rules="default").next()).outcome == "stopped"
    # The next attempt repeats all steps, and its own values are sound.
    assert isinstance(judged(tmp_path, train_with(good), rules="default").next(), RungResult)
    # One that goes on from step 20 has what came before it.
    other = "t001-0123abcd"
    mark = SpoolWriter(spool_path(_made(tmp_path / other)))
    mark.log({CHANGE: 0.9, "train/epoch": 0.1}, step=10)
    mark.close()
    run = judged(tmp_path, train_with(bad, start=10), rules="default", label=other)
    assert ending(run.next()).reason == STOP_REASON


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.mark.parametrize("rules", ["off", [], ["loss_rising"]])
def test_what_is_not_asked_for_is_not_judged(tmp_path: Path, rules: object) -> None:
    assert isinstance(judged(tmp_path, train_with({CHANGE: 0.9}), rules=rules).next(), RungResult)


def test_without_a_budget_nothing_is_judged(tmp_path: Path) -> None:
    run = judged(tmp_path, train_with({CHANGE: 0.9}), rules="default", epochs=None)
    assert isinstance(run.next(), RungResult)


@pytest.mark.parametrize(
    ("label", "role"),
    [("control-0123abcd", "control"), ("control2-0123abcd", "search"), (LABEL, "finalist")],
)
def test_controls_and_finalists_are_flagged_and_never_stopped(
    tmp_path: Path, label: str, role: Role
) -> None:
    run = judged(tmp_path, train_with({CHANGE: 0.9}), rules="default", label=label, role=role)
    assert isinstance(run.next(), RungResult)
    assert flags(tmp_path, label) == [("relative_change_pers", True)]


def losses(*values: float) -> Body:
    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        for i, value in enumerate(values, start=1):
            report.log({"train/loss": value, "train/epoch": i / 100}, step=i)
        full(report, workdir, resume_from)

    return body


def test_a_loss_is_compared_with_the_control_of_the_same_sweep(tmp_path: Path) -> None:
    own = [10.0 + 0.1 * (-1) ** i for i in range(60)]
    away = [value + 0.2 * i for i, value in enumerate(own)]
    # There is no control yet, and a rise of its own is asked for by another rule.
    alone = judged(tmp_path, losses(*away), rules=["loss_diverging"], label="t000-00000000")
    assert isinstance(alone.next(), RungResult)
    control = judged(tmp_path, losses(*own), rules="default", label="control-0123abcd")
    assert isinstance(control.next(), RungResult)
    end = ending(judged(tmp_path, losses(*away), rules=["loss_diverging"]).next())
    assert end.outcome == "stopped"
    assert end.reason.startswith("health: loss_diverging: train/loss is ")
    assert "above the control's" in end.reason
    near = judged(tmp_path, losses(*own), rules="default", label="t002-00000000")
    assert isinstance(near.next(), RungResult)


def test_a_trial_is_not_judged_at_every_step(tmp_path: Path, monkeypatch: Any) -> None:
    judgements: list[float] = []

    def count(*arguments: object, **named: object) -> tuple[()]:
        judgements.append(1)
        return ()

    monkeypatch.setattr("sweeps.watch.judge", count)

    def body(report: Report, workdir: Path, resume_from: Path | None) -> None:
        for step in range(1, 5001):
            report.log({"train/loss": 1.0, "train/epoch": step / 5000}, step=step)
        report.log({"train/lr": 1.0, "train/epoch": 1.5}, step=7500)  # nothing that is judged
        full(report, workdir, resume_from)

    judged(tmp_path, body, rules="default").next()
    assert MAX_JUDGEMENTS - 50 < len(judgements) <= MAX_JUDGEMENTS


def test_long_curves_are_kept_whole_at_their_end_and_sparse_before(tmp_path: Path) -> None:
    writer = SpoolWriter(path := tmp_path / "spool.jsonl")
    for step in range(5000):
        writer.log({"a": float(step), "b": 1.0}, step=step)
    writer.close()
    curves = SpoolCurves(path, {"a"})
    points = curves.read()["a"]
    assert set(curves.curves) == {"a"}
    assert len(points) <= MAX_POINTS
    assert points[0] == (0, 0.0)
    assert points[-NUM_NEWEST:] == [(s, float(s)) for s in range(5000 - NUM_NEWEST, 5000)]
    assert points == sorted(points)


def test_flags_become_tags_and_no_points() -> None:
    records = [
        {"kind": "attempt", "attempt": 1, "time_ms": 1},
        {"kind": "flag", "rule": "weights_low", "reason": "why", "stop": False, "time_ms": 2},
        {"kind": "log", "step": 1, "values": {"a": 1.0}, "time_ms": 3},
    ]
    points, artifacts, delivery = points_of(records, Delivery(uri="sqlite:///a", run_id="r"))
    assert [point.key for point in points] == ["a"]
    assert (artifacts, delivery.time_ms) == ([], 3)
    assert flag_tags(records) == {"health/weights_low": "why"}
