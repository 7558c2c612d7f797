"""A driver process for tests: `finals_driver.py run|resume SWEEPS_DIR LOG_DIR`."""

import sys
from pathlib import Path

from spec_samples import small_spec
from synthetic_training import Stepper

from sweeps.run import resume_sweep, run_sweep


def main() -> None:
    command, sweeps_dir, log_dir = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    spec = small_spec(
        sweeps_dir,
        budget="{trials: 3}",
        finalists="{top: 2, seeds: 2}",
        resources="{concurrent: 2}",
    )
    drive = {"run": run_sweep, "resume": resume_sweep}[command]
    drive(spec, Stepper(log_dir=log_dir))


if __name__ == "__main__":
    main()
