import pickle
import shutil

import cv2
import numpy as np
import pytest
from data_parity import class_infos
from mmdet3d.datasets import build_dataset
from mmdet3d.datasets.dataset_wrappers import CBGSDataset

from aqr_model.data.prepare.database import FOLDER
from aqr_model.data.nuscenes.dataset import CLASS_NAMES
from aqr_model.data.errors import DataError, SampleFileError
from aqr_model.data.nuscenes.infos import CAMERAS
from aqr_model.data.pipelines.loading import read_image
from aqr_model.data.prepare import prepare, prepare_database
from aqr_model.engine.batches import training_batches

VERSION = "v1.0-tiny"
POINTS = [
    {"type": "LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": 5, "use_dim": 5},
    {"type": "LoadPointsFromMultiSweeps", "sweeps_num": 2, "use_dim": [0, 1, 2, 3, 4]},
]
FORMAT = [
    {"type": "LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True},
    {"type": "ObjectRangeFilter", "point_cloud_range": [-54, -54, -5, 54, 54, 3]},
    {"type": "ObjectNameFilter", "classes": list(range(10))},
    {"type": "DefaultFormatBundle3D", "class_names": list(range(10))},
    {"type": "Collect3D", "keys": ["points", "gt_bboxes_3d", "gt_labels_3d"]},
]


def rewrite(root, split, change):
    path = root / f"nuscenes_infos_{split}.pkl"
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content))


def test_camera_matrices(build_tiny):
    data = build_tiny().get_data_info(0)
    names = [path.split("/")[-2] for path in data["img_filename"]]
    assert names == list(CAMERAS)
    for image, camera, intrinsic in zip(
        data["lidar2img"], data["lidar2cam"], data["cam_intrinsic"], strict=True
    ):
        np.testing.assert_allclose(image, intrinsic @ camera)
        np.testing.assert_allclose(camera[:3, :3] @ camera[:3, :3].T, np.eye(3), atol=1e-9)


def test_lidar2img_equals_mmdet3ds(build_tiny):
    from mmdet3d.datasets import NuScenesDataset

    dataset = build_tiny()
    expected = NuScenesDataset.get_data_info(dataset, 1)["lidar2img"]
    np.testing.assert_allclose(dataset.get_data_info(1)["lidar2img"], expected, atol=1e-9)


def test_annotations(build_tiny):
    dataset = build_tiny("tiny_train")
    truth = dataset.get_ann_info(0)
    assert truth["gt_bboxes_3d"].tensor.shape == (12, 9)
    assert truth["gt_labels_3d"].dtype == np.int64
    assert sorted(truth["gt_labels_3d"]) == [-1, 0, *range(10)]
    expected = dataset.data_infos[0]["gt_boxes"][:, :3]
    np.testing.assert_allclose(truth["gt_bboxes_3d"].gravity_center, expected, atol=1e-5)


def test_objects_without_points_are_left_out(own_tiny, build_tiny):
    prepare(own_tiny.root, VERSION)

    def hide(content):
        for info in content["infos"]:
            info["num_lidar_pts"][:4] = 0

    rewrite(own_tiny.root, "tiny_train", hide)
    dataset = build_tiny("tiny_train", root=own_tiny.root)
    assert len(dataset.get_ann_info(0)["gt_labels_3d"]) == 8
    kept = build_tiny("tiny_train", root=own_tiny.root, use_valid_flag=True)
    assert len(kept.get_ann_info(0)["gt_labels_3d"]) == 12


def test_unknown_velocity_is_standing(own_tiny, build_tiny):
    prepare(own_tiny.root, VERSION)

    def forget(content):
        content["infos"][0]["gt_velocity"][:] = np.nan

    rewrite(own_tiny.root, "tiny_train", forget)
    dataset = build_tiny("tiny_train", root=own_tiny.root)
    assert (dataset.get_ann_info(0)["gt_bboxes_3d"].tensor[:, 7:] == 0).all()


