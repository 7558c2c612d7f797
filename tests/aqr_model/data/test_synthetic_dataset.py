"""The written dataset through the eyes of nuscenes-devkit."""

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box

from aqr_model.data.synthetic import DOMAINS, VERSION, SyntheticConfig, write_dataset
from aqr_model.data.synthetic.calibration import CAMERAS
from aqr_model.data.synthetic.tables import Tokens, visibility_token

CONFIG = SyntheticConfig(
    train_scenes=2, val_scenes=3, keyframes=3, seed=11, azimuths=180, sweep_offsets_s=(0.2, 0.4)
)
LINKS = {  # column: table it leads to
    "sample_token": "sample",
    "scene_token": "scene",
    "log_token": "log",
    "instance_token": "instance",
    "category_token": "category",
    "visibility_token": "visibility",
    "sensor_token": "sensor",
    "calibrated_sensor_token": "calibrated_sensor",
    "ego_pose_token": "ego_pose",
    "first_sample_token": "sample",
    "last_sample_token": "sample",
    "first_annotation_token": "sample_annotation",
    "last_annotation_token": "sample_annotation",
}
SCHEMA = {
    "category": "token name description index",
    "attribute": "token name description",
    "visibility": "token level description",
    "instance": "token category_token nbr_annotations first_annotation_token last_annotation_token",
    "sensor": "token channel modality",
    "calibrated_sensor": "token sensor_token translation rotation camera_intrinsic",
    "ego_pose": "token translation rotation timestamp",
    "log": "token logfile vehicle date_captured location",
    "scene": "token name description log_token nbr_samples first_sample_token last_sample_token",
    "sample": "token timestamp scene_token next prev",
    "sample_data": "token sample_token ego_pose_token calibrated_sensor_token filename fileformat "
    "width height timestamp is_key_frame next prev",
    "sample_annotation": "token sample_token instance_token attribute_tokens visibility_token "
    "translation size rotation num_lidar_pts num_radar_pts next prev",
    "map": "token log_tokens category filename",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "base"
    write_dataset(folder, CONFIG)
    return folder


@pytest.fixture(scope="module")
def nusc(root) -> NuScenes:
    return NuScenes(version=VERSION, dataroot=str(root), verbose=False)


def raw_tables(root: Path) -> dict[str, list[dict]]:
    return {name: json.loads((root / VERSION / f"{name}.json").read_text()) for name in SCHEMA}


def test_tables_have_the_public_columns(root):
    for name, rows in raw_tables(root).items():
        assert rows
        for row in rows:
            assert set(row) == set(SCHEMA[name].split())


def test_every_link_resolves_and_tokens_are_unique(root):
    tables = raw_tables(root)
    tokens = {name: {row["token"] for row in rows} for name, rows in tables.items()}
    for name, rows in tables.items():
        assert len(tokens[name]) == len(rows)
        for row in rows:
            for column, target in LINKS.items():
                assert row.get(column) is None or row[column] in tokens[target]
            for column in ("prev", "next"):
                assert not row.get(column) or row[column] in tokens[name]
    for row in tables["sample_annotation"]:
        assert set(row["attribute_tokens"]) <= tokens["attribute"]
        assert len(row["attribute_tokens"]) <= 1
    assert {t for row in tables["map"] for t in row["log_tokens"]} == tokens["log"]


def test_files_and_rows_belong_together(root):
    tables = raw_tables(root)
    listed = {row["filename"] for row in tables["sample_data"]}
    there = {
        str(path.relative_to(root))
        for folder in ("samples", "sweeps")
        for path in (root / folder).rglob("*")
        if path.is_file()
    }
    assert listed == there
    for row in tables["sample_data"]:
        assert row["filename"].startswith("samples/" if row["is_key_frame"] else "sweeps/LIDAR")
        if row["fileformat"] == "jpg":
            shape = cv2.imread(str(root / row["filename"])).shape
            assert shape == (row["height"], row["width"], 3)


def test_chains_run_through_time(nusc):
    for scene in nusc.scene:
        samples = [nusc.get("sample", scene["first_sample_token"])]
        while samples[-1]["next"]:
            samples.append(nusc.get("sample", samples[-1]["next"]))
        assert samples[-1]["token"] == scene["last_sample_token"]
        assert len(samples) == scene["nbr_samples"] == CONFIG.keyframes
        reading = nusc.get("sample_data", samples[0]["data"]["LIDAR_TOP"])
        while reading["prev"]:
            reading = nusc.get("sample_data", reading["prev"])
        times, keyframes = [], 0
        while True:
            times.append(reading["timestamp"])
            keyframes += reading["is_key_frame"]
            if not reading["next"]:
                break
            reading = nusc.get("sample_data", reading["next"])
        first = samples[0]["timestamp"]
        expected = [-0.4, -0.2, 0, 0.1, 0.3, 0.5, 0.6, 0.8, 1.0]
        assert [(time - first) / 1e6 for time in times] == pytest.approx(expected)
        assert keyframes == CONFIG.keyframes


def test_sweeps_accumulate(nusc):
    sample = nusc.get("sample", nusc.scene[0]["last_sample_token"])
    points, times = LidarPointCloud.from_file_multisweep(
        nusc, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=4
    )
    assert np.unique(times.round(2)) == pytest.approx([0.0, 0.2, 0.4, 0.5])
    assert points.nbr_points() == times.shape[1] > 4000


def test_splits_hold_all_scenes_once(root, nusc):
    splits = json.loads((root / VERSION / "splits.json").read_text())
    assert {name: len(scenes) for name, scenes in splits.items()} == CONFIG.splits
    names = list(itertools.chain.from_iterable(splits.values()))
    assert sorted(names) == sorted(scene["name"] for scene in nusc.scene)


def test_velocity_is_displacement_over_time(nusc):
    moving = 0
    for instance in nusc.instance:
        annotation = nusc.get("sample_annotation", instance["first_annotation_token"])
        following = nusc.get("sample_annotation", annotation["next"])
        displacement = np.subtract(following["translation"], annotation["translation"])
        velocity = nusc.box_velocity(annotation["token"])
        np.testing.assert_allclose(velocity, displacement / 0.5, atol=1e-6)
        speed = float(np.linalg.norm(velocity[:2]))
        names = [nusc.get("attribute", t)["name"] for t in annotation["attribute_tokens"]]
        is_moving = any(name.endswith((".moving", "with_rider")) for name in names)
        assert is_moving == (speed > 0.5)
        moving += is_moving
    assert moving > 10


def test_point_counts_are_points_at_the_box(nusc, root):
    counted, found = [], []
    for sample in nusc.sample[:4]:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = np.fromfile(path, np.float32).reshape(-1, 5)
        assert set(np.unique(points[:, 4])) <= set(range(32))
        assert points[:, 3].min() >= 0
        assert points[:, 3].max() <= 255
        for box in boxes:
            # Ranges scatter by 2 cm around the surface; the ground below stays outside.
            box.wlh = box.wlh + 0.25
            box.center = box.center + np.array([0, 0, 0.26])
            counted.append(nusc.get("sample_annotation", box.token)["num_lidar_pts"])
            found.append(points_in_box(box, points[:, :3].T).sum())
    counted, found = np.array(counted), np.array(found)
    assert counted.sum() > 500
    assert np.abs(counted - found).sum() < 0.1 * counted.sum()


def test_all_ten_classes_and_every_visibility_level_occur(nusc):
    names = {category_to_detection_name(row["category_name"]) for row in nusc.sample_annotation}
    assert len(names - {None}) == 10
    assert {row["visibility_token"] for row in nusc.sample_annotation} == {"1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("share", "level"), [(0, "1"), (0.39, "1"), (0.4, "2"), (0.6, "3"), (0.8, "4"), (1, "4")]
)
def test_visibility_levels(share, level):
    assert visibility_token(share) == level


def test_boxes_appear_where_the_devkit_projects_them(nusc):
    """The rear light of a near, wholly visible vehicle is at the centre of its back face."""
    checked = 0
    for sample, channel in itertools.product(nusc.sample, CAMERAS):
        path, boxes, intrinsic = nusc.get_sample_data(sample["data"][channel])
        image = cv2.imread(path)
        for box in boxes:
            record = nusc.get("sample_annotation", box.token)
            depth = box.center[2]
            if record["visibility_token"] != "4" or box.wlh[1] < 2.5 or not 6 < depth < 18:
                continue
            # get_sample_data puts the heading on the box's x axis.
            centre = box.center + box.rotation_matrix @ [-box.wlh[1] / 2, 0, 0]
            faces_camera = (box.rotation_matrix @ [-1.0, 0, 0]) @ centre < -0.5 * depth
            column, row, scale = intrinsic @ centre
            x, y = round(column / scale), round(row / scale)
            if not faces_camera or not (10 < x < 390 and 10 < y < 215):
                continue
            checked += 1
            blue, green, red = image[y, x].astype(int)
            assert red > blue + 80, record
            assert red > green + 80, record
    assert checked >= 3


def ground_truth_results(nusc: NuScenes, scenes: set[str], *, keep_empty: bool) -> dict:
    results: dict[str, list[dict]] = {}
    for sample in nusc.sample:
        if nusc.get("scene", sample["scene_token"])["name"] not in scenes:
            continue
        results[sample["token"]] = []
        for token in sample["anns"]:
            row = nusc.get("sample_annotation", token)
            if not row["num_lidar_pts"] and not keep_empty:
                continue
            attributes = [nusc.get("attribute", t)["name"] for t in row["attribute_tokens"]]
            results[sample["token"]].append(
                {
                    "sample_token": sample["token"],
                    "translation": row["translation"],
                    "size": row["size"],
                    "rotation": row["rotation"],
                    "velocity": nusc.box_velocity(token)[:2].tolist(),
                    "detection_name": category_to_detection_name(row["category_name"]),
                    "detection_score": 0.9,
                    "attribute_name": attributes[0] if attributes else "",
                }
            )
    return results


def score(nusc: NuScenes, results: dict, folder: Path) -> dict:
    path = folder / "results.json"
    meta = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    path.write_text(json.dumps({"meta": meta, "results": results}))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(
        nusc, config, str(path), "synth_train", output_dir=str(folder), verbose=False
    )
    return evaluation.evaluate()[0].serialize()


def test_ground_truth_scores_perfectly(root, nusc, tmp_path):
    splits = json.loads((root / VERSION / "splits.json").read_text())
    results = ground_truth_results(nusc, set(splits["synth_train"]), keep_empty=False)
    present = {r["detection_name"] for rows in results.values() for r in rows}
    metrics = score(nusc, results, tmp_path)
    assert len(present) == 10
    assert metrics["nd_score"] > 0.97, metrics
    assert metrics["mean_ap"] > 0.97
    assert max(metrics["tp_errors"].values()) < 0.01


def test_predictions_on_boxes_without_points_count_as_wrong(root, nusc, tmp_path):
    splits = json.loads((root / VERSION / "splits.json").read_text())
    results = ground_truth_results(nusc, set(splits["synth_train"]), keep_empty=True)
    assert 0.5 < score(nusc, results, tmp_path)["mean_ap"] < 0.999


def test_tokens_tell_datasets_apart():
    first = Tokens.of(CONFIG).token("scene", "a")
    assert first == Tokens.of(CONFIG).token("scene", "a")
    assert len(first) == 32
    others = [
        SyntheticConfig(domain="shifted", seed=11),
        SyntheticConfig(domain="base", seed=12),
    ]
    assert first not in [Tokens.of(config).token("scene", "a") for config in others]


def test_shifted_scenes_are_hurt_unevenly(tmp_path):
    """Dark cameras come with dense LiDAR and thin LiDAR with bright cameras."""
    for domain in ("base", "shifted"):
        config = SyntheticConfig(
            domain=domain,
            train_scenes=5,
            val_scenes=0,
            keyframes=2,
            image_size=(160, 90),
            azimuths=120,
            sweep_offsets_s=(),
        )
        write_dataset(tmp_path / domain, config)
    brightness, points, condition = measure(tmp_path / "shifted")
    base_brightness, base_points, base_condition = measure(tmp_path / "base")
    assert set(base_condition) == {"clear"}
    assert condition == ["dark cameras", "thin LiDAR", "both mild", "dark cameras", "thin LiDAR"]
    dark = [i for i, name in enumerate(condition) if name == "dark cameras"]
    thin = [i for i, name in enumerate(condition) if name == "thin LiDAR"]
    (mild,) = (i for i, name in enumerate(condition) if name == "both mild")
    assert max(brightness[i] for i in dark) < 0.5 * min(brightness[i] for i in thin)
    assert max(points[i] for i in thin) < 0.3 * min(points[i] for i in dark)
    assert min(points[i] for i in dark) > 0.75 * np.mean(base_points)
    assert min(brightness[i] for i in thin) > 0.55 * np.mean(base_brightness)
    assert max(brightness[i] for i in dark) < brightness[mild] < np.mean(base_brightness)
    assert max(points[i] for i in thin) < points[mild] < 0.6 * np.mean(base_points)


def measure(root: Path) -> tuple[list[float], list[float], list[str]]:
    """Return mean grey value, mean points a sweep and condition of every scene."""
    scenes = json.loads((root / VERSION / "scene.json").read_text())
    brightness = [
        float(np.mean([cv2.imread(str(p)).mean() for p in root.glob(f"samples/CAM*/{s['name']}*")]))
        for s in scenes
    ]
    points = [
        float(np.mean([p.stat().st_size / 20 for p in root.glob(f"samples/LIDAR*/{s['name']}*")]))
        for s in scenes
    ]
    return brightness, points, [s["description"].partition(":")[0] for s in scenes]


def test_conditions_stay_balanced_in_any_split():
    conditions = [DOMAINS["shifted"].condition_of(i).name for i in range(10)]
    assert conditions.count("dark cameras") == conditions.count("thin LiDAR") == 4
