"""The ground-truth database: every annotated object cut out of LiDAR clouds and camera images.

One folder a scene: the points of each object (float32 values x, y, z, intensity, age; the origin is
the middle of the box's bottom), a JPEG patch from the camera that shows it largest, and
``infos.pkl``, which makes the folder complete. A finished scene is not cut again.
"""

import multiprocessing
import pickle
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes, box_np_ops
from mmdet3d.datasets.pipelines import Compose
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from aqr_model.data.boxes import image_rectangles
from aqr_model.data.nuscenes.dataset import CLASS_NAMES
from aqr_model.data.errors import SampleFileError
from aqr_model.data.files import whole_folder, write_whole
from aqr_model.data.nuscenes.infos import CAMERAS, Info, camera_matrices
from aqr_model.data.pipelines.loading import read_image

FOLDER = "nuscenes_gt_database"
MIN_PATCH_PIXELS = 10  # smaller patches, by width or height, show nothing
_JPEG_QUALITY = 95
_SCENE_INFOS = "infos.pkl"


@dataclass(frozen=True, kw_only=True)
class _SceneJob:
    """One scene to cut out.

    Attributes:
        scene: Its name, and that of its folder.
        infos: Its keyframes.
        dataroot: Where sensor files are relative to.
        folder: What the database's paths are relative to.
        num_sweeps: Earlier LiDAR sweeps to gather points from.
        stamp: What the cut depends on.
    """

    scene: str
    infos: list[Info]
    dataroot: Path
    folder: Path
    num_sweeps: int
    stamp: Mapping[str, Any]


def build_database(
    infos: Iterable[Info],
    *,
    dataroot: Path,
    folder: Path,
    num_sweeps: int,
    stamp: Mapping[str, Any],
    workers: int = 1,
) -> dict[str, list[Info]]:
    """Cut the objects of all keyframes out, and describe them.

    Args:
        infos: Keyframes with annotations.
        dataroot: Where their sensor files are relative to.
        folder: Where :data:`FOLDER` is put; paths in the result are relative to it.
        num_sweeps: Earlier LiDAR sweeps to gather points from, as in training.
        stamp: State of the tables; a scene cut from another state is cut anew.
        workers: Processes.

    Returns:
        The objects of each detection class, in the form of CMT's and mmdet3d's database infos.

    Raises:
        SampleFileError: If a sensor file is missing or damaged; names sample and file.
    """
    scenes: dict[str, list[Info]] = {}
    for info in infos:
        scenes.setdefault(info["scene_name"], []).append(info)
    jobs = [
        _SceneJob(
            scene=scene,
            infos=members,
            dataroot=dataroot,
            folder=folder,
            num_sweeps=num_sweeps,
            stamp={**stamp, "sweeps": num_sweeps},
        )
        for scene, members in sorted(scenes.items())
    ]
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Info]] = {name: [] for name in CLASS_NAMES}
    with _results(jobs, workers) as results:
        console = Console(stderr=True)
        for objects in track(results, "object database", total=len(jobs), console=console):
            for entry in objects:
                found[entry["name"]].append({**entry, "group_id": sum(map(len, found.values()))})
    return found


