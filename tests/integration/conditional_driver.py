"""A driver process for tests: `conditional_driver.py run|resume SWEEPS_DIR LOG_DIR`."""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from aqr_model.aqr.schedules import make_schedule
from aqr_model.knobs import KNOBS, to_overrides
from sweeps.record import ParamValue
from sweeps.run import SweepInterrupted, resume_sweep, run_sweep
from sweeps.spec import SweepSpec, parse_spec
from sweeps.training import Report

NUM_EPOCHS = 12
SPEC = """\
name: conditional
train: {config: none.py, epochs: 12}
objective: {noise: 0.002}
space:
  render_method: {choices: [gaussian, bilinear, direct]}
  gaussian_sigma: {low: 0.5, high: 4.0, log: true, when: "render_method == 'gaussian'"}
  bilinear_radius: {low: 1.0, high: 6.0, when: "render_method == 'bilinear'"}
  residual_schedule:
    schedule: staged
    stages:
      - [0, {low: 0.5, high: 0.9}]
      - [{low: 1, high: 6, int: true}, {low: 0.3, high: 0.9}]
      - [8, 0.3]
    when: "render_method != 'direct'"
  clamp_schedule:
    schedule: cosine
    start_value: {low: 1.2, high: 3.0}
    end_value: {choices: [1.0, 1.2]}
    warmup_epochs: 2
constraints: [residual_schedule.value_1 >= residual_schedule.value_2]
search: {sampler: tpe, seed: 5, startup: 3}
stopping: {rule: none, rungs: [0.5, 1.0]}
budget: {trials: 8}
resources: {cpus: 1, concurrent: 2}
"""


def conditional_spec(sweeps: Path) -> SweepSpec:
    text = f"{SPEC}storage: {{path: {sweeps}}}\n"
    return parse_spec(text, source="spec.yaml", knobs=KNOBS, has_key=lambda key: False)


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Writes down what it got, and what a real training would make of it, epoch by epoch."""

    log_dir: Path
    epoch_s: float = 0.15

    def __call__(
        self,
        params: Mapping[str, ParamValue],
        *,
        report: Report,
        workdir: Path,
        resume_from: Path | None,
    ) -> None:
        start = 0 if resume_from is None else json.loads(resume_from.read_text())["epoch"]
        overrides = to_overrides(params)
        self._note(workdir, what="begin", epoch=start, params=dict(params), overrides=overrides)
        schedules = {
            key: make_schedule(value, NUM_EPOCHS)
            for key, value in overrides.items()
            if isinstance(value, dict)
        }
        self._score_if_due(start, params, report, workdir)  # it may not have been heard
        for epoch in range(start, NUM_EPOCHS):
            time.sleep(self.epoch_s)
            now = {key.rpartition(".")[2]: at(epoch) for key, at in schedules.items()}
            self._note(workdir, what="epoch", epoch=epoch, now=now)
            self._score_if_due(epoch + 1, params, report, workdir)

    def _score_if_due(
        self, done: int, params: Mapping[str, ParamValue], report: Report, workdir: Path
    ) -> None:
        if done not in (NUM_EPOCHS // 2, NUM_EPOCHS):
            return
        checkpoint = workdir / "latest.json"
        part = checkpoint.with_suffix(".part")
        part.write_text(json.dumps({"epoch": done}))
        part.replace(checkpoint)  # whole or not at all: a kill may come at any moment
        share = done / NUM_EPOCHS
        score = share * (0.4 + 0.01 * len(params))
        report.rung(
            {"val/nds": score},
            fraction=share,
            val_share=1.0,
            epoch=float(done),
            step=done,
            checkpoint=checkpoint,
        )

    def _note(self, workdir: Path, **note: Any) -> None:
        line = json.dumps({**note, "pid": os.getpid()}) + "\n"
        with (self.log_dir / workdir.name).open("a") as file:
            file.write(line)


def main() -> int:
    command, sweeps, log_dir = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    # Ray's processes do not find this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[Recorder.__module__])
    drive = {"run": run_sweep, "resume": resume_sweep}[command]
    try:
        drive(conditional_spec(sweeps), Recorder(log_dir=log_dir))
    except SweepInterrupted as notice:
        print(notice)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
