import json
import os
import queue
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps import seat as seats
from sweeps.gang import _all_well, _raise_for, visible_gpus
from sweeps.logs import log_path
from sweeps.memory import (
    FEWER_SAMPLES,
    LESS_AT_ONCE,
    MORE_SHARED,
    OutOfMemory,
    advice_for,
    advice_for_death,
    num_killed,
)
from sweeps.placing import bundles_of, misfit, num_trials_fitting
from sweeps.retries import Retries
from sweeps.seat import Seat, current_seat, heed_sigterm, must_leave, take_seat
from sweeps.sections import ResourcesSpec
from sweeps.task import TASK_KEY, Mark, Task, to_result
from sweeps.training import (
    GangFailed,
    PeerFailed,
    ProcessLost,
    Report,
    TrialPreempted,
    TrialStopped,
)
from sweeps.trials import RungResult
from sweeps.worker import Call, End, Place, Training, Worker

# What a trial takes, and whether it fits.

NODE = {"CPU": 48.0, "GPU": 8.0, "memory": 1e9}


def resources(**values: int) -> ResourcesSpec:
    return ResourcesSpec(**values)


@pytest.mark.parametrize(
    ("values", "bundles"),
    [
        ({"cpus": 3}, [{"CPU": 3.0}]),
        ({"gpus": 1, "cpus": 6}, [{"GPU": 1.0, "CPU": 6.0}]),
        ({"gpus": 4, "cpus": 8}, [{"GPU": 1.0, "CPU": 2.0}] * 4),
    ],
)
def test_each_process_takes_one_gpu_and_its_share_of_the_cpus(
    values: dict[str, int], bundles: list[dict[str, float]]
) -> None:
    assert bundles_of(resources(**values)) == bundles


@pytest.mark.parametrize(
    ("values", "nodes", "number"),
    [
        ({"gpus": 8, "cpus": 48}, [NODE, NODE], 2),
        ({"gpus": 8, "cpus": 48}, [NODE, {"CPU": 64.0}], 1),
        ({"gpus": 12, "cpus": 12}, [NODE, NODE], 1),
        ({"gpus": 8, "cpus": 64}, [NODE, NODE], 1),  # six processes a node
        ({"gpus": 2, "cpus": 2}, [{"CPU": 4.0, "GPU": 1.0}] * 3, 1),
        ({"gpus": 1, "cpus": 6}, [NODE], 8),
        ({"cpus": 20}, [NODE, {"CPU": 19.0}], 2),
    ],
)
def test_as_many_trials_fit_as_their_processes_find_places(
    values: dict[str, int], nodes: list[dict[str, float]], number: int
) -> None:
    assert num_trials_fitting(resources(**values), nodes) == number
    assert misfit(resources(**values), nodes) is None


@pytest.mark.parametrize(
    ("values", "nodes", "reason"),
    [
        (
            {"gpus": 16, "cpus": 16},
            [NODE, {"CPU": 8.0}],
            "the cluster must hold one trial, 16 processes of 1 GPU, 1 CPU each, but has room for "
            "8; in all it has 8 GPU, 56 CPU",
        ),
        (
            {"gpus": 2, "cpus": 98},
            [NODE],
            "a node of the cluster must hold a process of a trial (2), 1 GPU, 49 CPU, but none of "
            "its 1 does; the most that one has: 8 GPU, 48 CPU",
        ),
        (
            {"cpus": 49},
            [NODE, NODE],
            "a node of the cluster must hold one trial, 49 CPU, but none of its 2 does; the most "
            "that one has: 48 CPU",
        ),
        ({"cpus": 1}, [], "none of its 0 does; the most that one has: 0 CPU"),
    ],
)
def test_what_does_not_fit_is_told_with_what_is_there(
    values: dict[str, int], nodes: list[dict[str, float]], reason: str
) -> None:
    assert num_trials_fitting(resources(**values), nodes) == 0
    assert reason in (misfit(resources(**values), nodes) or "")


# Out of memory.


