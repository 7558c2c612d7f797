"""A driver process for tests; `gang_driver.py ORDER` runs the sweep of a JSON order.

It tries each of the order's `resources` until one is not refused.
"""

import json
import sys
from pathlib import Path

import gang_training
import ray
from gang_training import Ring
from spec_samples import small_spec

from sweeps.run import SweepRefused, run_sweep


def main() -> int:
    order = json.loads(sys.argv[1])
    # Ray's processes do not find the modules of the tests.
    ray.cloudpickle.register_pickle_by_value(gang_training)
    train = Ring(log_dir=Path(order["logs"]), faults=order["faults"], step_s=order["step_s"])
    for resources in order["resources"]:
        spec = small_spec(Path(order["sweeps"]), **order["sections"], resources=resources)
        try:
            run_sweep(spec, train)
        except SweepRefused as refusal:
            print(f"refused: {refusal}", flush=True)
            continue
        return 0
    return 3


if __name__ == "__main__":
    sys.exit(main())
