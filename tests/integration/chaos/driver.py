"""A driver process for the chaos suite: `python -m chaos.driver ORDER`, ORDER in JSON."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import ray
from spec_samples import small_spec

import chaos.trainer
import sweeps.patience
from chaos.trainer import Diarist
from launch.running import _Terminable  # SIGTERM as users' drivers take it
from sweeps.listeners import Listener
from sweeps.run import SweepInterrupted, SweepRefused, resume_sweep, run_sweep
from sweeps.storage import StorageError
from sweeps.tracker import Tracker


def main() -> int:
    order = json.loads(sys.argv[1])
    sweeps.patience.PATIENCE_S = order["storage_patience"]
    # Ray's processes do not find the modules of the tests.
    ray.cloudpickle.register_pickle_by_value(chaos.trainer)
    spec = small_spec(Path(order["sweeps"]), **order["sections"])
    training = Diarist(diary_dir=Path(order["diaries"]), **order["training"])
    drive = {"run": run_sweep, "resume": resume_sweep}[order["command"]]
    with ExitStack() as stack:
        listeners: list[Listener] = [_Terminable()]
        if order["track"]:
            listeners.append(stack.enter_context(Tracker(poll_s=0.2, timeout_s=order["patience"])))
        try:
            drive(spec, training, listeners=listeners)
        except SweepRefused as refusal:
            print(f"refused: {refusal}")
            return 3
        except StorageError as error:
            print(error)
            return 4
        except SweepInterrupted as notice:
            print(notice)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
