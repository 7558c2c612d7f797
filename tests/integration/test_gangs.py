"""Trials of several processes on a Ray cluster of several raylets, held to their own logs."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from machine import RAY_PATIENCE

from launch.ports import free_port
from sweeps.record import SweepRecord, TrialRecord, read_sweep, sqlite_url

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
NUM_NODES, GPUS_OF_NODE, CPUS_OF_NODE = 2, 4, 6
WAIT_S, START_S = 480.0, 240.0
# A clock tick: processes on one machine read the same clock.
SLACK_S = 0.01


class Cluster:
    """Raylets of this machine that only tests know."""

    def __init__(self, system_config: dict[str, Any] | None = None) -> None:
        # Ray's sockets have long names, and paths of sockets must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="g", dir="/tmp"))
        self.port = free_port()
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            **RAY_PATIENCE,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "sweeps")]),
            "OMP_NUM_THREADS": "1",
        }
        self._config = system_config
        self._nodes: list[subprocess.Popen[bytes]] = []

    def start_node(self, *, gpus: int, cpus: int) -> None:
        """Start a raylet; the first one with the head."""
        is_head = not self._nodes
        where = [f"--port={self.port}", f"--ray-client-server-port={free_port()}"]
        if self._config is not None:
            where.append(f"--system-config={json.dumps(self._config)}")
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--block",
            *(["--head", "--include-dashboard=false", *where] if is_head else []),
            *([] if is_head else [f"--address=127.0.0.1:{self.port}"]),
            "--node-ip-address=127.0.0.1",
            f"--num-gpus={gpus}",
            f"--num-cpus={cpus}",
            f"--object-store-memory={80 << 20}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--dashboard-agent-listen-port={free_port()}",
            "--disable-usage-stats",
            *([f"--temp-dir={self.folder}"] if is_head else []),
        ]
        env = {key: value for key, value in self.env.items() if key != "RAY_ADDRESS"}
        log = (self.folder / f"node{len(self._nodes)}.log").open("wb")
        with log:
            node = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        self._nodes.append(node)

    def wait(self, num_nodes: int) -> None:
        """Wait until so many nodes are alive."""
        code = "import ray; ray.init(log_to_driver=False); print(len(ray.nodes()))"
        deadline = time.monotonic() + START_S
        while True:
            done = subprocess.run(
                [sys.executable, "-c", code], env=self.env, capture_output=True, text=True
            )
            if done.stdout.strip() == str(num_nodes):
                return
            assert time.monotonic() < deadline, done.stdout + done.stderr
            time.sleep(0.5)

    def close(self) -> None:
        """End all of it."""
        family: list[psutil.Process] = []
        for node in self._nodes:
            if node.poll() is None:
                process = psutil.Process(node.pid)
                family += [*process.children(recursive=True), process]
        for process in family:
            if process.is_running():
                process.kill()
        psutil.wait_procs(family, timeout=30)
        for node in self._nodes:
            node.wait(timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def running(cluster: Cluster, num_nodes: int, **resources: int) -> Iterator[Cluster]:
    try:
        for number in range(1, num_nodes + 1):
            cluster.start_node(**resources)
            cluster.wait(
                number
            )  # raylets of one machine that start together get in each other's way
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running(Cluster(), NUM_NODES, gpus=GPUS_OF_NODE, cpus=CPUS_OF_NODE) as cluster:
        yield cluster


class Sweep:
    """A sweep with a driver of its own."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        *,
        resources: str | Sequence[str],
        step_s: float = 0.05,
        **sections: str,
    ) -> None:
        self._resources = [resources] if isinstance(resources, str) else list(resources)
        self.step_s = step_s
        self.folder, self.logs = folder, folder / "logs"
        self.logs.mkdir(parents=True)
        self._cluster = cluster
        self._sections = {"control": "false", **sections}
        self.driver: subprocess.Popen[str] | None = None

    def start(self, **faults: str) -> None:
        order = {
            "sweeps": str(self.folder),
            "logs": str(self.logs),
            "sections": self._sections,
            "resources": self._resources,
            "faults": faults,
            "step_s": self.step_s,
        }
        self.driver = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("gang_driver.py")), json.dumps(order)],
            env=self._cluster.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> tuple[int, str]:
        assert self.driver is not None
        try:
            output, _ = self.driver.communicate(timeout=WAIT_S)
        finally:
            self.driver.kill()
        return self.driver.returncode, output

    def run(self, **faults: str) -> tuple[TrialRecord, ...]:
        self.start(**faults)
        code, output = self.finish()
        assert code == 0, output
        return self.record().searched

    def record(self) -> SweepRecord:
        return read_sweep(sqlite_url(self.folder / "small" / "study.db"), "small")

    def notes(self, trial: TrialRecord | None = None) -> list[list[dict[str, Any]]]:
        """What each process wrote, in the order of their starts."""
        stem = "" if trial is None else trial.label
        files = sorted(self.logs.glob(f"{stem}*"), key=lambda path: path.name.split("-")[-1])
        return [[json.loads(line) for line in path.read_text().splitlines()] for path in files]

    def begins(self, trial: TrialRecord) -> list[int]:
        """At which step each attempt began, as rank 0 says."""
        return [notes[0]["step"] for notes in self.notes(trial) if notes[0]["rank"] == 0]


