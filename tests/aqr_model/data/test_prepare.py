import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import BoxVisibility

from aqr_model.data.prepare import build as module
from aqr_model.data.errors import DataError
from aqr_model.data.nuscenes.infos import CAMERAS
from aqr_model.data.prepare import info_file, prepare
from aqr_model.data.nuscenes.tables import open_tables, split_scenes

VERSION = "v1.0-tiny"


def load(root, split="tiny_val"):
    with open(root / f"nuscenes_infos_{split}.pkl", "rb") as file:
        return pickle.load(file)


def test_splits_and_metadata(tiny_root):
    train, val = load(tiny_root, "tiny_train"), load(tiny_root)
    assert {i["scene_name"] for i in train["infos"]} == {"tiny-0000", "tiny-0001"}
    assert {i["scene_name"] for i in val["infos"]} == {"tiny-0002", "tiny-0003"}
    assert val["metadata"]["version"] == VERSION
    assert val["metadata"]["split"] == "tiny_val"
    assert len(val["infos"]) == 6


def test_boxes_equal_the_devkits_in_the_lidar_frame(tiny_root):
    tables = open_tables(tiny_root, VERSION)
    for info in load(tiny_root)["infos"]:
        sample = tables.get("sample", info["token"])
        _, boxes, _ = tables.get_sample_data(sample["data"]["LIDAR_TOP"])
        np.testing.assert_allclose(info["gt_boxes"][:, :3], [b.center for b in boxes], atol=1e-9)
        np.testing.assert_allclose(info["gt_boxes"][:, [4, 3, 5]], [b.wlh for b in boxes])
        # As mmdet3d's converter, from which the public infos are.
        expected = [b.orientation.yaw_pitch_roll[0] for b in boxes]
        np.testing.assert_allclose(info["gt_boxes"][:, 6], expected, atol=1e-9)


def test_velocity_is_that_of_the_tables_in_the_lidar_frame(tiny_root):
    info = load(tiny_root)["infos"][1]
    names = info["gt_names"].tolist()
    moving = info["gt_velocity"][names.index("bus")]
    yaw = info["gt_boxes"][names.index("bus"), 6]
    assert np.hypot(*moving) == pytest.approx(4.0, abs=5e-3)
    assert np.arctan2(moving[1], moving[0]) == pytest.approx(yaw, abs=2e-3)
    assert info["gt_velocity"][names.index("barrier")] == pytest.approx([0, 0])


def test_names_points_and_flags(tiny_root):
    info = load(tiny_root)["infos"][0]
    assert {"car", "bus", "traffic_cone", "animal"} <= set(info["gt_names"])
    assert (info["num_lidar_pts"] == 12).all()
    assert info["valid_flag"].all()


def test_sweeps_land_where_the_devkit_puts_them(tiny_root):
    tables = open_tables(tiny_root, VERSION)
    info = load(tiny_root)["infos"][2]
    sample = tables.get("sample", info["token"])
    devkit, times = LidarPointCloud.from_file_multisweep(
        tables, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=4, min_distance=0.0
    )
    ours = []
    for sweep in info["sweeps"][:3]:
        cloud = np.fromfile(tiny_root / sweep["data_path"], dtype=np.float32).reshape(-1, 5)
        turned = cloud[:, :3] @ sweep["sensor2lidar_rotation"].T
        ours.append(turned + sweep["sensor2lidar_translation"])
    size = len(ours[0])
    np.testing.assert_allclose(np.concatenate(ours), devkit.points[:3, size:].T, atol=1e-3)
    lags = [(info["timestamp"] - sweep["timestamp"]) / 1e6 for sweep in info["sweeps"][:3]]
    np.testing.assert_allclose(np.unique(times)[1:], lags, atol=1e-5)


def test_sweeps_go_back_at_most_ten_and_stop_at_the_scene(tiny_root):
    counts = [len(info["sweeps"]) for info in load(tiny_root)["infos"]]
    assert counts == [1, 3, 5, 1, 3, 5]


