"""A sweep under fire: its driver processes, its diaries, and the verdict on it."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from growing import whole_lines
from machine import RAY_PATIENCE

from chaos.checker import (
    Seen,
    Study,
    Trial,
    Verdict,
    check_finished,
    check_mlflow,
    check_since,
    check_study,
    look,
    read_study,
)

ROOT = Path(__file__).parents[3]
NAME = "small"
WAIT_S = 480.0
MARK = "CHAOS_MARK"


@dataclass(kw_only=True)
class Subject:
    """One sweep, seen from outside.

    Attributes:
        folder: Of the test.
        sections: Of its spec.
        training: Settings of the trainer.
        track: Whether it writes to MLflow.
        env: Of its drivers, beside this process's own.
        sweeps: Where its storage is; in the folder unless a fault needs it elsewhere.
        patience_s: How long they wait for MLflow at their end.
        storage_patience_s: How long they wait for the database of the study.
        url: Of the database of its study; none: a file in its directory.
        line: The same for its drivers, where a fault lies between.
    """

    folder: Path
    sections: Mapping[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    track: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    sweeps: Path = Path()
    patience_s: float = 60.0
    storage_patience_s: float = 600.0
    url: str | None = None
    line: str | None = None

    def __post_init__(self) -> None:
        self.diaries = self.folder / "diaries"
        self.diaries.mkdir(parents=True)
        if self.sweeps == Path():
            self.sweeps = self.folder / "sweeps"
        # Every process of it carries the mark, also those whose parents are dead.
        self.mark = secrets.token_hex(8)
        self.counts: Counter[str] = Counter()

    @property
    def directory(self) -> Path:
        return self.sweeps / NAME

    @property
    def study(self) -> Path:
        return self.directory / "study.db"

    @property
    def where(self) -> Study:
        """Where the checker reads the study."""
        return self.url or self.study

    @contextmanager
    def driver(self, command: str, **other: Any) -> Iterator[subprocess.Popen[str]]:
        """Start a driver; whatever is left of it and its Ray in the end is killed."""
        order = {
            "command": command,
            "sweeps": str(self.sweeps),
            "diaries": str(self.diaries),
            "sections": {**self._storage(), **self.sections, **other},
            "training": self.training,
            "track": self.track,
            "patience": self.patience_s,
            "storage_patience": self.storage_patience_s,
        }
        paths = [ROOT, ROOT / "tests" / "sweeps", ROOT / "tests" / "integration"]
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            **RAY_PATIENCE,
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_TOKEN": self.mark,
            MARK: self.mark,
            **self.env,
        }
        # A file, not a pipe: orphans of a killed driver would hold a pipe open.
        said = self.folder / f"driver{len(list(self.folder.glob('driver*')))}.log"
        with said.open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "chaos.driver", json.dumps(order)],
                env=env,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.said = said
        self.counts["drivers"] += 1
        try:
            yield process
        finally:
            process.kill()
            process.wait(30)

    def _storage(self) -> dict[str, str]:
        url = self.line or self.url
        return {} if url is None else {"storage": f"{{path: {self.sweeps}, study: '{url}'}}"}

    def sweep_up(self) -> None:
        """Kill what is left of this sweep's processes, by their mark."""
        kill([process for process in psutil.process_iter() if self.is_ours(process)])

    def is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except (psutil.Error, OSError):
            return False

    def finish(self, command: str, *, code: int = 0, **other: str) -> str:
        """Let a driver run to its end and say what it said."""
        with self.driver(command, **other) as process:
            process.wait(WAIT_S)
            said = self.said.read_text()
            assert process.returncode == code, said
        return said

    def look(self) -> Seen:
        return look(self.where, self.diaries)

    def trials(self) -> dict[str, Trial]:
        """By stem: `t003`, `control`."""
        return {trial.label.partition("-")[0]: trial for trial in read_study(self.where)}

    def lines(self, what: str) -> list[dict[str, Any]]:
        """All lines of a kind; files may be growing."""
        found = []
        for path in self.diaries.iterdir():
            for text in whole_lines(path):
                if (line := json.loads(text))["what"] == what:
                    found.append(line)
        return found

    def wait_until(
        self, process: subprocess.Popen[str], holds: Callable[[], bool], timeout_s: float = WAIT_S
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert process.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline, f"waited in vain: {self.said.read_text()}"
            time.sleep(0.05)

    def wait_until_gone(
        self, process: subprocess.Popen[str], meanwhile: Callable[[], object]
    ) -> None:
        deadline = time.monotonic() + WAIT_S
        while process.poll() is None:
            assert time.monotonic() < deadline, f"waited in vain: {self.said.read_text()}"
            meanwhile()
            time.sleep(0.05)

    def judge(self, *before: Seen, num_trials: int | None, database: Path | None = None) -> Verdict:
        """Hold it to everything; with a number of trials, to be at its end as well."""
        interval = self.training.get("steps_per_checkpoint", 3)
        num_steps = self.training.get("num_steps", 12)
        after = self.look()
        found = [check_study(self.where, self.diaries, interval=interval)]
        found += [check_since(earlier, after) for earlier in before]
        if num_trials is not None:
            trials_dir = self.directory / "trials"
            found.append(check_finished(self.where, self.diaries, trials_dir, num_steps=num_steps))
            there = sum("control" not in label for label in after.trials)
            if there != num_trials:
                found[0].broken.append(f"the study holds {there} trials, not {num_trials}")
        if database is not None:
            found.append(check_mlflow(database, self.where, self.diaries))
        verdict = Verdict(
            broken=[text for one in found for text in one.broken],
            counts=sum((one.counts for one in found), Counter(self.counts)),
        )
        assert not verdict.broken, "\n".join(verdict.broken)
        return verdict


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL, in this order."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=30)


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it, the process first."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
