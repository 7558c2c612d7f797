"""Compare the detectors of one sensor with the public CMT's, on this machine's CPU.

    python scripts/parity/sensors.py --cmt PATH [--write] [CASE ...]
    python scripts/parity/sensors.py --cmt PATH --shapes

As `model.py`, for `cmt_lidar_voxel0075_cbgs` and `cmt_camera_vov_1600x640_cbgs`, and for the scene's
augmentation of the latter. `--shapes` writes names and shapes of the public weights into
`tests/data`.
"""

import argparse
import json
from pathlib import Path

import model
import public_cmt

CASES = [
    "lidar.evaluate",
    "lidar.train",
    "lidar.float32.train",
    "camera.evaluate",
    "camera.train",
    "camera.float32.train",
    "camera.float32.transforms",
    "lidar.keyframe.double.evaluate",
    "lidar.keyframe.double.train",
    "lidar.keyframe.train",
    "camera.keyframe.evaluate",
]


def write_shapes(cmt: Path) -> None:
    """Write names and shapes of the weights of both public models."""
    public_cmt.load(cmt)
    import parity_cases
    from mmdet3d.models import build_model

    for sensor in ("lidar", "camera"):
        state = build_model(model.read_config(sensor, cmt).model).state_dict()
        lines = [f"{json.dumps(name)}: {list(value.shape)}" for name, value in state.items()]
        name = Path(parity_cases.CONFIGS[sensor]).stem
        path = model.ROOT / "tests" / "data" / f"{name}.state_dict.json"
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--shapes", action="store_true")
    parser.add_argument("--cmt", type=Path)
    arguments, _ = parser.parse_known_args()
    if arguments.shapes:
        write_shapes(arguments.cmt)
    else:
        model.main(CASES, __file__)
