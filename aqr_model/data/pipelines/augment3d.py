"""Augmentation of the scene in space: points, boxes and the cameras' view of them together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.datasets import PIPELINES
from numpy.typing import NDArray
from torch import Tensor

from aqr_model.data.errors import DataError

Floats = NDArray[np.float64]
Results = dict[str, Any]
_BOXES = "gt_bboxes_3d"


@PIPELINES.register_module()
class GlobalRotScaleTransAll:
    """Turn about z, scale and shift the scene.

    Args:
        rot_range: Lowest and highest angle, radians.
        scale_ratio_range: Lowest and highest scale.
        translation_std: Standard deviations of the shift, metres. [3]
    """

    def __init__(
        self,
        rot_range: Sequence[float] = (-0.78539816, 0.78539816),
        scale_ratio_range: Sequence[float] = (0.95, 1.05),
        translation_std: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        if rot_range[0] > rot_range[1] or not 0 < scale_ratio_range[0] <= scale_ratio_range[1]:
            raise DataError(
                "rot_range and scale_ratio_range must be (low, high) with low <= high and scales "
                f"above 0, but are {list(rot_range)} and {list(scale_ratio_range)}."
            )
        if len(translation_std) != 3 or min(translation_std) < 0:
            raise DataError(
                f"translation_std must be 3 values >= 0, but is {list(translation_std)}."
            )
        self.rot_range = rot_range
        self.scale_ratio_range = scale_ratio_range
        self.translation_std = translation_std

    def __call__(self, results: Results) -> Results:
        """Augment points, boxes and camera matrices in place."""
        angle = np.random.uniform(low=self.rot_range[0], high=self.rot_range[1])
        scale = np.random.uniform(low=self.scale_ratio_range[0], high=self.scale_ratio_range[1])
        shift = np.random.normal(scale=self.translation_std, size=3)
        motion = turned(angle, scale)
        motion[:3, 3] = shift
        move_points(results, motion)
        if _BOXES in results:
            move_boxes(results[_BOXES].tensor, motion, scale=scale, angle=angle)
        move_cameras(results, motion)
        # mmdet3d multiplies row vectors, so it notes the transposed rotation.
        results |= {"pcd_rotation": motion[:3, :3].T / scale, "pcd_scale_factor": scale}
        results["pcd_trans"] = shift
        results.setdefault("transformation_3d_flow", []).extend(["R", "S", "T"])
        return results


@PIPELINES.register_module()
class CustomRandomFlip3D:
    """Mirror the scene: horizontal changes the sign of y, vertical that of x.

    Args:
        sync_2d: Must be false; the images' own flip is ResizeCropFlipImage's.
        flip_ratio_bev_horizontal: Probability.
        flip_ratio_bev_vertical: Probability.
    """

    def __init__(
        self,
        sync_2d: bool = False,
        flip_ratio_bev_horizontal: float = 0.0,
        flip_ratio_bev_vertical: float = 0.0,
    ) -> None:
        if sync_2d:
            raise DataError("sync_2d must be False: images are flipped by ResizeCropFlipImage.")
        for ratio in (flip_ratio_bev_horizontal, flip_ratio_bev_vertical):
            if not 0 <= ratio <= 1:
                raise DataError(f"A flip ratio must lie in [0, 1], but is {ratio}.")
        self.ratios = {
            "horizontal": flip_ratio_bev_horizontal,
            "vertical": flip_ratio_bev_vertical,
        }

    def __call__(self, results: Results) -> Results:
        """Flip points, boxes and camera matrices in place."""
        for direction, ratio in self.ratios.items():
            flipped = bool(np.random.rand() < ratio)
            results[f"pcd_{direction}_flip"] = flipped
            if flipped:
                flip_scene(results, direction)
        return results


@PIPELINES.register_module(force=True)
class ObjectRangeFilter:
    """Keep boxes whose centre lies in the BEV range, and bring their yaw into [-pi, pi).

    Args:
        point_cloud_range: x, y, z minima and maxima, metres. [6]
    """

    def __init__(self, point_cloud_range: Sequence[float]) -> None:
        self.bev_range = [point_cloud_range[i] for i in (0, 1, 3, 4)]

    def __call__(self, results: Results) -> Results:
        """Filter boxes and labels."""
        inside = results[_BOXES].in_range_bev(self.bev_range)
        results[_BOXES] = results[_BOXES][inside]
        results["gt_labels_3d"] = results["gt_labels_3d"][inside.numpy()]
        results[_BOXES].limit_yaw(offset=0.5, period=2 * np.pi)
        return results


@PIPELINES.register_module(force=True)
class PointShuffle:
    """mmdet3d's step, with its draw, several times faster."""

    def __call__(self, results: Results) -> Results:
        """Bring the points into a random order."""
        points: Tensor = results["points"].tensor
        order = torch.randperm(len(points))
        # NumPy gathers narrow rows several times faster than torch.
        shuffled = points.numpy().take(order.numpy(), axis=0)
        results["points"].tensor = torch.from_numpy(shuffled)
        return results


def turned(angle: float, scale: float) -> Floats:
    """A turn about z by an angle in radians, and a scale. [4, 4]."""
    motion = np.eye(4)
    c, s = np.cos(angle), np.sin(angle)
    motion[:2, :2] = [[c, -s], [s, c]]
    motion[:3, :3] *= scale
    return motion


def flip_scene(results: Results, direction: str) -> None:
    """Mirror what the sample has of points, boxes and camera matrices, in place."""
    mirror = np.diag([1.0, -1.0, 1.0, 1.0] if direction == "horizontal" else [-1.0, 1, 1, 1])
    for key in ("points", _BOXES):
        if key in results:
            results[key].flip(direction)
    move_cameras(results, mirror)
    flow = results.setdefault("transformation_3d_flow", [])
    flow.append("HF" if direction == "horizontal" else "VF")


def move_points(results: Results, motion: Floats) -> None:
    """Apply a similarity to the points, if there are any, in place."""
    if "points" not in results:
        return
    points: Tensor = results["points"].tensor  # [N, 3 + features]
    matrix = torch.from_numpy(motion).to(points)
    points[:, :3] = points[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]


def move_boxes(boxes: Tensor, motion: Floats, *, scale: float, angle: float) -> None:
    """Apply a similarity about z, given with its scale and angle, to boxes in place.

    Args:
        boxes: x, y, bottom z, dx, dy, dz, yaw and, if any, vx, vy. [N, 7 or 9]
        motion: The similarity. [4, 4]
        scale: Its scale.
        angle: Its angle, radians.
    """
    matrix = torch.from_numpy(motion).to(boxes)
    boxes[:, :3] = boxes[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
    boxes[:, 3:6] *= scale
    boxes[:, 6] += angle
    boxes[:, 7:9] = boxes[:, 7:9] @ matrix[:2, :2].T


def move_cameras(results: Results, motion: Floats) -> None:
    """Let the cameras see the moved scene as they saw the original one."""
    undo = np.linalg.inv(motion)
    for key in ("lidar2img", "lidar2cam"):
        if key in results:
            results[key] = [matrix @ undo for matrix in results[key]]
