"""The scene's augmentation for cameras alone: boxes and cameras move, images stay."""

import logging

import camera_steps
import numpy as np
import parity_cases
import pytest
import torch
from scene_cases import projected, scene

from aqr_model.data.errors import DataError
from aqr_model.data.pipelines import (
    CustomRandomFlip3D,
    GlobalRotScaleTransAll,
    GlobalRotScaleTransImage,
    ModalMask3D,
)


def seen_by_cameras():
    return {key: value for key, value in scene().items() if key != "points"}


def test_it_moves_boxes_and_cameras_as_the_public_code_does():
    found = parity_cases.sampled(camera_steps.run("ours"))
    want = parity_cases.golden("camera.float32.transforms")
    assert len(want) == 48
    for name, (worst, where) in parity_cases.compare(found, want).items():
        assert worst < 1e-6, (name, where)


def places(boxes):
    """Corners of the boxes, and where their centres are a second later."""
    later = boxes.gravity_center.numpy().copy()
    later[:, :2] += boxes.tensor[:, 7:9].numpy()
    return np.concatenate([boxes.corners.numpy(), later[:, None]], axis=1)


@pytest.mark.parametrize("flips", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_boxes_stay_on_their_objects_in_every_image(flips):
    data = seen_by_cameras()
    before = places(data["gt_bboxes_3d"])
    pixels = [projected(before, matrix)[0] for matrix in data["lidar2img"]]
    moved = GlobalRotScaleTransImage([0.2, 0.3], [1.2, 1.3], (0, 0, 0), False, True, *flips)(data)
    after = places(moved["gt_bboxes_3d"])
    assert np.abs(after - before).max() > 1
    for view, matrix in enumerate(moved["lidar2img"]):
        found = projected(after, matrix)[0]
        np.testing.assert_allclose(found[:, 8], pixels[view][:, 8], atol=0.05)
        # A mirrored box counts its corners in another order.
        gaps = np.linalg.norm(found[:, :8, None] - pixels[view][:, None, :8], axis=-1)
        assert gaps.min(axis=1).max() < 0.05
        np.testing.assert_allclose(matrix, moved["cam_intrinsic"][view] @ moved["lidar2cam"][view])


def test_the_public_reversed_angle_takes_the_boxes_off_their_objects(caplog):
    data = seen_by_cameras()
    pixels = projected(data["gt_bboxes_3d"].gravity_center.numpy(), data["lidar2img"][0])[0]
    with caplog.at_level(logging.WARNING):
        step = GlobalRotScaleTransImage([0.2, 0.2], [1.0, 1.0], reverse_angle=True)
    assert "opposite directions" in caplog.text
    moved = step(data)
    found = projected(moved["gt_bboxes_3d"].gravity_center.numpy(), moved["lidar2img"][0])[0]
    assert np.linalg.norm(found - pixels, axis=-1).min() > 10


def test_what_it_cannot_do_is_refused():
    with pytest.raises(DataError, match=r"zeros for cameras alone, but is \[0\.5, 0, 0\]"):
        GlobalRotScaleTransImage(translation_std=[0.5, 0, 0])
    with pytest.raises(DataError, match=r"must lie in \[0, 1\], but is 1\.5"):
        GlobalRotScaleTransImage(flip_dy_ratio=1.5)
    with pytest.raises(DataError, match=r"moves no points.*Use GlobalRotScaleTransAll"):
        GlobalRotScaleTransImage()(scene())


@pytest.mark.parametrize("absent", ["points", "img"])
def test_the_steps_of_both_sensors_work_with_one(absent):
    whole, one = scene(), {key: value for key, value in scene().items() if key != absent}
    if absent == "img":  # a LiDAR data set has no camera matrices
        one = {k: v for k, v in one.items() if k not in ("lidar2img", "lidar2cam", "cam_intrinsic")}
    for make in (
        lambda: GlobalRotScaleTransAll([-0.3, 0.3], [0.9, 1.1], (0.5, 0.5, 0.5)),
        lambda: CustomRandomFlip3D(False, 1.0, 1.0),
    ):
        for data in (whole, one):
            np.random.seed(0)
            make()(data)
    assert torch.equal(one["gt_bboxes_3d"].tensor, whole["gt_bboxes_3d"].tensor)
    if absent == "img":
        assert torch.equal(one["points"].tensor, whole["points"].tensor)
    else:
        np.testing.assert_array_equal(one["lidar2img"], whole["lidar2img"])


@pytest.mark.parametrize("absent", ["points", "img"])
def test_masking_one_of_two_needs_two(absent):
    data = {key: value for key, value in scene().items() if key != absent}
    with pytest.raises(DataError, match="the sample has one alone"):
        ModalMask3D(mode="train")(data)
