"""The public LiDAR pipeline's steps, by their names, on a data set without camera files."""

import shutil

import numpy as np
import pytest
import torch
from mmcv import Config
from mmdet3d.core.bbox.box_np_ops import points_in_rbbox
from mmdet3d.datasets import build_dataset

from aqr_model.data.prepare import prepare_database
from aqr_model.engine.batches import seed_everything

GROUPS = {"car": 6, "pedestrian": 8, "bus": 2, "traffic_cone": 6}


@pytest.fixture(scope="module")
def dataset(synthetic_root, tmp_path_factory):
    """The nano LiDAR config with the augmentation of the public LiDAR config."""
    database = prepare_database(synthetic_root, "v1.0-synth", num_sweeps=1)["synth_train"]
    root = tmp_path_factory.mktemp("lidar") / "data"
    shutil.copytree(synthetic_root, root, ignore=shutil.ignore_patterns("CAM_*"))
    cfg = Config.fromfile("aqr_model/configs/cmt_lidar_nano.py")
    train = cfg.data.train
    train.data_root = str(root)
    train.ann_file = str(root / "nuscenes_infos_synth_train.pkl")
    paste = {
        "type": "ObjectSample",
        "db_sampler": {
            "data_root": str(database.parent),
            "info_path": str(database),
            "rate": 1.0,
            "prepare": {"filter_by_difficulty": [-1], "filter_by_min_points": {"car": 5}},
            "classes": cfg.class_names,
            "sample_groups": GROUPS,
            "points_loader": dict(train.pipeline[0]),
        },
    }
    moves = [
        {
            "type": "GlobalRotScaleTrans",
            "rot_range": [-0.785, 0.785],
            "scale_ratio_range": [0.9, 1.1],
            "translation_std": [0.5, 0.5, 0.5],
        },
        {
            "type": "RandomFlip3D",
            "sync_2d": False,
            "flip_ratio_bev_horizontal": 0.5,
            "flip_ratio_bev_vertical": 0.5,
        },
    ]
    steps = [step for step in train.pipeline if step["type"] != "GlobalRotScaleTransAll"]
    train.pipeline = [*steps[:3], paste, *moves, *steps[3:]]
    return build_dataset(train)


def test_objects_and_their_points_move_together(dataset):
    seed_everything(0)
    num_boxes = []
    for index in range(4):
        sample = dataset[index]
        assert "img" not in sample
        points = sample["points"].data.numpy()
        boxes = sample["gt_bboxes_3d"].data.tensor.numpy()
        filled = points_in_rbbox(points[:, :3], boxes).any(axis=0)
        assert np.mean(filled) > 0.8  # a box that the range cuts may be empty
        num_boxes.append(len(boxes))
    assert min(num_boxes) > 10


def test_a_sample_does_not_depend_on_what_was_drawn_before(dataset):
    """mmdet3d's own sampler walks through a list: a resumed training would see other objects."""
    found = []
    for before in ((), (1, 2, 3)):
        for index in before:
            dataset[index]
        seed_everything(5)
        found.append(dataset[0])
    first, second = found
    assert torch.equal(first["points"].data, second["points"].data)
    assert torch.equal(first["gt_bboxes_3d"].data.tensor, second["gt_bboxes_3d"].data.tensor)
