"""Detections in the model's LiDAR boxes as nuScenes results: global frame, devkit conventions."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionConfig
from nuscenes.utils.geometry_utils import transform_matrix
from pyquaternion import Quaternion
from scipy.spatial.transform import Rotation

from aqr_model.data.nuscenes.infos import Floats

_MOVING_MPS = 0.2
_MOVING_ATTRIBUTE = {
    **dict.fromkeys(("car", "construction_vehicle", "bus", "truck", "trailer"), "vehicle.moving"),
    **dict.fromkeys(("bicycle", "motorcycle"), "cycle.with_rider"),
    "pedestrian": "pedestrian.moving",
}
_RESTING_ATTRIBUTE = {
    **dict.fromkeys(("car", "construction_vehicle", "truck", "trailer"), "vehicle.parked"),
    **dict.fromkeys(("bicycle", "motorcycle"), "cycle.without_rider"),
    "bus": "vehicle.stopped",
    "pedestrian": "pedestrian.standing",
}


class LidarBoxes(Protocol):
    """What is read of mmdet3d's LiDARInstance3DBoxes (with velocities)."""

    tensor: Any  # [N, 9]
    gravity_center: Any  # [N, 3]
    dims: Any  # dx (length), dy (width), dz (height). [N, 3]
    yaw: Any  # [N]


@functools.cache
def detection_config() -> DetectionConfig:
    """The devkit's configuration of the nuScenes detection benchmark."""
    config = config_factory("detection_cvpr_2019")
    assert isinstance(config, DetectionConfig)
    return config


@functools.cache
def class_ranges() -> dict[str, float]:
    """Distance from the ego vehicle up to which each class counts, metres."""
    return {name: float(metres) for name, metres in detection_config().class_range.items()}


def format_results(
    detections: Iterable[Mapping[str, Any]],
    infos: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
) -> dict[str, list[dict[str, Any]]]:
    """Format the detections of many samples.

    Args:
        detections: Per sample ``boxes_3d``, ``scores_3d`` [N] and ``labels_3d`` [N]; or that under
            ``pts_bbox``, as the detector returns it.
        infos: Infos of the same samples, in the same order.
        class_names: Class of each label.

    Returns:
        nuScenes results by sample token.
    """
    formatted: dict[str, list[dict[str, Any]]] = {}
    for detection, info in zip(detections, infos, strict=True):
        found = detection.get("pts_bbox", detection)
        formatted[info["token"]] = format_sample(
            found["boxes_3d"], found["scores_3d"], found["labels_3d"], info, class_names
        )
    return formatted


def format_sample(
    boxes: LidarBoxes,
    scores: ArrayLike,
    labels: ArrayLike,
    info: Mapping[str, Any],
    class_names: Sequence[str],
) -> list[dict[str, Any]]:
    """Format the detections of one sample; those beyond their class's range are left out.

    Raises:
        FloatingPointError: If a detection holds NaN or infinity.
    """
    centres = np.asarray(boxes.gravity_center, dtype=np.float64)  # [N, 3]
    sizes = np.asarray(boxes.dims, dtype=np.float64)[:, [1, 0, 2]]  # width, length, height
    yaws = np.asarray(boxes.yaw, dtype=np.float64)
    velocities = np.asarray(boxes.tensor, dtype=np.float64)[:, 7:9]
    scores = np.asarray(scores, dtype=np.float64)
    names = [class_names[int(label)] for label in np.asarray(labels)]
    _check_finite(info["token"], centres, sizes, yaws, velocities, scores)

    turns = [Quaternion(info[f"{name}_rotation"]) for name in ("lidar2ego", "ego2global")]
    lidar2ego = transform_matrix(info["lidar2ego_translation"], turns[0])
    ego2global = transform_matrix(info["ego2global_translation"], turns[1])
    w, x, y, z = (turns[1] * turns[0]).elements
    # A quaternion each, at once: pyquaternion would take 70 s for nuScenes' validation set.
    rotations = Rotation.from_quat([x, y, z, w]) * Rotation.from_rotvec(np.outer(yaws, [0, 0, 1]))
    rotations = rotations.as_quat()[:, [3, 0, 1, 2]]
    in_ego = centres @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    in_global = in_ego @ ego2global[:3, :3].T + ego2global[:3, 3]
    lidar2global = ego2global @ lidar2ego
    # Velocity is a planar vector of the LiDAR frame and turns with the box.
    velocities = velocities @ lidar2global[:2, :2].T
    ranges = np.array([class_ranges()[name] for name in names])
    kept = np.flatnonzero(np.hypot(in_ego[:, 0], in_ego[:, 1]) <= ranges)
    return [
        {
            "sample_token": info["token"],
            "translation": in_global[i].tolist(),
            "size": sizes[i].tolist(),
            "rotation": rotations[i].tolist(),
            "velocity": velocities[i].tolist(),
            "detection_name": names[i],
            "detection_score": float(scores[i]),
            "attribute_name": attribute(names[i], float(np.hypot(*velocities[i]))),
        }
        for i in kept
    ]


def attribute(class_name: str, speed_mps: float) -> str:
    """Attribute that goes with a class at a speed; empty for classes without one."""
    chosen = _MOVING_ATTRIBUTE if speed_mps > _MOVING_MPS else _RESTING_ATTRIBUTE
    return chosen.get(class_name, "")


def _check_finite(token: str, *values: Floats) -> None:
    # Before the range filter: NaN is inside no range, so it would drop the evidence.
    if not all(np.isfinite(value).all() for value in values):
        raise FloatingPointError(f"Detections of sample {token} must be finite, but are not.")
