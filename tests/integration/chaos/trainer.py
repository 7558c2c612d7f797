"""A training that trains nothing, keeps its own diary of what really happened, and can misbehave.

The diary knows nothing of the sweep's record: one JSON line for each thing done, in one file a
trial, written with one system call, on storage that no fault touches.
"""

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.record import ParamValue
from sweeps.seat import must_leave
from sweeps.training import Report, TrialPreempted

LOSS, SCORE = "train/loss", "val/nds"


class Diary:
    """What one attempt does, as it does it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._attempt = f"{os.getpid()}-{time.time_ns()}"

    def write(self, what: str, step: int, value: float | None = None) -> None:
        note = {"what": what, "step": step, "value": value}
        line = {**note, "attempt": self._attempt, "pid": os.getpid(), "time": time.time()}
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, json.dumps(line).encode() + b"\n")
        finally:
            os.close(file)


@dataclass(frozen=True, kw_only=True)
class Diarist:
    """Trains in steps, with a checkpoint every few of them and a score at each rung.

    Each attempt scores a little differently, so that a record shows which of them it believed.

    Attributes:
        diary_dir: One file a trial.
        faults: What goes wrong in a trial, by the stem of its label (`t003`, `control`).
        real_checkpoints: Written and read by the code that real trainings use.
    """

    diary_dir: Path
    faults: Mapping[str, str] = field(default_factory=dict)
    num_steps: int = 12
    steps_per_checkpoint: int = 3
    step_s: float = 0.1
    real_checkpoints: bool = False

    def __call__(
        self,
        params: Mapping[str, ParamValue],
        *,
        report: Report,
        workdir: Path,
        resume_from: Path | None,
    ) -> None:
        diary = Diary(self.diary_dir / workdir.name)
        fault = self.faults.get(workdir.name.partition("-")[0], "")
        start = 0 if resume_from is None else self._load(resume_from)
        diary.write("begin", start)
        if fault == "no build":
            raise KeyError("model.pts_bbox_head.no_such_part is not registered")
        # The kill may have come between the checkpoint and its score.
        self._score_if_due(params, report, workdir, diary, start, fault)
        for step in range(start + 1, self.num_steps + 1):
            if must_leave():
                self._save(workdir / "latest.pth", step - 1)
                diary.write("left", step - 1)
                raise TrialPreempted(f"told to leave after step {step - 1}")
            time.sleep(self.step_s)
            self._step(report, diary, step, fault, start)
            if step % self.steps_per_checkpoint == 0:
                self._save(workdir / "latest.pth", step)
                diary.write("saved", step)
            if fault == "corrupt" and step == 8 and start == 0:
                (workdir / "latest.pth").write_bytes(b"\0" * 64)
                diary.write("corrupted", step)
                os._exit(1)
            self._score_if_due(params, report, workdir, diary, step, fault)
        diary.write("end", self.num_steps)

    def _step(self, report: Report, diary: Diary, step: int, fault: str, start: int) -> None:
        loss = 1 / (step + os.getpid() % 97 / 1000)
        if fault == "dies" and step == 5:
            os._exit(1)
        if fault == "raises" and step == 5:
            raise RuntimeError("sample 17 is corrupt")
        if fault == "always hangs" or (fault == "hangs" and step == 8 and start == 0):
            diary.write("hangs", step)
            threading.Event().wait()
        if fault in ("loss nan", "loss inf") and step == 5:
            report.log({LOSS: math.nan if fault.endswith("nan") else math.inf}, step=step)
        diary.write("step", step, loss)
        report.log({LOSS: loss}, step=step)
        diary.write("logged", step, loss)
        if fault == "logs twice" and step == 5:
            report.log({LOSS: loss}, step=step)

    def _score_if_due(
        self,
        params: Mapping[str, ParamValue],
        report: Report,
        workdir: Path,
        diary: Diary,
        step: int,
        fault: str,
    ) -> None:
        if step not in (self.num_steps // 2, self.num_steps):
            return
        score = float(params.get("x", 0.5)) * step / self.num_steps + time.time() % 100 * 1e-5
        place: dict[str, Any] = {
            "fraction": step / self.num_steps,
            "val_share": 1.0,
            "epoch": step / self.num_steps,
            "step": step,
            "checkpoint": workdir / "latest.pth",
        }
        last = step == self.num_steps
        match fault:
            case "score nan" | "score inf":
                bad = math.nan if fault.endswith("nan") else math.inf
                report.rung({SCORE: bad}, **place)
            case "no score":
                report.rung({"val/map": 0.1}, **place)
            case "wrong rung":
                report.rung({SCORE: score}, **{**place, "fraction": 0.37})
            case "out of order" if not last:
                return
        diary.write("asked", step, score)
        report.rung({SCORE: score}, **place)
        diary.write("acknowledged", step, score)
        if fault == "reports twice":
            report.rung({SCORE: score + 0.5}, **place)

    def _save(self, path: Path, step: int) -> None:
        if self.real_checkpoints:
            from aqr_model.engine.weights.states import TrainState, save_state

            save_state(TrainState(step=step, model={}, optimizer={}, rungs_reported=0), path)
            return
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"step": step}))
        part.replace(path)

    def _load(self, path: Path) -> int:
        if self.real_checkpoints:
            from aqr_model.engine.weights.states import read_newest

            return read_newest(path).step
        return json.loads(path.read_text())["step"]