def empty_first(content):
    info = content["infos"][0]
    for key in ("gt_boxes", "gt_names", "gt_velocity", "num_lidar_pts", "valid_flag"):
        info[key] = info[key][:0]


def test_sample_without_objects_is_replaced_in_training(own_tiny, build_tiny):
    prepare(own_tiny.root, VERSION)
    rewrite(own_tiny.root, "tiny_train", empty_first)
    dataset = build_tiny("tiny_train", POINTS + FORMAT, root=own_tiny.root)
    data = dataset[0]
    assert data["img_metas"].data["sample_idx"] != dataset.data_infos[0]["token"]
    assert len(data["gt_labels_3d"].data) > 0


def test_sample_without_objects_can_be_kept(own_tiny, build_tiny):
    prepare(own_tiny.root, VERSION)
    rewrite(own_tiny.root, "tiny_train", empty_first)
    dataset = build_tiny("tiny_train", POINTS + FORMAT, root=own_tiny.root, filter_empty_gt=False)
    data = dataset[0]
    assert data["gt_bboxes_3d"].data.tensor.shape == (0, 9)
    assert data["gt_labels_3d"].data.shape == (0,)


def test_nothing_to_train_on(own_tiny, build_tiny):
    prepare(own_tiny.root, VERSION)

    def empty_all(content):
        content["infos"] = content["infos"][:1]
        empty_first(content)

    rewrite(own_tiny.root, "tiny_train", empty_all)
    with pytest.raises(DataError, match="samples with objects"):
        build_tiny("tiny_train", root=own_tiny.root)


def test_share_of_scenes_in_the_config_and_afterwards(build_tiny):
    half = build_tiny(scene_share=0.5)
    assert len(half) == 3
    assert len({info["scene_name"] for info in half.data_infos}) == 1
    whole = build_tiny()
    tokens = [info["token"] for info in whole.with_share(0.5).data_infos]
    assert tokens == [info["token"] for info in half.data_infos]
    assert len(whole) == 6
    assert len(half.flag) == 3


def test_share_needs_scene_names(own_tiny, build_tiny):
    prepare(own_tiny.root, VERSION)

    def forget(content):
        for info in content["infos"]:
            del info["scene_name"]

    rewrite(own_tiny.root, "tiny_val", forget)
    assert len(build_tiny(root=own_tiny.root)) == 3
    with pytest.raises(DataError, match="name each sample's scene"):
        build_tiny(root=own_tiny.root, scene_share=0.5)


def test_folder_may_move(own_tiny, build_tiny, tmp_path):
    prepare(own_tiny.root, VERSION)
    shutil.move(own_tiny.root, tmp_path / "moved")
    dataset = build_tiny("tiny_train", POINTS + FORMAT, root=tmp_path / "moved")
    assert len(dataset[0]["points"].data) > 100


def test_class_balanced_sampling_gives_each_class_a_tenth(tmp_path):
    """Though nine of ten samples show a car and one of ten a traffic cone."""
    path = class_infos(tmp_path / "infos.pkl", count=200)
    options = {"data_root": "", "ann_file": str(path), "pipeline": []}
    inner = {"type": "CustomNuScenesDataset", **options}
    balanced = build_dataset({"type": "CBGSDataset", "dataset": inner})
    infos = balanced.dataset.data_infos
    shown = sum(len(set(info["gt_names"]) & set(CLASS_NAMES)) for info in infos)
    drawn = np.array(balanced.sample_indices).reshape(10, -1)
    assert drawn.shape[1] == int(shown / 10)
    for name, indices in zip(CLASS_NAMES, drawn, strict=True):
        assert all(name in infos[i]["gt_names"] for i in indices)