class OutOfMemoryError(RuntimeError):
    """As torch names it."""

    __module__ = "torch.cuda"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OutOfMemoryError("Tried to allocate 2 GiB"), FEWER_SAMPLES),
        (RuntimeError("CUDA error: out of memory"), FEWER_SAMPLES),
        (RuntimeError("CUDA out of memory. Tried to allocate"), FEWER_SAMPLES),
        (MemoryError(), LESS_AT_ONCE),
        (OSError(12, "Cannot allocate memory"), LESS_AT_ONCE),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), LESS_AT_ONCE),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), LESS_AT_ONCE),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), MORE_SHARED),
        (OSError(28, "No space left on device"), None),
        (RuntimeError("a corrupt sample"), None),
        (ValueError("memory_gb must be positive"), None),
    ],
)
def test_lack_of_memory_is_told_from_other_errors(error: Exception, advice: str | None) -> None:
    assert advice_for(error) == advice


def test_deaths_by_rays_monitor_name_themselves() -> None:
    said = "1 worker(s) were killed due to the node running low on memory. 2GB used.\nWhy\nTable"
    assert advice_for_death(said) == f"{LESS_AT_ONCE}. {said.partition('.')[0]}. 2GB used. Why"
    assert advice_for_death("connection error code 2. End of file.") is None


