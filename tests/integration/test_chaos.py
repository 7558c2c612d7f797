"""Sweeps under fire: processes killed, servers gone, disks full, trainings that misbehave.

Every test ends with the verdict of an independent checker (`chaos.checker`). `CHAOS=large` makes
the random parts larger; `CHAOS_SEED` repeats a run. Each test prints what it counted, and adds it
as a line to the file named by `CHAOS_REPORT`.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from chaos.checker import Verdict
from chaos.faults import fill, locked, mlflow_server, read_only, small_disk
from chaos.subject import WAIT_S, Subject, family, kill

from launch.ports import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

LARGE = os.environ.get("CHAOS") == "large"
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
NUM_KILLS, NUM_TRIALS = (20, 30) if LARGE else (5, 10)
OUTAGE_S = 60.0 if LARGE else 1.0  # from when it was noticed
LOCK_S = 75.0 if LARGE else 3.0  # SQLite waits for 60 s by itself
NUM_STEPS = 12
large_only = pytest.mark.skipif(not LARGE, reason="takes long: `make chaos` runs it")
RUNGS = "{rule: none, rungs: [0.5, 1.0]}"


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    subject = Subject(folder=tmp_path)
    yield subject
    subject.sweep_up()


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; its creation takes seconds, a copy none."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


def report(fault: str, verdict: Verdict, **counts: int | float | str) -> None:
    line = {"fault": fault, **counts, **verdict.counts}
    print(json.dumps(line))
    if path := os.environ.get("CHAOS_REPORT"):
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")


def budget(num_trials: int) -> dict[str, str]:
    return {"budget": f"{{trials: {num_trials}}}", "stopping": RUNGS}


def ray_env(env: dict[str, str]) -> dict[str, str]:
    """Where a cluster is, and how to be let in."""
    return {key: value for key, value in env.items() if key.startswith("RAY_")}


def num_steps_done(subject: Subject) -> int:
    return len(subject.lines("step"))


def test_a_driver_killed_at_random_moments(subject: Subject, migrated: Path) -> None:
    print(f"CHAOS_SEED={SEED}")
    dice = random.Random(SEED)
    subject.sections, subject.track = budget(NUM_TRIALS), True
    num_steps = 2 * NUM_STEPS
    subject.training = {"num_steps": num_steps, "steps_per_checkpoint": 4}
    database = subject.sweeps / "mlflow.db"
    database.parent.mkdir()
    database.write_bytes(migrated.read_bytes())
    steps_per_kill = (NUM_TRIALS + 1) * num_steps / (NUM_KILLS + 1)
    seen, num_early, num_whole = [], 0, 0
    for _ in range(NUM_KILLS):
        command = "resume" if (subject.directory / "spec.yaml").exists() else "run"
        early, whole = dice.random() < 0.2, dice.random() < 0.5
        with subject.driver(command) as process:
            if early:
                time.sleep(dice.uniform(0.1, 9.0))
            else:
                goal = num_steps_done(subject) + dice.uniform(1, 1.6 * steps_per_kill)
                goal = min(goal, (NUM_TRIALS + 1) * num_steps - 2)
                subject.wait_until(process, lambda goal=goal: num_steps_done(subject) >= goal)
                time.sleep(dice.uniform(0, 0.2))
            assert process.poll() is None, subject.said.read_text()
            # The driver alone, or its Ray with it.
            kill(family(process.pid) if whole else [psutil.Process(process.pid)])
            process.wait(30)
        num_early, num_whole = num_early + early, num_whole + whole
        if subject.study.is_file():
            seen.append(subject.look())
            subject.judge(*seen[:-1], num_trials=None)
    subject.finish("resume" if subject.study.is_file() else "run")
    verdict = subject.judge(*seen, num_trials=NUM_TRIALS, database=database)
    assert verdict.counts["finished"] == NUM_TRIALS + 1
    report(
        "driver killed",
        verdict,
        tries=NUM_KILLS,
        early=num_early,
        with_ray=num_whole,
        seed=SEED,
    )


def test_workers_are_killed(subject: Subject) -> None:
    """Each time a trial's own process; Ray replaces it, and no driver is restarted."""
    num_kills = 10 if LARGE else 3
    dice = random.Random(SEED)
    subject.sections = {
        **budget(num_kills + 2),
        "resources": "{cpus: 1, concurrent: 2, retries: 9}",
    }
    killed: set[int] = set()
    with subject.driver("run") as process:
        for _ in range(num_kills):
            known = num_steps_done(subject)
            subject.wait_until(process, lambda n=known: num_steps_done(subject) > n + 3)
            fresh = [line for line in subject.lines("step") if line["pid"] not in killed]
            line = max(fresh, key=lambda line: line["time"])
            time.sleep(dice.uniform(0, 0.2))
            kill([psutil.Process(line["pid"])])
            killed.add(line["pid"])
        seen = subject.look()
        assert process.wait(WAIT_S) == 0, subject.said.read_text()
    verdict = subject.judge(seen, num_trials=num_kills + 2)
    assert verdict.counts["finished"] == num_kills + 3
    assert verdict.counts["attempts"] > num_kills + 3
    report("worker killed", verdict, tries=num_kills)