def uses(sweeps: list[Sweep]) -> list[tuple[float, float, str, int]]:
    """When each process had which GPU of which node, and of how many it was."""
    found = []
    for sweep in sweeps:
        for first, *_, last in sweep.notes():
            assert (first["what"], last["what"]) == ("begin", "end")
            gpu = f"{first['node']}/{first['gpu']}"
            found.append((first["time"], last["time"], gpu, first["size"]))
    return found


def test_trials_of_1_2_4_and_8_processes_share_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    sizes = {1: 4, 2: 3, 4: 2, 8: 2}
    sweeps = [
        Sweep(
            cluster,
            tmp_path / str(size),
            step_s=1.6 / size,  # the small ones are still there when the large ones come
            resources=f"{{gpus: {size}, cpus: {size}}}",
            budget=f"{{trials: {num_trials}}}",
        )
        for size, num_trials in sizes.items()
    ]
    for sweep in sweeps:
        sweep.start()
    for sweep in sweeps:
        code, output = sweep.finish()
        assert code == 0, output
    for sweep, (size, num_trials) in zip(sweeps, sizes.items(), strict=True):
        trials = sweep.record().searched
        assert [trial.outcome for trial in trials] == ["finished"] * num_trials
        for trial in trials:
            assert trial.attempts == 1
            ranks = sorted(notes[0]["rank"] for notes in sweep.notes(trial))
            assert ranks == list(range(size))
            assert trial.value == pytest.approx(float(trial.params["x"]))

    used = uses(sweeps)
    assert len(used) == sum(size * num_trials for size, num_trials in sizes.items())
    assert len({gpu for *_, gpu, _ in used}) <= NUM_NODES * GPUS_OF_NODE
    for begin, end, gpu, _ in used:
        others = [u for u in used if u[2] == gpu and u[0] < end - SLACK_S and u[1] > begin]
        assert len(others) == 1, f"{gpu} was used by {len(others)} processes at once: {others}"
    # They did share: some of them at the same time.
    assert any(a[3] != b[3] and a[0] < b[1] and b[0] < a[1] for a in used for b in used), (
        "no two sweeps ever ran at once"
    )


def test_what_cannot_fit_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    refused = {
        "{gpus: 9, cpus: 9}": "9 processes of 1 GPU, 1 CPU each, but has room for 8",
        "{gpus: 2, cpus: 14}": "1 GPU, 7 CPU, but none of its 2 does",
        "{gpus: 0, cpus: 7}": "must hold one trial, 7 CPU, but none of its 2 does",
    }
    sweep = Sweep(cluster, tmp_path, resources=list(refused))
    sweep.start()
    code, output = sweep.finish()
    assert code == 3, output
    said = [line for line in output.splitlines() if line.startswith("refused: ")]
    assert len(said) == len(refused), output
    for line, reason in zip(said, refused.values(), strict=True):
        assert reason in line
    assert sweep.notes() == []


def test_what_goes_wrong_in_one_process_ends_or_restarts_its_trial_alone(
    cluster: Cluster, tmp_path: Path
) -> None:
    sweep = Sweep(
        cluster, tmp_path, resources="{gpus: 2, cpus: 2, retries: 1}", budget="{trials: 5}"
    )
    trials = sweep.run(t000="die", t001="sigterm", t002="raise", t003="memory")
    died, told, raised, full, sound = trials
    assert [trial.outcome for trial in trials] == [
        "finished",
        "finished",
        "failed",
        "failed",
        "finished",
    ]
    assert [trial.attempts for trial in trials] == [2, 2, 1, 1, 1]
    # Rank 1 died in step 5, and the last checkpoint was of step 4.
    assert sweep.begins(died) == [0, 4]
    # It was told so in step 5, and left before step 6.
    assert sweep.begins(told) == [0, 5]
    left = [note for notes in sweep.notes(told) for note in notes if note["what"] == "left"]
    assert [(note["rank"], note["step"]) for note in sorted(left, key=lambda n: n["rank"])] == [
        (0, 5),
        (1, 5),
    ]
    assert raised.reason.startswith("rank 1 of 2: RuntimeError: a corrupt sample\nlog: ")
    assert "trial.rank1.log" in raised.reason
    assert full.reason.startswith("rank 1 of 2: out of memory: lower `data.workers_per_gpu`")
    assert "MemoryError: no room for 8 GiB" in full.reason
    assert sweep.begins(sound) == [0]