@contextmanager
def _results(jobs: list[_SceneJob], workers: int) -> Iterator[Iterator[list[Info]]]:
    if workers == 1:
        yield map(_scene_objects, jobs)
        return
    # Forked, because a fresh interpreter imports torch and mmdet3d for seconds first. One thread
    # each, because the thread pools of torch and OpenCV do not survive a fork.
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("fork"), initializer=_use_one_thread
    )
    try:
        yield pool.map(_scene_objects, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _scene_objects(job: _SceneJob) -> list[Info]:
    path = job.folder / FOLDER / job.scene
    finished = _finished(path, job.stamp)
    if finished is not None:
        return finished
    objects: list[Info] = []
    with whole_folder(path) as partial:
        for info in job.infos:
            try:
                objects += _sample_objects(job, info, partial)
            except SampleFileError as error:
                raise SampleFileError(f"Sample {info['token']}: {error}") from error
        content = {"stamp": dict(job.stamp), "objects": objects}
        write_whole(partial / _SCENE_INFOS, pickle.dumps(content, protocol=4))
    return objects


def _finished(path: Path, stamp: Mapping[str, Any]) -> list[Info] | None:
    """Objects of a folder that is complete and of this state."""
    try:
        content = pickle.loads((path / _SCENE_INFOS).read_bytes())
    except FileNotFoundError:
        return None
    return content["objects"] if content["stamp"] == stamp else None


def _sample_objects(job: _SceneJob, info: Info, partial: Path) -> list[Info]:
    """Cut the objects of one keyframe; those without LiDAR points leave nothing to paste."""
    used = info["valid_flag"] & np.isin(info["gt_names"], CLASS_NAMES)
    names, rows = info["gt_names"][used], np.flatnonzero(used)
    boxes = _boxes(info)[used]
    points = _points(job, info)
    views = _views(info, job.dataroot, boxes)
    inside_box = box_np_ops.points_in_rbbox(points[:, :3], boxes)
    objects: list[Info] = []
    for i, (name, row, box) in enumerate(zip(names, rows, boxes, strict=True)):
        inside = points[inside_box[:, i]]
        if not len(inside):
            continue
        inside[:, :3] -= box[:3]
        stem = f"{info['token']}_{name}_{row}"
        inside.tofile(partial / f"{stem}.bin")
        place = f"{FOLDER}/{job.scene}/{stem}"
        objects.append(
            {
                "name": str(name),
                "path": f"{place}.bin",
                "image_idx": info["token"],
                "gt_idx": int(row),
                "box3d_lidar": box,
                "num_points_in_gt": len(inside),
                "difficulty": 0,
                **_patch(views, i, partial / f"{stem}.jpg", f"{place}.jpg"),
            }
        )
    return objects


def _boxes(info: Info) -> NDArray[np.float32]:
    """Boxes with velocities; an unknown velocity counts as standing. [N, 9]."""
    boxes = info["gt_boxes"].copy()
    boxes[:, 2] -= boxes[:, 5] / 2
    velocity = np.nan_to_num(info["gt_velocity"], nan=0.0)
    return np.concatenate([boxes, velocity], axis=1).astype(np.float32)


def _points(job: _SceneJob, info: Info) -> NDArray[np.float32]:
    """Keyframe and earlier sweeps, as the training pipeline reads them. [N, 5]."""
    use_dim = [0, 1, 2, 3, 4]
    load = Compose(
        [
            {"type": "LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": 5, "use_dim": 5},
            {
                "type": "LoadPointsFromMultiSweeps",
                "sweeps_num": job.num_sweeps,
                "use_dim": use_dim,
                "test_mode": True,
            },
        ]
    )
    sweeps = [
        {**sweep, "data_path": str(job.dataroot / sweep["data_path"])} for sweep in info["sweeps"]
    ]
    results = {
        "pts_filename": str(job.dataroot / info["lidar_path"]),
        "sweeps": sweeps,
        "timestamp": info["timestamp"] / 1e6,
    }
    loaded = load(results)
    assert loaded is not None  # only filters end a pipeline without a sample
    return loaded["points"].tensor.numpy()


@dataclass(frozen=True, kw_only=True)
class _View:
    """A camera image with the rectangles ([N, 4]) and depths ([N]) of the boxes in it."""

    camera: str
    image: NDArray[np.uint8]
    rectangles: NDArray[np.int64]
    depths: NDArray[np.float64]


def _views(info: Info, dataroot: Path, boxes: NDArray[np.float32]) -> list[_View]:
    matrices = camera_matrices(info)["lidar2img"]
    corners = LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1]).corners.numpy()
    views = []
    for camera, matrix in zip(CAMERAS, matrices, strict=True):
        image = read_image(str(dataroot / info["cams"][camera]["data_path"]))
        rectangles, depths = image_rectangles(corners, matrix, *image.shape[:2])
        views.append(_View(camera=camera, image=image, rectangles=rectangles, depths=depths))
    return views


def _patch(views: Iterable[_View], i: int, path: Path, name: str) -> Info:
    """Write the patch of box i, if any camera shows it large enough."""
    found = {"image_path": "", "image_crop_key": "", "image_crop_depth": 0.0}
    largest = None
    for view in views:
        left, top, right, bottom = view.rectangles[i]
        patch = view.image[top:bottom, left:right]
        if min(patch.shape[:2]) > MIN_PATCH_PIXELS and (
            largest is None or patch.size > largest.size
        ):
            largest = patch
            found = {
                "image_path": name,
                "image_crop_key": view.camera,
                "image_crop_depth": float(view.depths[i]),
            }
    if largest is not None:
        options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        cv2.imencode(".jpg", largest, options)[1].tofile(path)
    return found
