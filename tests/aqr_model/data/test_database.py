import os
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import BoxVisibility, view_points
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion

from aqr_model.data.prepare import database as module
from aqr_model.data.prepare import __main__ as command
from aqr_model.data.prepare import build as prepare_module
from aqr_model.data.nuscenes.dataset import CLASS_NAMES
from aqr_model.data.errors import DataError
from aqr_model.data.nuscenes.infos import CAMERAS
from aqr_model.data.prepare import database_file, prepare, prepare_database
from aqr_model.data.nuscenes.tables import open_tables

VERSION = "v1.0-tiny"


def load(path):
    return pickle.loads(path.read_bytes())


def contents(root):
    """Every file of the database with its bytes."""
    files = sorted(p for p in (root / module.FOLDER).rglob("*") if p.is_file())
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def cut(tmp_path_factory, write_tiny):
    """A tiny dataset with its database."""
    root = tmp_path_factory.mktemp("database")
    write_tiny(root)
    return root, prepare_database(root, VERSION)["tiny_train"]


def test_only_training_objects_of_detected_classes(cut):
    root, path = cut
    assert path.name == "nuscenes_dbinfos_tiny_train.pkl"
    found = load(path)
    assert list(found) == list(CLASS_NAMES)
    infos = {info["token"]: info for info in load(root / "nuscenes_infos_tiny_train.pkl")["infos"]}
    entries = [entry for own in found.values() for entry in own]
    assert len(entries) == 11 * len(infos)
    for entry in entries:
        info = infos[entry["image_idx"]]
        assert info["gt_names"][entry["gt_idx"]] == entry["name"]
        box = entry["box3d_lidar"]
        expected = info["gt_boxes"][entry["gt_idx"]]
        np.testing.assert_allclose(box[2] + box[5] / 2, expected[2], atol=1e-5)
        np.testing.assert_allclose(np.delete(box[:7], 2), np.delete(expected, 2), atol=1e-5)
    assert sorted(entry["group_id"] for entry in entries) == list(range(len(entries)))


