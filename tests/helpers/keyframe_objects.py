"""The real keyframe with ten sweeps, and an object database that is cut from it.

It comes with one LiDAR sweep, which stands in for ten earlier ones.
"""

import pickle
from pathlib import Path
from typing import Any

import keyframe
import numpy as np

from aqr_model.data.prepare.database import build_database

NUM_SWEEPS = 10
TURNS = 12  # objects of each class
GROUPS = {  # of the public configs
    "car": 2,
    "truck": 3,
    "construction_vehicle": 7,
    "bus": 4,
    "trailer": 6,
    "barrier": 2,
    "motorcycle": 6,
    "bicycle": 6,
    "pedestrian": 2,
    "traffic_cone": 2,
}


def write_infos(path: Path) -> Path:
    """Write the keyframe's info file with its sweeps."""
    content = pickle.loads(keyframe.write_infos(path).read_bytes())
    (info,) = content["infos"]
    info["sweeps"] = [
        {
            "data_path": info["lidar_path"],
            "timestamp": info["timestamp"] - 50_000 * k,
            "sensor2lidar_rotation": np.eye(3),
            "sensor2lidar_translation": np.array([0.1 * k, 0.0, 0.0]),
        }
        for k in range(1, NUM_SWEEPS + 1)
    ]
    for camera in info["cams"].values():
        camera["timestamp"] = info["timestamp"]
    path.write_bytes(pickle.dumps(content))
    return path


def write_database(infos: Path, folder: Path) -> Path:
    """Write a database of the keyframe's objects, turned about the vehicle.

    Turned, they do not meet themselves. The keyframe has five of the ten classes; the others borrow
    its objects, so that as many are pasted as in real training.
    """
    (info,) = pickle.loads(infos.read_bytes())["infos"]
    found = build_database(
        [info], dataroot=Path("/"), folder=folder, num_sweeps=NUM_SWEEPS, stamp={}
    )
    present = [entry for own in found.values() for entry in own if entry["image_path"]]
    rng = np.random.default_rng(0)
    turned = {}
    for name, own in found.items():
        choice = own or present
        picked = [choice[i] for i in rng.integers(len(choice), size=TURNS)]
        turned[name] = [
            {**_turned(entry, rng, folder, f"{name}{k}"), "name": name}
            for k, entry in enumerate(picked)
        ]
    path = folder / "nuscenes_dbinfos_train.pkl"
    path.write_bytes(pickle.dumps(turned))
    return path


def _turned(
    entry: dict[str, Any], rng: np.random.Generator, folder: Path, stem: str
) -> dict[str, Any]:
    angle = rng.uniform(-np.pi, np.pi)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    points = np.fromfile(folder / entry["path"], dtype=np.float32).reshape(-1, 5)
    points[:, :2] = points[:, :2] @ turn.T
    points.tofile(folder / f"{stem}.bin")
    box = entry["box3d_lidar"].copy()
    box[:2] = turn @ box[:2]
    box[6] += angle
    return {**entry, "path": f"{stem}.bin", "box3d_lidar": box}
