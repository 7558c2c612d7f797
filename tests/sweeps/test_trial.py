import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.record import RungResult
from sweeps.spool import SpoolWriter, read_spool, spool_path
from sweeps.trial import (
    LATEST_NAME,
    LOG_NAME,
    Attempt,
    Ending,
    Job,
    Report,
    Task,
    TrialStopped,
    find_rung,
    from_result,
    to_result,
)

FIDELITIES = ((0.5, 0.25), (1.0, 1.0))
LABEL = "t000-0123abcd"
Body = Callable[[Report, Path, Path | None], None]


def attempt(tmp_path: Path, body: Body, *, checkpoint: str | None = None) -> Attempt:
    def train(params: object, *, report: Report, workdir: Path, resume_from: Path | None) -> None:
        body(report, workdir, resume_from)

    job = Job(
        train_fn=train,
        trials_dir=tmp_path,
        fidelities=FIDELITIES,
        metric="val/nds",
        num_threads=1,
    )
    task = Task(label=LABEL, params={}, attempt=1, checkpoint=checkpoint, seconds=100.0)
    return Attempt(job, task)


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