@large_only
def test_a_raylet_and_then_the_head_are_killed(subject: Subject) -> None:
    from test_gangs import Cluster, running

    num_trials = 12 if LARGE else 6
    subject.sections = {**budget(num_trials), "resources": "{cpus: 1, concurrent: 2}"}
    with running(Cluster(), 2, gpus=0, cpus=1) as cluster:
        # A driver waits for a head that is gone; a minute of it proves no more than seconds do.
        subject.env = {**ray_env(cluster.env), "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
        with subject.driver("run") as process:
            subject.wait_until(process, lambda: len(subject.lines("acknowledged")) >= 2)
            kill(family(cluster._nodes[1].pid))
            cluster._nodes[1].wait(30)
            known = len(subject.lines("acknowledged"))
            subject.wait_until(process, lambda: len(subject.lines("acknowledged")) > known + 1)
            before_head = subject.look()
            kill(family(cluster._nodes[0].pid))
            cluster._nodes[0].wait(30)
            started = time.monotonic()
            code = process.wait(WAIT_S)
            gone_s = time.monotonic() - started
            assert code != 0, subject.said.read_text()
    seen = subject.look()
    with running(Cluster(), 1, gpus=0, cpus=2) as cluster:
        subject.env = ray_env(cluster.env)
        subject.finish("resume")
    verdict = subject.judge(before_head, seen, num_trials=num_trials)
    assert verdict.counts["finished"] == num_trials + 1
    report("raylet, then head killed", verdict, tries=2, driver_gone_after_s=round(gone_s))


def test_mlflows_server_is_gone_for_a_while(subject: Subject, migrated: Path) -> None:
    port, num_trials = free_port(), 4
    (subject.folder / "server.db").write_bytes(migrated.read_bytes())
    subject.track = True
    subject.training, subject.patience_s = {"step_s": 0.15}, 150.0
    subject.sections = {**budget(num_trials), "tracking": f'{{uri: "http://127.0.0.1:{port}"}}'}
    with ExitStack() as stack:
        with mlflow_server(subject.folder, port):
            process = stack.enter_context(subject.driver("run"))
            subject.wait_until(process, lambda: len(subject.lines("acknowledged")) >= 2)
        subject.wait_until(process, lambda: "cannot be written" in subject.said.read_text())
        time.sleep(OUTAGE_S)
        assert process.poll() is None, subject.said.read_text()
        with mlflow_server(subject.folder, port) as database:
            assert process.wait(WAIT_S) == 0, subject.said.read_text()
    verdict = subject.judge(num_trials=num_trials, database=database)
    assert verdict.counts["finished"] == num_trials + 1
    report("MLflow's server gone", verdict, tries=1, seconds=OUTAGE_S)


def test_sigterm_to_everything(subject: Subject) -> None:
    """As a machine that is taken away: a notice, a grace period, and the end."""
    num_rounds = 4 if LARGE else 1
    subject.sections = budget(4 * num_rounds)
    seen, command = [], "run"
    for _ in range(num_rounds):
        known = len(subject.lines("acknowledged"))
        with subject.driver(command) as process:
            subject.wait_until(process, lambda n=known: len(subject.lines("acknowledged")) > n + 1)
            for member in family(process.pid):
                with suppress(psutil.NoSuchProcess):
                    member.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
        subject.sweep_up()
        seen.append(subject.look())
        command = "resume"
    subject.finish("resume")
    verdict = subject.judge(*seen, num_trials=4 * num_rounds)
    assert verdict.counts["finished"] == 4 * num_rounds + 1
    report("SIGTERM to everything", verdict, tries=num_rounds)


def test_a_disk_that_is_full(subject: Subject) -> None:
    subject.sections = budget(5)
    with small_disk(subject.folder / "disk", 8) as disk:
        subject.sweeps = disk / "sweeps"
        with subject.driver("run") as process:
            subject.wait_until(process, lambda: len(subject.lines("acknowledged")) >= 3)
            ballast = fill(disk)
            # What somebody frees meanwhile, a journal or an old log, is filled as well.
            subject.wait_until_gone(process, lambda: fill(disk))
            code = process.wait()
            said = subject.said.read_text()
        subject.sweep_up()
        assert code != 0, said
        ballast.unlink()
        seen = subject.look()
        failed = [trial.reason for trial in seen.trials.values() if trial.outcome == "failed"]
        subject.finish("resume")
        # Whichever write comes first hits the wall: the study's, a log's, or Ray's own.
        assert any(text in said for text in ("MB are left there", "No space left")), said
        assert not failed, failed
        verdict = subject.judge(seen, num_trials=5)
        assert verdict.counts["finished"] == 6
        report("full disk", verdict, tries=1)


@large_only
def test_a_storage_that_became_read_only(subject: Subject) -> None:
    subject.sections = budget(3)
    with small_disk(subject.folder / "disk", 64) as disk:
        subject.sweeps = disk / "sweeps"
        with subject.driver("run") as process:
            subject.wait_until(process, lambda: len(subject.lines("acknowledged")) >= 2)
            kill(family(process.pid))
        subject.sweep_up()
        seen = subject.look()
        with read_only(disk):
            said = subject.finish("resume", code=1)
            assert "Read-only file system" in said or "readonly database" in said, said
        subject.finish("resume")
        verdict = subject.judge(seen, num_trials=3)
        assert verdict.counts["finished"] == 4
        report("read-only storage", verdict, tries=1)


def test_a_study_that_another_process_locks(subject: Subject) -> None:
    subject.sections = budget(3)
    with subject.driver("run") as process:
        subject.wait_until(process, lambda: len(subject.lines("acknowledged")) >= 1)
        with locked(subject.study):
            time.sleep(LOCK_S)
            assert process.poll() is None, subject.said.read_text()
        seen = subject.look()
        assert process.wait(WAIT_S) == 0, subject.said.read_text()
    said = subject.said.read_text()
    assert ("does not answer (database is locked): waiting" in said) == LARGE, said
    verdict = subject.judge(seen, num_trials=3)
    assert verdict.counts["finished"] == 4
    report("locked study", verdict, tries=1, seconds=LOCK_S)


FAULTS = {
    "t000": ("loss nan", "diverged", "train/loss is nan at step 5"),
    "t001": ("loss inf", "diverged", "train/loss is inf at step 5"),
    "t002": ("score nan", "diverged", "val/nds is nan at 50% of the budget"),
    "t003": ("score inf", "diverged", "val/nds is inf at 50% of the budget"),
    "t004": ("no score", "failed", "a rung must report val/nds"),
    "t005": ("wrong rung", "failed", "a rung must be one of"),
    "t006": ("out of order", "failed", "rung 2 came before rung 1"),
    "t007": ("reports twice", "finished", ""),
    "t008": ("logs twice", "finished", ""),
    "t009": ("raises", "failed", "sample 17 is corrupt"),
    "t010": ("no build", "failed", "no_such_part is not registered"),
    "t011": ("dies", "failed", "the trial's process ended"),
    "t012": ("hangs", "finished", ""),
    "t013": ("always hangs", "failed", "the training reported nothing for 0:00:06 h"),
}


def test_trainings_that_misbehave(subject: Subject, migrated: Path) -> None:
    """Each ends by itself, with its own reason, and the sweep goes on."""
    resources = "{retries: 1, silence_minutes: 0.1}"
    subject.sections = {**budget(len(FAULTS) + 1), "resources": resources}
    subject.training = {"faults": {stem: fault for stem, (fault, *_) in FAULTS.items()}}
    subject.training["step_s"], subject.track = 0.02, True
    database = subject.sweeps / "mlflow.db"
    database.parent.mkdir()
    database.write_bytes(migrated.read_bytes())
    subject.finish("run")
    trials = subject.trials()
    for stem, (fault, outcome, reason) in FAULTS.items():
        assert trials[stem].outcome == outcome, (fault, trials[stem])
        assert reason in trials[stem].reason, (fault, trials[stem].reason)
    assert len(subject.lines("hangs")) == 3  # one of them once, the other in both attempts
    assert trials[f"t{len(FAULTS):03d}"].outcome == "finished"
    # A trial that did not finish leaves no score to choose by.
    lost = [s for s, (_, outcome, _) in FAULTS.items() if outcome != "finished"]
    assert all(trials[stem].value is None for stem in lost)
    verdict = subject.judge(num_trials=len(FAULTS) + 1, database=database)
    report("trainings that misbehave", verdict, tries=len(FAULTS))


@large_only
def test_a_corrupt_checkpoint_falls_back_to_the_one_before(subject: Subject) -> None:
    subject.sections = {**budget(2), "control": "false"}
    subject.training = {"faults": {"t000": "corrupt"}, "real_checkpoints": True}
    subject.finish("run")
    verdict = subject.judge(num_trials=None)
    spoilt = subject.trials()["t000"]
    assert spoilt.outcome == "finished", spoilt.reason
    begins = [line["step"] for line in subject.lines("begin")]
    assert sorted(begins) == [0, 0, 3], begins  # step 6 was spoilt
    report("corrupt checkpoint", verdict, tries=1)


def test_a_changed_spec_and_a_second_driver_are_refused(subject: Subject) -> None:
    subject.sections = budget(3)
    with subject.driver("run") as process:
        subject.wait_until(process, lambda: len(subject.lines("acknowledged")) >= 1)
        psutil.Process(process.pid).suspend()  # so that it does not end meanwhile
        first = subject.said
        said = subject.finish("resume", code=3)
        assert f"another driver has the sweep in {subject.directory} (process {process.pid}" in said
        psutil.Process(process.pid).resume()
        known = len(subject.lines("acknowledged"))
        subject.said = first
        # The other has not disturbed it: it goes on.
        subject.wait_until(process, lambda: len(subject.lines("acknowledged")) > known)
        kill(family(process.pid))
    subject.sweep_up()
    seen = subject.look()
    said = subject.finish("resume", code=3, objective="{noise: 0.2}")
    assert "objective changed" in said
    said = subject.finish("run", code=3)
    assert "exists in" in said
    assert subject.look() == seen
    subject.finish("resume")
    verdict = subject.judge(seen, num_trials=3)
    report("second driver, changed spec, second run", verdict, tries=3)
