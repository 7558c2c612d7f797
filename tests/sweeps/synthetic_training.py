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
    """Scores (x, y) by a bowl.

    Attributes:
        rungs: Shares of the budget at which it is scored.
        goes_wrong: Trials 1 to 4 diverge, fail, die once, and die always.
        seed_effect: What each seed beyond 3 adds to the last score.
        pause_s: Before each rung.
        is_broken: Every training fails at once.
    """

    rungs: tuple[float, ...] = (0.5, 1.0)
    goes_wrong: bool = False
    seed_effect: float = 0.0
    pause_s: float = 0.0
    is_broken: bool = False

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
        if self.is_broken:
            raise OSError("the data set is not mounted")
        if self.goes_wrong:
            _go_wrong(workdir)
        value = 0.5 - (x - 0.2) ** 2 - (y - 0.3) ** 2
        for step, fraction in enumerate(self.rungs):
            time.sleep(self.pause_s)
            report.log({"train/loss": 1 - fraction}, step=step)
            luck = self.seed_effect * (int(params["seed"]) - 3) if self.seed_effect else 0.0
            report.rung(
                {"val/nds": (value + luck) * fraction},
                fraction=fraction,
                val_share=1.0,
                epoch=fraction,
                step=step,
                checkpoint=None,
            )


def _go_wrong(workdir: Path) -> None:
    match workdir.name[:4]:
        case "t001":
            raise FloatingPointError("the loss is nan at step 3")
        case "t002":
            raise RuntimeError("a corrupt sample")
        case "t003" if not (workdir / "died").exists():
            (workdir / "died").touch()
            os._exit(1)
        case "t004":
            os._exit(1)


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
        # The kill may have come between the checkpoint and its score.
        self._score_if_due(params, report, workdir, start)
        for step in range(start + 1, self.num_steps + 1):
            time.sleep(self.step_s)
            self._note(workdir, "step", step)
            if step % self.steps_per_checkpoint == 0:
                self._save(workdir / "latest.pth", step)
            self._score_if_due(params, report, workdir, step)
        self._note(workdir, "end", self.num_steps)

    def _score_if_due(
        self, params: Mapping[str, ParamValue], report: Report, workdir: Path, step: int
    ) -> None:
        if step not in (self.num_steps // 2, self.num_steps):
            return
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