def test_missing_info_file_says_how_to_build_it(tiny_root, build_tiny):
    with pytest.raises(DataError, match=r"python -m aqr_model\.data\.prepare"):
        build_tiny("nowhere")


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"data_list": []})])
def test_foreign_info_file(own_tiny, build_tiny, content):
    (own_tiny.root / "nuscenes_infos_tiny_val.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"form of mmdet3d 1\.0"):
        build_tiny(root=own_tiny.root)


@pytest.mark.parametrize("kind", ["missing", "short", "empty", "nan"])
@pytest.mark.parametrize("key", ["lidar_path", "sweep"])
def test_damaged_points_name_sample_and_file(own_tiny, build_tiny, kind, key):
    prepare(own_tiny.root, VERSION)
    dataset = build_tiny("tiny_train", POINTS + FORMAT, root=own_tiny.root)
    info = dataset.data_infos[0]
    name = info["lidar_path"] if key == "lidar_path" else info["sweeps"][0]["data_path"]
    path = own_tiny.root / name
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "short":
        path.write_bytes(content[:-7])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(content[:-4] + np.float32("nan").tobytes())
    with pytest.raises(SampleFileError, match=f"Sample {info['token']}: .*{path.name}"):
        dataset[0]


@pytest.mark.parametrize("kind", ["missing", "short", "half", "almost", "empty"])
def test_damaged_image_names_sample_and_file(own_tiny, build_tiny, kind):
    prepare(own_tiny.root, VERSION)
    dataset = build_tiny("tiny_val", [{"type": "LoadMultiViewImageFromFiles"}], root=own_tiny.root)
    info = dataset.data_infos[1]
    path = own_tiny.root / info["cams"]["CAM_BACK"]["data_path"]
    if kind == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        kept = {"short": 200, "half": len(content) // 2, "almost": len(content) - 2, "empty": 0}
        path.write_bytes(content[: kept[kind]])
    dataset.test_mode = True
    with pytest.raises(SampleFileError, match=f"Sample {info['token']}: .*{path.name}"):
        dataset[1]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_whole_images_are_read(tmp_path, suffix):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    path = tmp_path / f"whole{suffix}"
    cv2.imwrite(str(path), image)
    with path.open("ab") as file:
        file.write(b"\0" * 7)  # some cameras pad their files
    assert read_image(str(path)).shape == (40, 60, 3)
    path.write_bytes(path.read_bytes()[:-27])
    with pytest.raises(SampleFileError, match="cut short"):
        read_image(str(path))


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_named_through_loading_processes(own_tiny, build_tiny, workers):
    """As training loads: CBGS around the dataset, batches from other processes."""
    prepare(own_tiny.root, VERSION)
    plain = build_tiny("tiny_train", POINTS + FORMAT, root=own_tiny.root)
    info = plain.data_infos[1]
    path = own_tiny.root / info["sweeps"][0]["data_path"]
    path.write_bytes(path.read_bytes()[:-7])
    batches = training_batches(
        CBGSDataset(plain), batch_size=1, num_workers=workers, seed=0, start=0, stop=30
    )
    # Later keyframes list the sweep too.
    with pytest.raises(SampleFileError, match=rf"Sample tiny-0000-sample-\d: .*{path.name} cannot"):
        list(batches)


def test_damaged_database_object_is_named_with_its_sample(own_tiny, build_tiny):
    found = prepare_database(own_tiny.root, VERSION)["tiny_train"]
    sampler = {
        "info_path": str(found),
        "data_root": None,
        "rate": 1.0,
        "prepare": {},
        "classes": list(CLASS_NAMES),
        "sample_groups": {"car": 9},
    }
    paste = {"type": "UnifiedObjectSample", "db_sampler": sampler}
    dataset = build_tiny("tiny_train", [*POINTS, FORMAT[0], paste], root=own_tiny.root)
    for path in (own_tiny.root / FOLDER).rglob("*_car_*.bin"):
        path.unlink()
    token = dataset.data_infos[0]["token"]
    with pytest.raises(SampleFileError, match=rf"Sample {token}: .*_car_\d+\.bin cannot be read"):
        dataset[0]
