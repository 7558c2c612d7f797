"""A tiny dataset in nuScenes' format, with tilted poses and a moment between the sensors."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from pyquaternion import Quaternion

import aqr_model  # noqa: F401  (its shims, before a test imports mmdet3d)

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
HEADINGS = (0, -55, 55, 180, 110, -110)
WIDTH, HEIGHT = 160, 90
VERSION = "v1.0-tiny"
OBJECTS = (  # category, size (w, l, h), speed, attribute
    ("vehicle.car", (1.9, 4.6, 1.7), 5.0, "vehicle.moving"),
    ("vehicle.car", (1.9, 4.6, 1.7), 0.0, "vehicle.parked"),
    ("vehicle.truck", (2.5, 6.9, 2.8), 3.0, "vehicle.moving"),
    ("vehicle.bus.rigid", (2.9, 11.1, 3.5), 4.0, "vehicle.moving"),
    ("vehicle.trailer", (2.9, 12.3, 3.9), 0.0, "vehicle.parked"),
    ("vehicle.construction", (2.8, 6.6, 3.2), 0.0, "vehicle.parked"),
    ("human.pedestrian.adult", (0.7, 0.7, 1.8), 1.0, "pedestrian.moving"),
    ("vehicle.motorcycle", (0.8, 2.1, 1.5), 5.0, "cycle.with_rider"),
    ("vehicle.bicycle", (0.6, 1.7, 1.3), 0.0, "cycle.without_rider"),
    ("movable_object.trafficcone", (0.4, 0.4, 1.1), 0.0, ""),
    ("movable_object.barrier", (2.5, 0.5, 1.0), 0.0, ""),
    ("animal", (0.4, 0.8, 0.6), 0.0, ""),
)


class TinyNuScenes:
    """Writes the tables; every scene has three keyframes and a sweep before each of them."""

    def __init__(self, root: Path, num_scenes: int = 4, *, seed: int = 0) -> None:
        self.root, self.rng = root, np.random.default_rng(seed)
        self.tables: dict[str, list[dict]] = {
            name: []
            for name in (
                "attribute calibrated_sensor category ego_pose instance log map sample "
                "sample_annotation sample_data scene sensor visibility"
            ).split()
        }
        (root / "maps").mkdir(parents=True)
        cv2.imwrite(str(root / "maps/stub.png"), np.full((8, 8), 255, np.uint8))
        for folder in (*(f"samples/{c}" for c in ("LIDAR_TOP", *CAMERAS)), "sweeps/LIDAR_TOP"):
            (root / folder).mkdir(parents=True)
        self._fixed_tables()
        for index in range(num_scenes):
            self._scene(index)
        logs = [record["token"] for record in self.tables["log"]]
        self._add("map", "map", log_tokens=logs, filename="maps/stub.png", category="x")
        half = num_scenes // 2
        names = [scene["name"] for scene in self.tables["scene"]]
        self.splits = {"tiny_train": names[:half], "tiny_val": names[half:]}
        self.write()

    def write(self) -> None:
        folder = self.root / VERSION
        folder.mkdir(exist_ok=True)
        for name, records in self.tables.items():
            (folder / f"{name}.json").write_text(json.dumps(records))
        (folder / "splits.json").write_text(json.dumps(self.splits))

    def _add(self, table: str, token: str, **fields) -> dict:
        self.tables[table].append({"token": token, **fields})
        return self.tables[table][-1]

    def _fixed_tables(self) -> None:
        for category in dict.fromkeys(kind[0] for kind in OBJECTS):
            self._add("category", category, name=category, description="")
        for name in dict.fromkeys(kind[3] for kind in OBJECTS if kind[3]):
            self._add("attribute", name, name=name, description="")
        self._add("visibility", "4", level="v80-100", description="")
        self._add("sensor", "LIDAR_TOP", channel="LIDAR_TOP", modality="lidar")
        turn = Quaternion(axis=[0, 0, 1], degrees=-89) * Quaternion(axis=[1, 0, 0], degrees=1.5)
        self._calibrated("LIDAR_TOP", [0.94, 0.0, 1.84], turn, [])
        optical = Quaternion(matrix=np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]))
        intrinsic = [[70.0, 0, 80.5], [0, 71.0, 44.0], [0, 0, 1]]
        for name, heading in zip(CAMERAS, HEADINGS, strict=True):
            self._add("sensor", name, channel=name, modality="camera")
            turn = Quaternion(axis=[0, 0, 1], degrees=heading) * optical
            tilt = Quaternion(axis=[1, 0, 0], degrees=float(self.rng.normal(0, 1)))
            offset = [1.0 + math.cos(math.radians(heading)), math.sin(math.radians(heading)), 1.5]
            self._calibrated(name, offset, turn * tilt, intrinsic)

    def _calibrated(self, channel: str, offset: list, turn: Quaternion, intrinsic: list) -> None:
        self._add(
            "calibrated_sensor",
            f"calibrated-{channel}",
            sensor_token=channel,
            translation=offset,
            rotation=turn.elements.tolist(),
            camera_intrinsic=intrinsic,
        )

    def _scene(self, index: int) -> None:
        name = f"tiny-{index:04d}"
        self._add("log", f"log-{name}", logfile=name, location="singapore-onenorth")
        samples = [f"{name}-sample-{k}" for k in range(3)]
        self._add(
            "scene",
            f"scene-{name}",
            name=name,
            log_token=f"log-{name}",
            nbr_samples=3,
            first_sample_token=samples[0],
            last_sample_token=samples[-1],
            description="",
        )
        places = self._places()
        self.previous: dict[str, dict] = {}
        self.annotations: dict[str, dict] = {}
        for k, token in enumerate(samples):
            self._sample(name, index, k, token, samples, places)

    def _places(self) -> np.ndarray:
        angle = np.linspace(0, 2 * np.pi, len(OBJECTS), endpoint=False) + self.rng.uniform(0, 0.3)
        radius = self.rng.uniform(9, 26, len(OBJECTS))
        yaw = self.rng.uniform(-np.pi, np.pi, len(OBJECTS))
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), yaw], axis=1)

    def _sample(self, name, index, k, token, samples, places) -> None:
        start = 1_532_402_927_000_000 + index * 60_000_000
        time_s = 0.5 * k
        micros = start + int(1e6 * time_s)
        self._add(
            "sample",
            token,
            timestamp=micros,
            scene_token=f"scene-{name}",
            prev=samples[k - 1] if k else "",
            next=samples[k + 1] if k < 2 else "",
        )
        boxes = [self._annotate(name, token, i, place, time_s) for i, place in enumerate(places)]
        self._lidar(name, token, start, time_s - 0.2, boxes, key=False)
        counts = self._lidar(name, token, start, time_s, boxes, key=True)
        for record, count in zip(boxes, counts, strict=True):
            record["num_lidar_pts"] = count
        for shift, camera in enumerate(CAMERAS):
            image = self.rng.integers(0, 255, (9, 16, 3)).astype(np.uint8)
            image = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
            moment = time_s - 0.005 * (shift + 1)
            data = self._data(name, token, camera, start, moment, "jpg", key=True)
            cv2.imwrite(str(self.root / data["filename"]), image)

    def _annotate(self, name, sample, i, place, time_s) -> dict:
        category, size, speed, attribute = OBJECTS[i]
        x, y, yaw = place
        instance, token = f"{name}-object-{i}", f"{sample}-object-{i}"
        record = self._add(
            "sample_annotation",
            token,
            sample_token=sample,
            instance_token=instance,
            visibility_token="4",
            attribute_tokens=[attribute] if attribute else [],
            translation=[
                500 + x + speed * math.cos(yaw) * time_s,
                700 + y + speed * math.sin(yaw) * time_s,
                0.5 + size[2] / 2,
            ],
            size=list(size),
            rotation=Quaternion(axis=[0, 0, 1], radians=yaw).elements.tolist(),
            prev="",
            next="",
            num_lidar_pts=0,
            num_radar_pts=0,
        )
        last = self.annotations.get(instance)
        if last is None:
            self._add(
                "instance",
                instance,
                category_token=category,
                nbr_annotations=3,
                first_annotation_token=token,
                last_annotation_token=f"{name}-sample-2-object-{i}",
            )
        else:
            record["prev"], last["next"] = last["token"], token
        self.annotations[instance] = record
        return record

    def _data(self, name, sample, channel, start, time_s, suffix, *, key) -> dict:
        micros = start + int(1e6 * time_s)
        token = f"{name}-{channel}-{micros}"
        heading = Quaternion(axis=[0, 0, 1], radians=0.4 + 0.1 * time_s)
        tilt = Quaternion(axis=[0, 1, 0], degrees=1.0) * Quaternion(axis=[1, 0, 0], degrees=-0.7)
        self._add(
            "ego_pose",
            token,
            timestamp=micros,
            translation=[500 + 4 * time_s, 700 + 2 * time_s, 0.5],
            rotation=(heading * tilt).elements.tolist(),
        )
        folder = "samples" if key else "sweeps"
        record = self._add(
            "sample_data",
            token,
            sample_token=sample,
            ego_pose_token=token,
            calibrated_sensor_token=f"calibrated-{channel}",
            timestamp=micros,
            fileformat=suffix,
            is_key_frame=key,
            height=HEIGHT if suffix == "jpg" else 0,
            width=WIDTH if suffix == "jpg" else 0,
            filename=f"{folder}/{channel}/{token}.{suffix if suffix == 'jpg' else 'pcd.bin'}",
            prev="",
            next="",
        )
        last = self.previous.get(channel + name)
        if last is not None:
            record["prev"], last["next"] = last["token"], token
        self.previous[channel + name] = record
        return record

    def _lidar(self, name, sample, start, time_s, boxes, *, key) -> list[int]:
        data = self._data(name, sample, "LIDAR_TOP", start, time_s, "pcd", key=key)
        pose, calibration = self.tables["ego_pose"][-1], self.tables["calibrated_sensor"][0]
        clouds = [self._inside(box) for box in boxes]
        points = np.concatenate([*clouds, self.rng.uniform([460, 660, 0], [540, 740, 4], (200, 3))])
        for frame in (pose, calibration):
            turn = Quaternion(frame["rotation"]).rotation_matrix
            points = (points - frame["translation"]) @ turn
        extra = np.stack([self.rng.uniform(0, 90, len(points)), np.zeros(len(points))], axis=1)
        cloud = np.concatenate([points, extra], axis=1).astype(np.float32)
        cloud.tofile(self.root / data["filename"])
        return [len(cloud) for cloud in clouds]

    def _inside(self, box: dict) -> np.ndarray:
        width, length, height = box["size"]
        points = self.rng.uniform(-0.48, 0.48, (12, 3)) * [length, width, height]
        return points @ Quaternion(box["rotation"]).rotation_matrix.T + box["translation"]


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared tiny dataset that tests read and leave as it is."""
    from aqr_model.data.prepare import prepare

    root = tmp_path_factory.mktemp("tiny")
    TinyNuScenes(root)
    prepare(root, VERSION)
    return root


@pytest.fixture(scope="session")
def write_tiny():
    """Write a tiny dataset of one's own making: folder, number of scenes."""
    return TinyNuScenes


@pytest.fixture
def own_tiny(tmp_path: Path) -> TinyNuScenes:
    """A tiny dataset that a test may break."""
    return TinyNuScenes(tmp_path / "own", num_scenes=2)


@pytest.fixture(scope="session")
def build_tiny(tiny_root: Path):
    """Build the dataset of the tiny tables: split, pipeline and options of the class."""
    from mmdet3d.datasets import build_dataset

    def build(split: str = "tiny_val", pipeline=(), *, root: Path = tiny_root, **options):
        modality = {"use_lidar": True, "use_camera": True, "use_radar": False}
        modality |= {"use_map": False, "use_external": False}
        return build_dataset(
            {
                "type": "CustomNuScenesDataset",
                "data_root": str(root),
                "ann_file": str(root / f"nuscenes_infos_{split}.pkl"),
                "pipeline": list(pipeline),
                "modality": modality,
                **options,
            }
        )

    return build
