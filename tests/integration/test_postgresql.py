"""Sweeps whose study is on a PostgreSQL server: it restarts, goes away, and loses its answers.

A real server, started here; the verdict is the chaos suite's (`chaos.checker`), as are its sizes
and its report.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from chaos.databases import PASSWORD, USER, LossyLine, Postgres, num_sessions, postgres
from chaos.subject import WAIT_S, Subject, family, kill
from machine import RAY_PATIENCE
from test_chaos import LARGE, SEED, budget, num_steps_done, report
from toy_checkout import make_toy_checkout

from sweeps import patience
from sweeps.record import Ledger, read_sweep
from sweeps.storage import StorageError, StorageHeld

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

OUTAGE_S = 10.0 if LARGE else 1.0  # from when it was noticed
AWAY = "does not answer"
DENIED = 4


@pytest.fixture
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def subject(tmp_path: Path, server: Postgres) -> Iterator[Subject]:
    subject = Subject(folder=tmp_path, url=server.url)
    yield subject
    subject.sweep_up()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def files_that_tell(folder: Path, secret: str) -> list[str]:
    """Files below a folder that hold a text."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    forms = {secret.encode(), secret.replace("/", "%2F").replace("?", "%3F").encode()}
    return [p.name for p in files if any(form in p.read_bytes() for form in forms)]


def test_a_server_restarts_in_mid_sweep(server: Postgres, subject: Subject) -> None:
    modes = ["fast", "immediate", "fast"] * 4 if LARGE else ["fast", "immediate"]
    num_trials = 2 * len(modes) + 1
    subject.sections, subject.track = budget(num_trials), True
    dice, seen = random.Random(SEED), []
    with subject.driver("run") as process:
        for mode in modes:
            known = num_steps_done(subject)
            goal = known + dice.randrange(4, 20)
            subject.wait_until(process, lambda goal=goal: num_steps_done(subject) >= goal)
            seen.append(subject.look())
            known = subject.said.read_text().count(AWAY)
            server.stop(mode)  # immediate: as after a crash
            subject.wait_until(process, lambda n=known: subject.said.read_text().count(AWAY) > n)
            time.sleep(OUTAGE_S)
            assert process.poll() is None, subject.said.read_text()
            server.start()
        assert process.wait(WAIT_S) == 0, subject.said.read_text()
    said = subject.said.read_text()
    assert f"postgresql+psycopg://{USER}:***@127.0.0.1:{server.port}/postgres is back" in said
    verdict = subject.judge(*seen, num_trials=num_trials, database=subject.sweeps / "mlflow.db")
    assert verdict.counts["finished"] == verdict.counts["attempts"] == num_trials + 1
    assert files_that_tell(subject.folder, PASSWORD) == ["study.url"]
    report("PostgreSQL restarts", verdict, tries=len(modes), seconds=OUTAGE_S, seed=SEED)


def test_a_driver_killed_and_resumed(server: Postgres, subject: Subject) -> None:
    num_kills, num_trials = (12, 18) if LARGE else (3, 5)
    subject.sections = budget(num_trials)
    per_kill = (num_trials + 1) * 12 / (num_kills + 1)
    dice, seen = random.Random(SEED), []
    for i in range(num_kills):
        with subject.driver("resume" if i else "run") as process:
            goal = min(num_steps_done(subject) + dice.uniform(1, 1.6 * per_kill), 12 * num_trials)
            subject.wait_until(process, lambda goal=goal: num_steps_done(subject) >= goal)
            time.sleep(dice.uniform(0, 0.2))
            whole = dice.random() < 0.5
            kill(family(process.pid) if whole else [psutil.Process(process.pid)])
            process.wait(30)
        seen.append(subject.look())
        subject.judge(*seen[:-1], num_trials=None)
    subject.finish("resume")
    wait_for(lambda: num_sessions(server.url) == 0)  # the server sees a moment later who has left
    verdict = subject.judge(*seen, num_trials=num_trials)
    assert verdict.counts["finished"] == num_trials + 1
    report("driver killed, study on PostgreSQL", verdict, tries=num_kills, seed=SEED)


def test_answers_that_never_arrive(server: Postgres, subject: Subject) -> None:
    """The line breaks after the server has taken a write and before it could say so."""
    num_trials = 20 if LARGE else 5
    line = LossyLine(server.port, every=5)
    subject.sections, subject.line = budget(num_trials), server.url_at(line.port)
    subject.finish("run")
    line.close()
    verdict = subject.judge(num_trials=num_trials)
    assert verdict.counts["finished"] == num_trials + 1
    # The control and every trial, and more beside.
    assert line.num_trials == num_trials + 1
    assert line.num_lost > 2 * line.num_trials
    report("PostgreSQL's answers lost", verdict, tries=line.num_lost, of_trials=line.num_trials)