def test_cameras_project_as_the_devkit_does(tiny_root):
    tables = open_tables(tiny_root, VERSION)
    info = load(tiny_root)["infos"][0]
    sample = tables.get("sample", info["token"])
    for name in CAMERAS:
        _, boxes, intrinsic = tables.get_sample_data(
            sample["data"][name],
            box_vis_level=BoxVisibility.NONE,
            selected_anntokens=sample["anns"],
        )
        camera = info["cams"][name]
        turn, shift = camera["sensor2lidar_rotation"], camera["sensor2lidar_translation"]
        ours = (info["gt_boxes"][:, :3] - shift) @ turn
        np.testing.assert_allclose(ours, [box.center for box in boxes], atol=1e-6)
        np.testing.assert_allclose(camera["cam_intrinsic"], intrinsic)


def test_paths_are_relative_to_the_dataroot(tiny_root):
    info = load(tiny_root)["infos"][0]
    assert info["lidar_path"].startswith("samples/LIDAR_TOP/")
    assert all(c["data_path"].startswith("samples/CAM_") for c in info["cams"].values())


def test_second_run_leaves_files_alone(own_tiny, monkeypatch):
    paths = prepare(own_tiny.root, VERSION)
    before = {path: path.stat().st_mtime_ns for path in paths.values()}

    def fail(*_):
        raise AssertionError("tables must not be opened again")

    monkeypatch.setattr(module, "open_tables", fail)
    assert prepare(own_tiny.root, VERSION) == paths
    assert {path: path.stat().st_mtime_ns for path in paths.values()} == before


def test_changed_tables_are_prepared_anew(own_tiny):
    prepare(own_tiny.root, VERSION)
    own_tiny.splits = {"tiny_train": own_tiny.splits["tiny_train"], "tiny_val": ["tiny-0000"]}
    own_tiny.write()
    prepare(own_tiny.root, VERSION)
    assert {i["scene_name"] for i in load(own_tiny.root)["infos"]} == {"tiny-0000"}


def test_out_folder(own_tiny, tmp_path):
    paths = prepare(own_tiny.root, VERSION, tmp_path / "infos")
    assert {path.parent for path in paths.values()} == {tmp_path / "infos"}


def test_missing_sensor_file_is_named(own_tiny):
    victim = next((own_tiny.root / "samples/CAM_BACK").iterdir())
    victim.unlink()
    with pytest.raises(DataError, match=f"1 are missing .*{victim.name}"):
        prepare(own_tiny.root, VERSION)


def test_unknown_scene(own_tiny):
    own_tiny.splits["tiny_val"].append("scene-9999")
    own_tiny.write()
    with pytest.raises(DataError, match="scene-9999"):
        prepare(own_tiny.root, VERSION)


def test_missing_folder_and_table(own_tiny):
    with pytest.raises(DataError, match="folder with the tables of version 'v9'"):
        prepare(own_tiny.root, "v9")
    (own_tiny.root / VERSION / "ego_pose.json").unlink()
    with pytest.raises(DataError, match="lacks \\['ego_pose'\\]"):
        prepare(own_tiny.root, VERSION)


def test_damaged_table_is_named(own_tiny):
    path = own_tiny.root / VERSION / "instance.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=r"instance\.json cannot be read"):
        prepare(own_tiny.root, VERSION)


def test_empty_map_table(own_tiny):
    own_tiny.tables["map"] = []
    own_tiny.write()
    with pytest.raises(DataError, match=r"map\.json must name every log"):
        prepare(own_tiny.root, VERSION)


def test_custom_version_needs_its_splits(own_tiny):
    (own_tiny.root / VERSION / "splits.json").unlink()
    with pytest.raises(DataError, match="not an official version"):
        prepare(own_tiny.root, VERSION)


def test_official_splits_are_the_devkits():
    splits = split_scenes("nowhere", "v1.0-trainval")
    assert {name: len(scenes) for name, scenes in splits.items()} == {"train": 700, "val": 150}
    assert info_file("mini_val") == "nuscenes_infos_val.pkl"


def test_command_line(own_tiny):
    command = [sys.executable, "-m", "aqr_model.data.prepare", "--dataroot", str(own_tiny.root)]
    done = subprocess.run([*command, "--version", VERSION], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nuscenes_infos_tiny_val.pkl" in done.stdout
    assert json.loads((own_tiny.root / "nuscenes_infos.json").read_text())
    failed = subprocess.run([*command, "--version", "v9"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("error: ")
