"""A scene before one camera (as six views), and a small object database to paste from."""

import pickle
import zlib
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.core.points import LiDARPoints

WIDTH, HEIGHT = 160, 90


def projected(points, matrix):
    uvd = np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    return uvd[..., :2] / uvd[..., 2:], uvd[..., 2]


def scene(seed=0):
    """Boxes, points inside and outside of them, and a camera that looks along x."""
    rng = np.random.default_rng(seed)
    low = [5, -20, -2, 0.5, 0.5, 0.5, -3, -5, -5]
    high = [40, 20, 0, 9, 3, 3, 3, 5, 5]
    boxes = LiDARInstance3DBoxes(
        torch.tensor(rng.uniform(low, high, (6, 9)), dtype=torch.float32), box_dim=9
    )
    local = rng.uniform(-0.45, 0.45, (6, 20, 3)) * boxes.dims.numpy()[:, None]
    c, s = np.cos(boxes.yaw.numpy()), np.sin(boxes.yaw.numpy())
    turns = np.zeros((6, 3, 3))
    turns[:, 0, 0], turns[:, 0, 1], turns[:, 1, 0], turns[:, 1, 1] = c, -s, s, c
    turns[:, 2, 2] = 1
    inside = np.einsum("bij,bnj->bni", turns, local) + boxes.gravity_center.numpy()[:, None]
    cloud = np.concatenate([inside.reshape(-1, 3), rng.uniform(-50, 50, (100, 3))])
    cloud = np.concatenate([cloud, rng.uniform(0, 1, (len(cloud), 2))], axis=1)
    lidar2cam = np.eye(4)
    lidar2cam[:3, :3] = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]
    lidar2cam[:3, 3] = [0.3, 0.2, -0.5]
    intrinsic = np.eye(4)
    intrinsic[:2, :3] = [[70, 0, 80], [0, 71, 45]]
    return {
        "points": LiDARPoints(cloud.astype(np.float32), points_dim=5),
        "gt_bboxes_3d": boxes,
        "gt_labels_3d": np.arange(6),
        "lidar2img": [intrinsic @ lidar2cam for _ in range(6)],
        "lidar2cam": [lidar2cam.copy() for _ in range(6)],
        "cam_intrinsic": [intrinsic.copy() for _ in range(6)],
        "img": [rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8) for _ in range(6)],
    }


def write_object(root: Path, name: str, box, *, num_points=30, colour=(0, 255, 0), **changes):
    """Write an object's files, its patch of one colour, and describe it as public databases do."""
    rng = np.random.default_rng(zlib.crc32(repr((name, [float(v) for v in box])).encode()))
    stem = f"{name}_{len(list(root.glob('*.bin')))}"
    local = rng.uniform(-0.45, 0.45, (num_points, 3)) * np.asarray(box[3:6])
    c, s = np.cos(box[6]), np.sin(box[6])
    points = np.zeros((num_points, 5), dtype=np.float32)
    points[:, :3] = local @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    points[:, 2] += box[5] / 2
    points.tofile(root / f"{stem}.bin")
    cv2.imwrite(str(root / f"{stem}.png"), np.full((24, 32, 3), colour, dtype=np.uint8))
    entry = {
        "name": name,
        "path": f"{stem}.bin",
        "image_path": f"{stem}.png",
        "box3d_lidar": np.array([*box, 0, 0], dtype=np.float32)[:9],
        "num_points_in_gt": num_points,
        "difficulty": 0,
    }
    return entry | changes


def write_infos(root: Path, entries) -> Path:
    found = {}
    for entry in entries:
        found.setdefault(entry["name"], []).append(entry)
    path = root / "nuscenes_dbinfos_train.pkl"
    path.write_bytes(pickle.dumps(found))
    return path
