"""Record one scene: drive through its world, write every sensor's files, return the table rows."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from .calibration import CAMERAS, LIDAR, LIDAR_CHANNEL, yaw_quaternion
from .camera import Camera
from .config import KEYFRAME_INTERVAL_S, SyntheticConfig
from .domain import SensorQuality
from .lidar import Lidar
from .placement import draw_world
from .tables import SCENE_TABLES, Row, Tables, Tokens, visibility_token
from .world import BoxArray, World

_CLUTTER_REFLECTIVITY = 14.0
_FIRST_TIMESTAMP_US = 1_532_402_927_000_000
_WORLD_STREAM, _QUALITY_STREAM, _NOISE_STREAM = range(3)


@dataclass(frozen=True, kw_only=True)
class SceneJob:
    """One scene to record.

    Attributes:
        config: The dataset's settings.
        root: Folder that holds ``samples`` and ``sweeps``.
        split_number: Position of its split among all splits.
        index: Position within its split.
        number: Position within the dataset.
        name: Scene name.
    """

    config: SyntheticConfig
    root: Path
    split_number: int
    index: int
    number: int
    name: str

    def generator(self, stream: int) -> np.random.Generator:
        """Return a generator that depends on nothing but the seed and the place in the split."""
        return np.random.default_rng([self.config.seed, self.split_number, self.index, stream])


def record_scene(job: SceneJob) -> Tables:
    """Record one scene.

    Returns:
        The rows of all tables in ``SCENE_TABLES``.
    """
    return _Recorder(job).record()


class _Recorder:
    def __init__(self, job: SceneJob) -> None:
        config = job.config
        self._job = job
        self._config = config
        self._tokens = Tokens.of(config)
        domain = config.domain_settings
        self._quality: SensorQuality = domain.condition_of(job.index).draw(
            job.generator(_QUALITY_STREAM)
        )
        self._world: World = draw_world(
            job.generator(_WORLD_STREAM),
            domain,
            start_s=min((0.0, *config.sweep_times_s)),
            end_s=(config.keyframes - 1) * KEYFRAME_INTERVAL_S,
            radius_m=config.radius_m,
            density=config.density,
        )
        self._reflectivity = np.array(
            [
                box.object_class.reflectivity if box.object_class else _CLUTTER_REFLECTIVITY
                for box in self._world.boxes
            ]
        )
        self._rng = job.generator(_NOISE_STREAM)
        self._rows: Tables = {table: [] for table in SCENE_TABLES}
        self._last: dict[str, Row] = {}

    def record(self) -> Tables:
        self._add_scene()
        for keyframe in range(self._config.keyframes):
            self._record_keyframe(keyframe)
        for number in range(len(self._world.objects)):
            self._add_instance(number)
        return self._rows

    def _token(self, table: str, *parts: object) -> str:
        return self._tokens.token(table, self._job.name, *parts)

    def _timestamp(self, time_s: float) -> int:
        # A minute apart, so that scenes never overlap in time.
        start = _FIRST_TIMESTAMP_US + self._job.number * 60_000_000
        return start + round(time_s * 1e6)

    def _add_scene(self) -> None:
        job = self._job
        self._rows["log"].append(
            {
                "token": self._token("log"),
                "logfile": f"{job.name}-log",
                "vehicle": "synth",
                "date_captured": "2018-07-24",
                "location": "singapore-onenorth",
            }
        )
        self._rows["scene"].append(
            {
                "token": self._token("scene"),
                "log_token": self._token("log"),
                "nbr_samples": self._config.keyframes,
                "first_sample_token": self._token("sample", 0),
                "last_sample_token": self._token("sample", self._config.keyframes - 1),
                "name": job.name,
                "description": self._quality.describe(),
            }
        )

    def _record_keyframe(self, keyframe: int) -> None:
        time_s = keyframe * KEYFRAME_INTERVAL_S
        self._add_sample(keyframe, time_s)
        for offset_s in self._config.sweep_times_s:
            moment_s = time_s + offset_s
            boxes = self._world.boxes_at(moment_s)
            self._record_lidar(keyframe, moment_s, boxes, is_key_frame=False)
        boxes = self._world.boxes_at(time_s)
        num_points = self._record_lidar(keyframe, time_s, boxes, is_key_frame=True)
        visible_share = self._record_cameras(keyframe, time_s, boxes)
        for number in range(len(self._world.objects)):
            self._add_annotation(
                number, keyframe, int(num_points[number]), float(visible_share[number])
            )

    def _add_sample(self, keyframe: int, time_s: float) -> None:
        is_last = keyframe == self._config.keyframes - 1
        self._rows["sample"].append(
            {
                "token": self._token("sample", keyframe),
                "timestamp": self._timestamp(time_s),
                "prev": self._token("sample", keyframe - 1) if keyframe else "",
                "next": "" if is_last else self._token("sample", keyframe + 1),
                "scene_token": self._token("scene"),
            }
        )

    def _record_lidar(
        self, keyframe: int, time_s: float, boxes: BoxArray, *, is_key_frame: bool
    ) -> np.ndarray:
        """Write one turn; return the number of points on each box. [N]."""
        lidar = _lidar(self._config.azimuths)
        points, owner = lidar.scan(boxes, self._reflectivity, self._quality, self._rng)
        path = self._add_sample_data(
            LIDAR_CHANNEL, keyframe, time_s, "pcd.bin", (0, 0), is_key_frame=is_key_frame
        )
        points.tofile(path)
        return np.bincount(owner[owner >= 0], minlength=len(boxes))

    def _record_cameras(self, keyframe: int, time_s: float, boxes: BoxArray) -> np.ndarray:
        """Write six pictures; return the share of each box that they show. [N]."""
        visible = np.zeros(len(boxes))
        covered = np.zeros(len(boxes))
        size = self._config.image_size
        for channel in CAMERAS:
            view = _camera(channel, size).render(self._world, boxes, self._quality, self._rng)
            visible += view.visible
            covered += view.covered
            path = self._add_sample_data(channel, keyframe, time_s, "jpg", size, is_key_frame=True)
            flags = [cv2.IMWRITE_JPEG_QUALITY, self._config.jpeg_quality]
            if not cv2.imwrite(str(path), view.image, flags):
                raise OSError(f"{path} could not be written; check the folder and the free space.")
        return visible / np.maximum(covered, 1)

    def _add_sample_data(
        self,
        channel: str,
        keyframe: int,
        time_s: float,
        extension: str,
        image_size: tuple[int, int],
        *,
        is_key_frame: bool,
    ) -> Path:
        """Add a sensor reading and its ego pose; return where its file belongs."""
        timestamp = self._timestamp(time_s)
        token = self._token("sample_data", channel, timestamp)
        folder = "samples" if is_key_frame else "sweeps"
        filename = f"{folder}/{channel}/{self._job.name}__{channel}__{timestamp}.{extension}"
        row: Row = {
            "token": token,
            "sample_token": self._token("sample", keyframe),
            "ego_pose_token": token,
            "calibrated_sensor_token": self._tokens.token("calibrated_sensor", channel),
            "timestamp": timestamp,
            "fileformat": extension.partition(".")[0],
            "is_key_frame": is_key_frame,
            "height": image_size[1],
            "width": image_size[0],
            "filename": filename,
            "prev": "",
            "next": "",
        }
        self._append_linked("sample_data", channel, row)
        pose = self._world.ego.pose(time_s)
        self._rows["ego_pose"].append(
            {
                "token": token,
                "timestamp": timestamp,
                "rotation": yaw_quaternion(pose.yaw),
                "translation": [*pose.position.tolist(), 0.0],
            }
        )
        return self._job.root / filename

    def _add_annotation(
        self, number: int, keyframe: int, num_points: int, visible_share: float
    ) -> None:
        box = self._world.objects[number]
        position = box.position_at(keyframe * KEYFRAME_INTERVAL_S)
        attributes = [self._tokens.token("attribute", box.attribute)] if box.attribute else []
        row: Row = {
            "token": self._token("sample_annotation", number, keyframe),
            "sample_token": self._token("sample", keyframe),
            "instance_token": self._token("instance", number),
            "visibility_token": visibility_token(visible_share),
            "attribute_tokens": attributes,
            "translation": [*position.tolist(), box.size[2] / 2],
            "size": list(box.size),
            "rotation": yaw_quaternion(math.remainder(box.yaw, 2 * math.pi)),
            "prev": "",
            "next": "",
            "num_lidar_pts": num_points,
            "num_radar_pts": 0,
        }
        self._append_linked("sample_annotation", f"object {number}", row)

    def _add_instance(self, number: int) -> None:
        keyframes = self._config.keyframes
        object_class = self._world.objects[number].object_class
        assert object_class is not None
        self._rows["instance"].append(
            {
                "token": self._token("instance", number),
                "category_token": self._tokens.token("category", object_class.category),
                "nbr_annotations": keyframes,
                "first_annotation_token": self._token("sample_annotation", number, 0),
                "last_annotation_token": self._token("sample_annotation", number, keyframes - 1),
            }
        )

    def _append_linked(self, table: str, chain: str, row: Row) -> None:
        """Add a row and join it to the last one of its chain in both directions."""
        if previous := self._last.get(chain):
            row["prev"] = previous["token"]
            previous["next"] = row["token"]
        self._last[chain] = row
        self._rows[table].append(row)


@lru_cache(maxsize=1)
def _lidar(azimuths: int) -> Lidar:
    return Lidar(LIDAR, azimuths)


@lru_cache(maxsize=len(CAMERAS))
def _camera(channel: str, image_size: tuple[int, int]) -> Camera:
    return Camera(CAMERAS[channel], image_size)
