import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.datasets.pipelines.data_augment_utils import box_collision_test
from scene_cases import projected, scene

from aqr_model.data import boxes as module

SEEDS = st.integers(0, 2**31 - 1)


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_overlap_is_mmdet3ds_collision(seed):
    rng = np.random.default_rng(seed)
    low, high = [-9, -9, -2, 0.3, 0.3, 0.5, -4], [9, 9, 0, 12, 4, 4, 4]
    boxes = rng.uniform(low, high, (12, 7)).astype(np.float32)
    footprints = module.footprints(boxes)
    expected = box_collision_test(footprints, footprints)
    found = module.overlap_from_above(footprints, footprints)
    others = ~np.eye(12, dtype=bool)
    assert (found == expected)[others].all()


def test_overlap_with_none_and_with_a_contained_box():
    boxes = np.array([[0, 0, 0, 4, 2, 2, 0.3], [0.1, 0, 0, 0.5, 0.5, 1, 1.0]])
    ground = module.footprints(boxes)
    assert module.overlap_from_above(ground, np.zeros((0, 4, 2))).shape == (2, 0)
    assert module.overlap_from_above(ground, ground).all()


@pytest.mark.parametrize("seed", range(5))
def test_rectangles_hold_all_corners_that_the_image_shows(seed):
    data = scene(seed)
    boxes, matrix = data["gt_bboxes_3d"], data["lidar2img"][0]
    rectangles, depths = module.image_rectangles(boxes.corners.numpy(), matrix, 90, 160)
    assert rectangles.any()
    for box, rectangle, depth in zip(boxes.corners, rectangles, depths, strict=True):
        pixels, corner_depths = projected(box, matrix)
        assert depth == pytest.approx(float(corner_depths.mean()), abs=1e-4)
        whole = np.clip([pixels.min(axis=0), pixels.max(axis=0)], 0, [159, 89])
        expected = np.trunc(whole).reshape(-1)
        shown = (corner_depths > 0).all() and (expected[2:] - expected[:2] > 1).all()
        assert rectangle.tolist() == (expected.tolist() if shown else [0, 0, 0, 0])


def test_box_behind_the_camera_has_no_rectangle():
    matrix = scene()["lidar2img"][0]
    boxes = torch.tensor([[-10, 0, -1, 4, 2, 2, 0.0], [0.5, 0, -1, 4, 2, 2, 0.0]])
    corners = LiDARInstance3DBoxes(boxes).corners.numpy()
    rectangles, _ = module.image_rectangles(corners, matrix, 90, 160)
    assert (rectangles == 0).all()