def test_the_kernels_kills_are_counted_where_the_process_lives(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    assert num_killed(proc, groups) is None
    (proc / "vmstat").write_text("nr_free_pages 5\noom_kill 7\n")
    assert num_killed(proc, groups) == 7
    # The machine's count says nothing about a process in a group of its own.
    (proc / "self" / "cgroup").write_text("4:memory:/job_1\n0::/job_1/step_0\n")
    old = groups / "memory" / "job_1"
    old.mkdir(parents=True)
    (old / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert num_killed(proc, groups) == 2
    (proc / "self" / "cgroup").write_text("0::/job_1/step_0\n")
    new = groups / "job_1" / "step_0"
    new.mkdir(parents=True)
    (new / "memory.events").write_text("low 0\noom 4\noom_kill 3\noom_group_kill 0\n")
    assert num_killed(proc, groups) == 3


# The place of a process.


def test_a_process_is_alone_until_it_is_placed() -> None:
    assert current_seat() == Seat(rank=0, size=1)
    take_seat(placed := Seat(rank=3, size=8))
    assert current_seat() == placed
    take_seat()
    assert current_seat().size == 1
    with pytest.raises(ValueError, match=r"`0 <= rank < size` must hold, but got 8 of 8"):
        Seat(rank=8, size=8)


@pytest.fixture
def _own_notice(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(seats, "_told_to_leave", threading.Event())
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_own_notice")
def test_sigterm_ends_nothing_and_is_remembered() -> None:
    heed_sigterm()
    assert not must_leave()
    os.kill(os.getpid(), signal.SIGTERM)
    assert must_leave()


def test_a_gang_sees_all_of_its_gpus_on_a_node_and_no_others() -> None:
    def place(node: str, *gpus: str) -> Place:
        return Place(node=node, address="", pid=1, gpus=gpus, num_killed=None)

    places = [place("a", "3"), place("b", "0"), place("a", "1")]
    assert visible_gpus(places, "a") == ["1", "3"]
    assert visible_gpus(places, "b") == ["0"]
    assert visible_gpus([place("a")], "a") == []


# What ends a gang.

STOPPED, LEFT = TrialStopped(), TrialPreempted("saved")
ECHO = End(error=GangFailed("Connection closed by peer"), is_echo=True)
FAILED = End(error=GangFailed("rank 1 of 2: a corrupt sample"))


@pytest.mark.parametrize(
    ("ends", "kind", "text"),
    [
        ({0: ECHO, 1: FAILED}, GangFailed, "a corrupt sample"),
        ({1: FAILED, 0: ECHO}, GangFailed, "a corrupt sample"),
        ({1: ECHO, 0: End(error=STOPPED)}, TrialStopped, ""),
        ({1: End(error=LEFT), 0: End(error=LEFT)}, TrialPreempted, "saved"),
        ({1: End(error=LEFT), 0: FAILED}, GangFailed, "a corrupt sample"),
        ({0: ECHO, 1: ECHO}, ProcessLost, "Connection closed by peer"),
        ({0: ECHO}, ProcessLost, "Connection closed by peer"),
        ({0: End()}, ProcessLost, "rank 1 of 2 did not end with the others"),
        ({0: End(error=OutOfMemory("no room")), 1: ECHO}, OutOfMemory, "no room"),
        ({1: End(error=FloatingPointError("nan"))}, FloatingPointError, "nan"),
    ],
)
def test_the_cause_ends_a_gang_and_not_its_echo(
    ends: dict[int, End], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as raised:
        _raise_for(ends, 2)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("ends", "well"),
    [
        ({0: End(), 1: End()}, True),
        ({0: End(error=STOPPED), 1: ECHO}, True),
        ({0: End(error=STOPPED), 1: End(error=STOPPED)}, True),
        ({0: End()}, False),
        ({}, False),
        ({0: End(), 1: FAILED}, False),
        ({0: End(error=LEFT), 1: End(error=LEFT)}, False),
    ],
)
def test_only_workers_that_ended_as_they_should_train_again(
    ends: dict[int, End], well: bool
) -> None:
    assert _all_well(ends, 2) is well


def test_a_gang_that_trained_to_its_end_raises_nothing() -> None:
    _raise_for({0: End(), 1: End()}, 2)


# One worker, asked as the leader does.


class Body:
    def __init__(self, body: Any) -> None:
        self.body = body

    def __call__(self, params: Any, *, report: Report, workdir: Path, resume_from: Any) -> None:
        self.body(report, workdir)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("sweeps.worker.heed_sigterm", lambda: None)
    monkeypatch.setattr("sweeps.worker.use_threads", lambda number: None)
    yield Worker(1)
    take_seat()


def begin(worker: Worker, tmp_path: Path, body: Any, *, rank: int = 0) -> Path:
    workdir = tmp_path / "t000"
    training = Training(train_fn=Body(body), params={}, workdir=workdir, resume_from=None)
    worker.begin(training, Seat(rank=rank, size=2), "")
    return workdir


def test_rank_0_waits_for_the_answer_to_each_report(worker: Worker, tmp_path: Path) -> None:
    said: queue.SimpleQueue[str] = queue.SimpleQueue()

    def body(report: Report, workdir: Path) -> None:
        report.log({"train/loss": 1.0}, step=3)
        said.put("logged")
        report.artifact(workdir / "config.py")

    workdir = begin(worker, tmp_path, body)
    assert worker.next() == Call(method="log", args=({"train/loss": 1.0},), named={"step": 3})
    assert said.empty()
    assert worker.next(is_answer=True) == Call(
        method="artifact", args=(workdir / "config.py",), named={}
    )
    assert said.get(timeout=60) == "logged"
    assert worker.next(is_answer=True) == End()


def test_an_answer_can_stop_the_training(worker: Worker, tmp_path: Path) -> None:
    begin(worker, tmp_path, lambda report, workdir: report.log({}, step=1))
    worker.next()
    end = worker.next(TrialStopped("hopeless"), is_answer=True)
    assert isinstance(end, End)
    assert isinstance(end.error, TrialStopped)
    assert not end.is_cause


def test_what_others_report_goes_nowhere(worker: Worker, tmp_path: Path) -> None:
    def body(report: Report, workdir: Path) -> None:
        report.log({"train/loss": 1.0}, step=3)
        report.artifact(workdir)
        report.rung({}, fraction=1, val_share=1, epoch=1, step=1, checkpoint=None)
        print("trained along")

    workdir = begin(worker, tmp_path, body, rank=1)
    assert worker.next() == End()
    assert "trained along" in log_path(workdir, 1).read_text()


@pytest.mark.parametrize(
    ("error", "kind", "text", "is_echo"),
    [
        (KeyError("gone"), GangFailed, "rank 0 of 2: KeyError: 'gone'\nlog: ", False),
        (SystemExit(3), GangFailed, "rank 0 of 2: SystemExit: 3", False),
        (FloatingPointError("nan at 3"), FloatingPointError, "nan at 3", False),
        (MemoryError("no room"), OutOfMemory, f"rank 0 of 2: {LESS_AT_ONCE}. MemoryError", False),
        (PeerFailed("rank 1 of 2: KeyError"), GangFailed, "rank 1 of 2: KeyError", True),
        (RuntimeError("Connection closed by peer"), GangFailed, "Connection closed", True),
        (RuntimeError("shapes differ"), GangFailed, "shapes differ", False),
    ],
)
def test_an_error_travels_as_what_it_means(
    worker: Worker,
    tmp_path: Path,
    error: BaseException,
    kind: type[Exception],
    text: str,
    is_echo: bool,
) -> None:
    def body(report: Report, workdir: Path) -> None:
        raise error

    begin(worker, tmp_path, body)
    end = worker.next()
    assert isinstance(end, End)
    assert type(end.error) is kind
    assert text in str(end.error)
    assert end.is_echo is is_echo


def test_the_port_of_rank_0_stays_taken_until_the_training_has_it(
    worker: Worker, tmp_path: Path
) -> None:
    first = worker.listen()
    assert worker.listen() != 0
    seen: queue.SimpleQueue[Seat] = queue.SimpleQueue()
    port = worker.listen()
    begin(worker, tmp_path, lambda report, workdir: seen.put(current_seat()))
    assert worker.next() == End()
    listener = seen.get(timeout=60).listener
    assert listener is not None
    os.close(listener)
    assert first > 0
    assert port > 0


# Another attempt.


class Restarts:
    def __init__(self, folder: Path) -> None:
        self.deaths: list[str] = []
        self.restarts: list[str] = []
        self.retries = Retries(
            folder,
            note_death=lambda trial_id, reason: self.deaths.append(reason),
            note_restart=self.restarts.append,
        )

    def after(self, said: str, last_result: dict[str, Any] | None = None) -> Task:
        task = Task(label="t000", params={}, attempt=1, checkpoint=None, seconds=5.0)
        config = {TASK_KEY: task.to_json()}
        trial: Any = SimpleNamespace(trial_id="a", config=config, last_result=last_result or {})
        trial.set_config = lambda new: setattr(trial, "config", new)
        self.retries.take_death(trial, said)
        self.retries.prepare(trial)
        return Task(**json.loads(trial.config[TASK_KEY]))


def test_the_next_attempt_knows_how_far_the_last_one_came(tmp_path: Path) -> None:
    restarts = Restarts(tmp_path)
    rung = RungResult(
        fraction=0.5,
        val_share=1.0,
        epoch=1.0,
        step=4,
        metrics={},
        checkpoint="/t/latest.pth",
        seconds=70.0,
    )
    task = restarts.after("ray::Trial\nsweeps.training.ProcessLost: rank 1 died", to_result(rung))
    assert (task.attempt, task.checkpoint, task.seconds) == (2, "/t/latest.pth", 70.0)
    assert task.doom is None
    assert restarts.restarts == ["a"]
    assert restarts.deaths == ["rank 1 died"]


def test_a_death_for_lack_of_memory_dooms_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts = Restarts(tmp_path)
    task = restarts.after("1 worker(s) were killed due to the node running low on memory. More")
    assert (task.doom or "").startswith(f"{LESS_AT_ONCE}. 1 worker(s) were killed")

    Mark(node="n", num_killed=3).leave(_made(tmp_path / "t000"))
    counts = {"n": 0}
    monkeypatch.setattr("sweeps.retries.kills_since", lambda node, before: counts[node] - before)
    counts["n"] = 3
    assert restarts.after("connection error").doom is None
    counts["n"] = 4
    doom = restarts.after("connection error").doom or ""
    assert "The kernel has killed 1 for memory there" in doom
    # An attempt that is not made is not counted.
    assert restarts.restarts == ["a"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
