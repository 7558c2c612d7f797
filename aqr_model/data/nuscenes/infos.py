"""One keyframe of the tables as an info record, in the form mmdet3d 1.0's NuScenesDataset reads."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import transform_matrix
from pyquaternion import Quaternion

LIDAR = "LIDAR_TOP"
CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
Info = dict[str, Any]
Floats = NDArray[np.float64]


def build_info(tables: NuScenes, sample: Mapping[str, Any], *, max_sweeps: int = 10) -> Info:
    """Build the info of one keyframe.

    Paths are relative to the dataroot, so that the folder may move. Beyond mmdet3d's keys an info
    carries ``scene_name``, by which shares of scenes are chosen.

    Args:
        tables: The dataset.
        sample: A record of its sample table.
        max_sweeps: LiDAR sweeps before the keyframe to list, nearest first.
    """
    lidar = tables.get("sample_data", sample["data"][LIDAR])
    calibration, pose = _calibration(tables, lidar), _pose(tables, lidar)
    global2lidar = np.linalg.inv(_sensor_to_global(tables, lidar))
    info = {
        "token": sample["token"],
        "scene_name": tables.get("scene", sample["scene_token"])["name"],
        "timestamp": sample["timestamp"],
        "lidar_path": lidar["filename"],
        "sweeps": _sweeps(tables, lidar, global2lidar, max_sweeps),
        "cams": {name: _camera(tables, sample, name, global2lidar) for name in CAMERAS},
        "lidar2ego_translation": calibration["translation"],
        "lidar2ego_rotation": calibration["rotation"],
        "ego2global_translation": pose["translation"],
        "ego2global_rotation": pose["rotation"],
    }
    turn = Quaternion(pose["rotation"]) * Quaternion(calibration["rotation"])
    return info | _annotations(tables, sample, global2lidar, turn.inverse)


def camera_matrices(info: Mapping[str, Any]) -> dict[str, list[Floats]]:
    """Matrices of an info's cameras, in the order of :data:`CAMERAS`.

    Returns:
        ``lidar2img``, ``lidar2cam`` and ``cam_intrinsic``, lists of [4, 4], with
        lidar2img = cam_intrinsic x lidar2cam.
    """
    cameras = [info["cams"][name] for name in CAMERAS]
    lidar2cam = [
        np.linalg.inv(_homogeneous(c["sensor2lidar_rotation"], c["sensor2lidar_translation"]))
        for c in cameras
    ]
    intrinsics = [_homogeneous(c["cam_intrinsic"], np.zeros(3)) for c in cameras]
    lidar2img = [k @ e for k, e in zip(intrinsics, lidar2cam, strict=True)]
    return {"lidar2img": lidar2img, "lidar2cam": lidar2cam, "cam_intrinsic": intrinsics}


def sensor_files(info: Info, *, lidar: bool = True, cameras: bool = True) -> list[str]:
    """The sensor files that an info names, relative to the dataroot.

    Args:
        info: Of a sample.
        lidar: Those of the LiDAR.
        cameras: Those of the cameras.
    """
    points = [info["lidar_path"], *(sweep["data_path"] for sweep in info["sweeps"])]
    images = [camera["data_path"] for camera in info["cams"].values()]
    return [*(points if lidar else ()), *(images if cameras else ())]


def _homogeneous(matrix: Floats, translation: Floats) -> Floats:
    """Put a matrix [3, 3] and a translation [3] into one. [4, 4]."""
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = matrix, translation
    return whole


def _calibration(tables: NuScenes, data: Mapping[str, Any]) -> Info:
    return tables.get("calibrated_sensor", data["calibrated_sensor_token"])


def _pose(tables: NuScenes, data: Mapping[str, Any]) -> Info:
    return tables.get("ego_pose", data["ego_pose_token"])


def _sensor_to_global(tables: NuScenes, data: Mapping[str, Any]) -> Floats:
    ego2global, sensor2ego = (
        transform_matrix(record["translation"], Quaternion(record["rotation"]))
        for record in (_pose(tables, data), _calibration(tables, data))
    )
    return ego2global @ sensor2ego


def _sensor(tables: NuScenes, data: Mapping[str, Any], kind: str, global2lidar: Floats) -> Info:
    """Describe a sensor reading with its way into the keyframe's LiDAR frame.

    Every reading has its own ego pose: the vehicle moves between a camera's exposure, a sweep and
    the keyframe, so the way leads through the global frame.
    """
    calibration, pose = _calibration(tables, data), _pose(tables, data)
    sensor2lidar = global2lidar @ _sensor_to_global(tables, data)
    return {
        "data_path": data["filename"],
        "type": kind,
        "sample_data_token": data["token"],
        "timestamp": data["timestamp"],
        "sensor2ego_translation": calibration["translation"],
        "sensor2ego_rotation": calibration["rotation"],
        "ego2global_translation": pose["translation"],
        "ego2global_rotation": pose["rotation"],
        "sensor2lidar_rotation": sensor2lidar[:3, :3],
        "sensor2lidar_translation": sensor2lidar[:3, 3],
    }


def _camera(tables: NuScenes, sample: Mapping[str, Any], name: str, global2lidar: Floats) -> Info:
    data = tables.get("sample_data", sample["data"][name])
    intrinsic = np.array(_calibration(tables, data)["camera_intrinsic"])
    return _sensor(tables, data, name, global2lidar) | {"cam_intrinsic": intrinsic}


def _sweeps(
    tables: NuScenes, lidar: Mapping[str, Any], global2lidar: Floats, max_sweeps: int
) -> list[Info]:
    sweeps: list[Info] = []
    token = lidar["prev"]
    while token and len(sweeps) < max_sweeps:
        data = tables.get("sample_data", token)
        sweeps.append(_sensor(tables, data, "lidar", global2lidar))
        token = data["prev"]
    return sweeps


def _annotations(
    tables: NuScenes, sample: Mapping[str, Any], global2lidar: Floats, turn: Quaternion
) -> Info:
    """Boxes in the LiDAR frame: gravity centre, dx (length), dy (width), dz (height), yaw.

    The yaw is pyquaternion's, as mmdet3d's converter takes it; roll and pitch have no place in the
    box.
    """
    records = [tables.get("sample_annotation", token) for token in sample["anns"]]
    boxes = np.zeros((len(records), 7))
    velocity = np.zeros((len(records), 2))
    for row, record in enumerate(records):
        centre = global2lidar @ [*record["translation"], 1.0]
        yaw = (turn * Quaternion(record["rotation"])).yaw_pitch_roll[0]
        width, length, height = record["size"]
        boxes[row] = *centre[:3], length, width, height, yaw
        velocity[row] = _velocity(tables, record["token"], global2lidar)
    lidar_points = np.array([r["num_lidar_pts"] for r in records], dtype=np.int64)
    radar_points = np.array([r["num_radar_pts"] for r in records], dtype=np.int64)
    return {
        "gt_boxes": boxes,
        "gt_names": np.array([_class_name(r["category_name"]) for r in records], dtype=np.str_),
        "gt_velocity": velocity,
        "num_lidar_pts": lidar_points,
        "num_radar_pts": radar_points,
        "valid_flag": lidar_points + radar_points > 0,
    }


def _velocity(tables: NuScenes, token: str, global2lidar: Floats) -> Floats:
    velocity = np.array([*tables.box_velocity(token)[:2], 0.0])
    return (global2lidar[:3, :3] @ velocity)[:2]  # NaN where the devkit knows none


def _class_name(category: str) -> str:
    """Detection class of a category; categories that are not detected keep their name."""
    return category_to_detection_name(category) or category
