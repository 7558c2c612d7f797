"""The cameras' own augmentation of the scene: what ours and the public code both run."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import parity_cases
import torch

SETTINGS: Mapping[str, dict[str, Any]] = {
    "public": {"reverse_angle": True},
    "together": {"reverse_angle": False},
    "flipped": {"reverse_angle": False, "flip_dx_ratio": 1.0, "flip_dy_ratio": 1.0},
    "sometimes": {"reverse_angle": True, "flip_dx_ratio": 0.5, "flip_dy_ratio": 0.5},
}


def run(name: str) -> dict[str, np.ndarray]:
    """One side; the public code registers its steps with mmdet, ours with mmdet3d."""
    import mmdet.datasets
    import mmdet3d.datasets

    datasets = mmdet.datasets if name == "public" else mmdet3d.datasets
    return transforms(datasets.PIPELINES.build)


def transforms(build: Callable[[Mapping[str, Any]], Callable[[dict], dict]]) -> dict[str, Any]:
    """What the cameras' own augmentation makes of a scene, a few times for each setting.

    Args:
        build: Makes the step of a config.
    """
    found = {}
    for name, options in SETTINGS.items():
        step = build(
            {
                "type": "GlobalRotScaleTransImage",
                "rot_range": [-0.3925, 0.3925],
                "scale_ratio_range": [0.95, 1.05],
                "translation_std": [0, 0, 0],
                "training": True,
                **options,
            }
        )
        for seed in range(4):
            np.random.seed(seed)
            results = step(_scene())
            found[f"{name}.{seed}.boxes"] = results["gt_bboxes_3d"].tensor.numpy()
            for key in ("lidar2img", "lidar2cam"):
                found[f"{name}.{seed}.{key}"] = np.stack(results[key])
    return found


def _scene() -> dict[str, Any]:
    """Boxes with velocities, and six cameras."""
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    data = parity_cases.batch("vov", (5,))
    lidar2cam = np.linalg.inv(np.diag([70.0, 70.0, 1.0, 1.0])) @ data.lidar2img[0]
    return {
        "gt_bboxes_3d": LiDARInstance3DBoxes(torch.from_numpy(data.boxes[0].copy()), box_dim=9),
        "lidar2img": list(data.lidar2img[0]),
        "lidar2cam": list(lidar2cam),
    }
