"""A driver process for tests: `sweep_driver.py run|resume SWEEPS_DIR LOG_DIR`."""

import sys
from pathlib import Path

from spec_samples import small_spec
from synthetic_training import Stepper

from sweeps.run import SweepInterrupted, resume_sweep, run_sweep


def main() -> int:
    command, sweeps_dir, log_dir = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    spec = small_spec(
        sweeps_dir, search="{sampler: tpe, seed: 3, startup: 2}", budget="{trials: 5}"
    )
    drive = {"run": run_sweep, "resume": resume_sweep}[command]
    try:
        drive(spec, Stepper(log_dir=log_dir))
    except SweepInterrupted as error:
        print(error)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