def test_a_gang_that_always_dies_is_given_up(cluster: Cluster, tmp_path: Path) -> None:
    sweep = Sweep(
        cluster, tmp_path, resources="{gpus: 2, cpus: 2, retries: 0}", budget="{trials: 2}"
    )
    dead, told = sweep.run(t000="die", t001="sigterm")
    assert (dead.outcome, dead.attempts) == ("failed", 1)
    assert re.match(
        r"the trial's process ended: rank 1 of 2 on \S+ \(process \d+\) died: ", dead.reason
    )
    # Who has to leave has not failed.
    assert (told.outcome, told.attempts) == ("finished", 2)


def test_a_gang_that_hangs_is_ended_and_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    # Longer than a busy machine takes to load torch, which each process does in its first attempt.
    resources = "{gpus: 2, cpus: 2, retries: 1, silence_minutes: 0.4}"
    sweep = Sweep(cluster, tmp_path, resources=resources, budget="{trials: 2}")
    hung, sound = sweep.run(t000="hang")
    # Rank 1 hung in step 5; rank 0 waited for it, and said nothing either.
    assert (hung.outcome, hung.attempts, sweep.begins(hung)) == ("finished", 2, [0, 4])
    assert (sound.outcome, sound.attempts) == ("finished", 1)
    (stacks,) = tmp_path.rglob("stacks1.txt")
    assert "in exchange" in stacks.read_text()


def test_a_gang_that_is_stopped_lets_its_workers_train_the_next_trial(
    cluster: Cluster, tmp_path: Path
) -> None:
    sweep = Sweep(
        cluster,
        tmp_path,
        resources="{gpus: 4, cpus: 4, concurrent: 1}",
        stopping="{rule: fast, rungs: [0.5, 1.0]}",
        budget="{trials: 4}",
        start="[{x: 0.9}, {x: 0.5}, {x: 0.3}, {x: 0.1}]",
    )
    trials = sweep.run()
    stopped = [trial for trial in trials if trial.outcome == "stopped"]
    assert stopped
    assert {trial.outcome for trial in trials} == {"finished", "stopped"}
    for trial in stopped:
        steps = {n["step"] for notes in sweep.notes(trial) for n in notes if n["what"] == "step"}
        assert steps == {1, 2, 3, 4}
    pids = {notes[0]["pid"] for notes in sweep.notes()}
    assert len(pids) == 4, "a trial had to start workers of its own"


def test_a_single_process_that_is_told_to_leave_saves_and_goes_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    sweep = Sweep(
        cluster, tmp_path, resources="{gpus: 1, cpus: 1, retries: 0}", budget="{trials: 2}"
    )
    told, full = sweep.run(t000="sigterm", t001="memory")
    assert (told.outcome, told.attempts, sweep.begins(told)) == ("finished", 2, [0, 5])
    assert (full.outcome, full.attempts) == ("failed", 1)
    assert full.reason.startswith("out of memory: lower `data.workers_per_gpu`")


@pytest.fixture(scope="module")
def cramped() -> Iterator[Cluster]:
    # Any use is too much for this monitor, so that it kills whatever trains.
    config = {"memory_usage_threshold": 0.001, "memory_monitor_refresh_ms": 100}
    with running(Cluster(config), 1, gpus=2, cpus=2) as cluster:
        yield cluster


@pytest.mark.parametrize("gpus", [1, 2])
def test_what_rays_memory_monitor_kills_is_not_tried_again(
    cramped: Cluster, tmp_path: Path, gpus: int
) -> None:
    sweep = Sweep(
        cramped, tmp_path, resources=f"{{gpus: {gpus}, cpus: {gpus}}}", budget="{trials: 1}"
    )
    (trial,) = sweep.run()
    assert (trial.outcome, trial.attempts) == ("failed", 1)
    assert "out of memory: lower `data.workers_per_gpu`" in trial.reason
