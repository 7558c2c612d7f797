"""Training functions that train nothing, for sweeps on a real Ray."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeps.record import ParamValue
from sweeps.trial import Report


@dataclass(frozen=True, kw_only=True)
class Bowl:
    """Scores (x, y) by a bowl; some places go wrong."""

    rungs: tuple[float, ...] = (0.5, 1.0)

    def __call__(
        self,
        params: Mapping[str, ParamValue],
        *,
        report: Report,
        workdir: Path,
        resume_from: Path | None,
    ) -> None:
        x, y = float(params.get("x", 0.5)), float(params.get("y", 0.5))
        print(f"training at {x} {y} with {os.environ['OMP_NUM_THREADS']} threads")
        if x == 0.9:
            raise FloatingPointError("the loss is nan at step 3")
        if x == 0.8:
            raise RuntimeError("a corrupt sample")
        if x == 0.7 and not (workdir / "died").exists():
            (workdir / "died").touch()
            os._exit(1)
        if x == 0.6:
            os._exit(1)
        value = 0.5 - (x - 0.2) ** 2 - (y - 0.3) ** 2
        for step, fraction in enumerate(self.rungs):
            report.log({"train/loss": 1 - fraction}, step=step)
            report.rung(
                {"val/nds": value * fraction},
                fraction=fraction,
                val_share=1.0,
                epoch=fraction,
                step=step,
                checkpoint=None,
            )


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """Trains in steps with checkpoints, and keeps its own log of every step and rung.

    Attributes:
        log_dir: One file a trial, one line a step: what really happened, whatever the sweep says.
    """

    log_dir: Path
    num_steps: int = 12
    steps_per_checkpoint: int = 3
    step_s: float = 0.15

    def __call__(
        self,
        params: Mapping[str, ParamValue],
        *,
        report: Report,
        workdir: Path,
        resume_from: Path | None,
    ) -> None:
        start = 0 if resume_from is None else json.loads(resume_from.read_text())["step"]
        self._note(workdir, "begin", start)
        for step in range(start + 1, self.num_steps + 1):
            time.sleep(self.step_s)
            self._note(workdir, "step", step)
            if step % self.steps_per_checkpoint == 0:
                self._save(workdir / "latest.pth", step)
            if step in (self.num_steps // 2, self.num_steps):
                self._score(params, report, workdir, step)
        self._note(workdir, "end", self.num_steps)

    def _score(
        self, params: Mapping[str, ParamValue], report: Report, workdir: Path, step: int
    ) -> None:
        fraction = step / self.num_steps
        self._note(workdir, "rung", step)
        report.rung(
            {"val/nds": float(params.get("x", 0.0)) * fraction},
            fraction=fraction,
            val_share=1.0,
            epoch=fraction,
            step=step,
            checkpoint=workdir / "latest.pth",
        )
        self._note(workdir, "acknowledged", step)

    def _save(self, path: Path, step: int) -> None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"step": step}))
        part.replace(path)

    def _note(self, workdir: Path, what: str, step: int) -> None:
        with (self.log_dir / workdir.name).open("a") as file:
            file.write(f"{what} {step}\n")