def test_a_server_that_stays_away(server: Postgres, subject: Subject) -> None:
    """The driver gives up when it has said; a resume goes on."""
    subject.sections, subject.storage_patience_s = budget(3), 2.0
    with subject.driver("run") as process:
        subject.wait_until(process, lambda: len(subject.lines("acknowledged")) >= 2)
        seen = subject.look()
        server.stop()
        assert process.wait(WAIT_S) == DENIED, subject.said.read_text()
        said = subject.said.read_text()
    last = said.strip().splitlines()[-1]
    assert f"the study's database postgresql+psycopg://{USER}:***@" in last
    assert "nothing that was acknowledged is lost, and a resume goes on when it is back" in last
    subject.sweep_up()
    refused = subject.finish("resume", code=DENIED)
    assert "cannot be opened" in refused.strip().splitlines()[-1]
    server.start()
    subject.finish("resume")
    verdict = subject.judge(seen, num_trials=3)
    assert verdict.counts["finished"] == 4
    report("PostgreSQL stays away", verdict, tries=1)


def test_who_lost_the_server_and_the_sweep_to_another_driver_writes_no_more(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Ledger(server.url, "s", mode="max")
    first.set_attr("whose", "first")
    with pytest.raises(StorageHeld, match="another driver has the sweep 's' in postgresql://"):
        Ledger(server.url, "s", mode="max")
    server.stop()
    server.start()
    second = Ledger(server.url, "s", mode="max")  # before the first has noticed
    second.set_attr("whose", "second")
    monkeypatch.setattr(patience, "PATIENCE_S", 0.5)
    with pytest.raises(StorageError, match="its lock on the sweep is with aqr-sweep, process"):
        first.set_attr("whose", "first again")
    assert read_sweep(server.url, "s").attrs["whose"] == "second"
    second.close()
    first.set_attr("whose", "first at last")
    assert read_sweep(server.url, "s").attrs["whose"] == "first at last"
    first.close()


def test_two_sweeps_share_a_database(server: Postgres) -> None:
    names = ("one", "two")
    ledgers = [Ledger(server.url, name, mode="max") for name in names]
    for ledger in ledgers:
        ledger.set_attr("name", ledger.name)
    assert [read_sweep(server.url, name).attrs["name"] for name in names] == list(names)
    with pytest.raises(KeyError):
        read_sweep(server.url, "three")
    for ledger in ledgers:
        ledger.close()


def test_reading_from_an_empty_database_makes_nothing(server: Postgres) -> None:
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="has this sweep been started"):
            read_sweep(server.url, "s")


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    without = ("RAY_", "AQR_")
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments],
        cwd=cwd,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith(without)},
            **RAY_PATIENCE,
        },
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )


def test_the_commands_show_no_password_and_find_the_study_again(
    server: Postgres, tmp_path: Path
) -> None:
    checkout = make_toy_checkout(tmp_path / "checkout")
    spec = checkout / "toy.yaml"
    spec.write_text(f"{spec.read_text()}storage: {{path: runs, study: '{server.url}'}}\n")
    outputs = []
    for arguments, says in (
        (("run", "toy.yaml", "--plain"), "Leaderboard of"),
        (("resume", "toy", "--plain"), "Leaderboard of"),
        (("status", "toy"), "3 of 3 trials have ended."),
        (("report", "toy"), "Leaderboard of"),
        (("export", "toy"), "Train from it with"),
    ):
        done = command(*arguments, cwd=checkout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert says in done.stdout, done.stdout
        outputs += [done.stdout, done.stderr]
    server.stop()
    away = command("status", "toy", cwd=checkout)
    assert away.returncode == 1
    assert away.stderr.startswith("The study's database postgresql://")
    assert "cannot be opened" in away.stderr
    assert "Traceback" not in away.stderr
    assert not any(PASSWORD in text or "not%2F" in text for text in [*outputs, away.stderr])
    spec.unlink()
    assert files_that_tell(checkout, PASSWORD) == ["study.url"]


def test_a_server_that_is_away_at_the_start(server: Postgres, subject: Subject) -> None:
    subject.sections = {**budget(1), "control": "false"}
    server.stop()
    said = subject.finish("run", code=DENIED)
    assert said.strip().splitlines()[-1].startswith("the study's database postgresql://")
    assert "cannot be opened" in said
    assert PASSWORD not in said
    # Nothing was begun: the same command works later.
    assert not (subject.directory / "spec.yaml").exists()
    server.start()
    subject.finish("run")
    subject.judge(num_trials=1)


def test_a_second_driver_from_another_directory_is_refused(
    server: Postgres, subject: Subject, tmp_path: Path
) -> None:
    subject.sections = budget(2)
    other = Subject(folder=tmp_path / "elsewhere", url=server.url, sections=subject.sections)
    with subject.driver("run") as process:
        subject.wait_until(process, lambda: len(subject.lines("acknowledged")) >= 1)
        psutil.Process(process.pid).suspend()  # so that it does not end meanwhile
        said = other.finish("run", code=3)
        psutil.Process(process.pid).resume()
        assert f"another driver has the sweep 'small' in postgresql://{USER}:***@" in said
        assert f"process {process.pid} on " in said
        assert process.wait(WAIT_S) == 0, subject.said.read_text()
    said = other.finish("run", code=3)
    assert "holds a sweep 'small' already, which was started from another directory" in said
    assert not (other.directory / "spec.yaml").exists()
    verdict = subject.judge(num_trials=2)
    report("second driver on PostgreSQL", verdict, tries=2)