def test_points_are_those_the_tables_count_and_lie_in_the_box(cut):
    """The tiny clouds hold 12 points an object in the keyframe and 12 in each sweep."""
    root, path = cut
    for entry in load(path)["car"]:
        points = np.fromfile(root / entry["path"], dtype=np.float32).reshape(-1, 5)
        assert len(points) == entry["num_points_in_gt"]
        assert (points[:, 4] == 0).sum() >= 12
        box = entry["box3d_lidar"]
        turn = Quaternion(axis=[0, 0, 1], radians=-float(box[6])).rotation_matrix
        local = points[:, :3] @ turn.T
        assert (np.abs(local[:, :2]) <= box[3:5] / 2 + 1e-4).all()
        assert ((local[:, 2] >= -1e-4) & (local[:, 2] <= box[5] + 1e-4)).all()
    parked = load(path)["trailer"]
    ages = {len(load_points(root, entry)) // 12 for entry in parked}
    assert ages == {2, 4, 6}  # keyframe and every earlier sweep and keyframe of the scene


def load_points(root, entry):
    return np.fromfile(root / entry["path"], dtype=np.float32).reshape(-1, 5)


def rectangle_by_the_devkit(tables, entry, camera):
    """(low, high) corners of an object in an image, from the devkit's box and projection."""
    sample = tables.get("sample", entry["image_idx"])
    token = sample["data"][camera]
    _, boxes, intrinsic = tables.get_sample_data(token, box_vis_level=BoxVisibility.NONE)
    annotation = sample["anns"][entry["gt_idx"]]
    box: Box = next(box for box in boxes if box.token == annotation)
    seen = box.corners()
    pixels = view_points(seen, intrinsic, normalize=True)[:2]
    low = np.clip(np.floor(pixels.min(axis=1)), 0, [160, 90]).astype(int)
    high = np.clip(np.ceil(pixels.max(axis=1)), 0, [160, 90]).astype(int)
    return (low, high) if (seen[2] > 0).all() else (low, low)


def test_patches_are_the_pixels_under_the_devkits_projection(cut):
    root, path = cut
    tables = open_tables(root, VERSION)
    entries = [e for own in load(path).values() for e in own if e["image_path"]]
    assert len(entries) > 10
    for entry in entries:
        low, high = rectangle_by_the_devkit(tables, entry, entry["image_crop_key"])
        patch = cv2.imread(str(root / entry["image_path"]))
        # The devkit's box is tilted with the road, the detector's stands upright.
        assert np.abs(np.array(patch.shape[1::-1]) - (high - low)).max() <= 6
        assert min(patch.shape[:2]) > module.MIN_PATCH_PIXELS
        sample = tables.get("sample", entry["image_idx"])
        image = cv2.imread(tables.get_sample_data_path(sample["data"][entry["image_crop_key"]]))
        found = cv2.matchTemplate(image, patch, cv2.TM_SQDIFF)
        place = np.array(cv2.minMaxLoc(found)[2])
        assert np.abs(place - low).max() <= 6
        assert found.min() / patch.size < 60  # the error of JPEG


def test_the_patch_is_the_largest_of_all_cameras(cut):
    root, path = cut
    tables = open_tables(root, VERSION)
    without = 0
    for entry in (entry for own in load(path).values() for entry in own):
        sides = [np.subtract(*rectangle_by_the_devkit(tables, entry, c)[::-1]) for c in CAMERAS]
        if not entry["image_path"]:
            without += 1
            assert entry["image_crop_key"] == ""
            assert max(side.min() for side in sides) < module.MIN_PATCH_PIXELS + 7
            continue
        height, width = cv2.imread(str(root / entry["image_path"])).shape[:2]
        large = [side.prod() for side in sides if side.min() > module.MIN_PATCH_PIXELS + 6]
        assert height * width >= max(large, default=0) - 6 * (height + width)
        assert entry["image_crop_depth"] > 0
    assert without > 0


def test_number_of_sweeps(own_tiny):
    path = prepare_database(own_tiny.root, VERSION, num_sweeps=0)["tiny_train"]
    for entry in load(path)["trailer"]:
        points = load_points(own_tiny.root, entry)
        assert 12 <= len(points) < 24  # without the sweeps' 12 each; some points are clutter
        assert (points[:, 4] == 0).all()


def test_workers_change_nothing(own_tiny):
    first = load(prepare_database(own_tiny.root, VERSION)["tiny_train"])
    before = contents(own_tiny.root)
    (own_tiny.root / database_file("tiny_train")).unlink()
    for folder in (own_tiny.root / module.FOLDER).iterdir():
        (folder / "infos.pkl").unlink()
    second = load(prepare_database(own_tiny.root, VERSION, workers=2)["tiny_train"])
    assert contents(own_tiny.root) == before
    assert pickle.dumps(first) == pickle.dumps(second)


def test_second_run_leaves_files_alone(own_tiny, monkeypatch):
    path = prepare_database(own_tiny.root, VERSION)["tiny_train"]
    before = path.stat().st_mtime_ns

    def fail(*_, **__):
        raise AssertionError("must not be cut again")

    monkeypatch.setattr(module, "build_database", fail)
    assert prepare_database(own_tiny.root, VERSION)["tiny_train"] == path
    assert path.stat().st_mtime_ns == before
    with pytest.raises(AssertionError, match="cut again"):
        prepare_database(own_tiny.root, VERSION, num_sweeps=1)


def test_changed_tables_are_cut_anew(own_tiny):
    prepare_database(own_tiny.root, VERSION)
    for record in own_tiny.tables["sample_annotation"]:
        record["num_lidar_pts"] = 0
    own_tiny.write()
    found = load(prepare_database(own_tiny.root, VERSION)["tiny_train"])
    assert sum(map(len, found.values())) == 0


def test_an_interrupted_run_goes_on_where_it_was(own_tiny, monkeypatch):
    own_tiny.splits = {"tiny_train": ["tiny-0000", "tiny-0001"], "tiny_val": ["tiny-0001"]}
    own_tiny.write()
    victim = own_tiny.root / "samples/CAM_BACK"
    name = sorted(p.name for p in victim.iterdir() if "tiny-0001" in p.name)[-1]
    content = (victim / name).read_bytes()
    (victim / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"Sample tiny-0001-sample-2: .*{name} .*cut short"):
        prepare_database(own_tiny.root, VERSION)
    assert not (own_tiny.root / database_file("tiny_train")).exists()
    assert os.listdir(own_tiny.root / module.FOLDER) == ["tiny-0000"]
    done = (own_tiny.root / module.FOLDER / "tiny-0000").stat().st_mtime_ns
    (victim / name).write_bytes(content)
    found = load(prepare_database(own_tiny.root, VERSION)["tiny_train"])
    assert len(found["bus"]) == 6
    assert (own_tiny.root / module.FOLDER / "tiny-0000").stat().st_mtime_ns == done


def test_missing_file_is_named_from_a_worker_process(own_tiny):
    prepare(own_tiny.root, VERSION)
    victim = next((own_tiny.root / "sweeps/LIDAR_TOP").glob("*tiny-0000*"))
    victim.unlink()
    with pytest.raises(DataError, match=rf"Sample tiny-0000-sample-\d: .*{victim.name}"):
        prepare_database(own_tiny.root, VERSION, workers=2)


def test_removed_folder_is_cut_again(own_tiny):
    import shutil

    prepare_database(own_tiny.root, VERSION)
    shutil.rmtree(own_tiny.root / module.FOLDER)
    prepare_database(own_tiny.root, VERSION)
    assert contents(own_tiny.root)


@pytest.mark.parametrize("options", [{"num_sweeps": 11}, {"workers": 0}])
def test_wrong_numbers(own_tiny, options):
    with pytest.raises(DataError, match="must hold"):
        prepare_database(own_tiny.root, VERSION, **options)


def rename(tiny, version, names):
    """Give a tiny dataset an official version and official scene names."""
    for record, name in zip(tiny.tables["scene"], names, strict=True):
        record["name"] = name
    tiny.write()
    (tiny.root / VERSION / "splits.json").unlink()
    (tiny.root / VERSION).rename(tiny.root / version)


def test_mini(tmp_path, write_tiny):
    scenes = create_splits_scenes()
    tiny = write_tiny(tmp_path / "mini", num_scenes=10)
    rename(tiny, "v1.0-mini", [*scenes["mini_train"], *scenes["mini_val"]])
    paths = prepare_database(tiny.root, "v1.0-mini")
    assert {split: path.name for split, path in paths.items()} == {
        "mini_train": "nuscenes_dbinfos_train.pkl"
    }
    assert len(load(paths["mini_train"])["car"]) == 2 * 3 * 8
    assert sorted(os.listdir(tiny.root / module.FOLDER)) == sorted(scenes["mini_train"])
    assert len(load(tiny.root / "nuscenes_infos_val.pkl")["infos"]) == 6


def test_split_without_annotations(own_tiny, monkeypatch, capsys):
    for name in ("sample_annotation", "instance"):
        own_tiny.tables[name] = []
    names = create_splits_scenes()["test"][:2]
    rename(own_tiny, "v1.0-test", names)
    monkeypatch.setattr(prepare_module, "split_scenes", lambda *_: {"test": tuple(names)})
    arguments = ["prepare", "--dataroot", str(own_tiny.root), "--version", "v1.0-test"]
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    assert "no object database" in capsys.readouterr().out
    assert not (own_tiny.root / module.FOLDER).exists()
    infos = load(own_tiny.root / "nuscenes_infos_test.pkl")["infos"]
    assert len(infos) == 6
    assert {info["gt_boxes"].shape for info in infos} == {(0, 7)}


def test_command_line(own_tiny):
    command = [sys.executable, "-m", "aqr_model.data.prepare", "--dataroot", str(own_tiny.root)]
    done = subprocess.run([*command, "--version", VERSION], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nuscenes_dbinfos_tiny_train.pkl (6 car, 3 truck," in done.stdout
    assert "object database" in done.stderr


def test_command_line_without_database(own_tiny, monkeypatch, capsys):
    arguments = ["prepare", "--dataroot", str(own_tiny.root), "--version", VERSION]
    monkeypatch.setattr(sys, "argv", [*arguments, "--no-database"])
    command.main()
    assert not (own_tiny.root / module.FOLDER).exists()
    assert "nuscenes_infos_tiny_val.pkl" in capsys.readouterr().out
