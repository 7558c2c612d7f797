import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.core.bbox.box_np_ops import points_in_rbbox
from scene_cases import projected, scene

from aqr_model.data import boxes as module

SEEDS = st.integers(0, 2**31 - 1)


def random_boxes(seed, count):
    low = [-30, -30, -2, 0.3, 0.3, 0.5, -4, -1, -1]
    high = [30, 30, 0, 12, 4, 4, 4, 1, 1]
    return np.random.default_rng(seed).uniform(low, high, (count, 9)).astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_corners_are_mmdet3ds(seed):
    boxes = random_boxes(seed, 5)
    expected = LiDARInstance3DBoxes(torch.from_numpy(boxes), box_dim=9).corners.numpy()
    for ours, theirs in zip(module.corners(boxes), expected, strict=True):
        nearest = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
        assert nearest.min(axis=0).max() < 1e-4
        assert nearest.min(axis=1).max() < 1e-4
    bottom = boxes[:, 2:3]
    np.testing.assert_allclose(
        module.corners(boxes)[:, :4, 2], np.broadcast_to(bottom, (5, 4)), atol=1e-6
    )


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_points_inside_are_mmdet3ds(seed):
    boxes = random_boxes(seed, 6)
    points = np.random.default_rng(seed).uniform([-35, -35, -3], [35, 35, 4], (4000, 3))
    points = np.concatenate([points, boxes[:, :3] + [0, 0, 0.1]]).astype(np.float32)
    expected = points_in_rbbox(points, boxes[:, :7])
    for i, box in enumerate(boxes):
        ours = np.zeros(len(points), dtype=bool)
        ours[module.points_inside(points, box)] = True
        assert ours.any()
        # Only rounding on a face may differ.
        differ = np.flatnonzero(ours != expected[:, i])
        assert all(abs(_outside_by(points[k], box)) < 1e-3 for k in differ)


def _outside_by(point, box):
    c, s = np.cos(box[6]), np.sin(box[6])
    dx, dy = point[0] - box[0], point[1] - box[1]
    local = [c * dx + s * dy, -s * dx + c * dy, point[2] - box[2] - box[5] / 2]
    return max(abs(v) - size / 2 for v, size in zip(local, box[3:6], strict=True))


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.floats(0.5, 12))
def test_overlap_is_that_of_sampled_ground(seed, distance):
    """The slow twin lays a fine grid over one box and looks for a point of it in the other."""
    first, second = random_boxes(seed, 2)
    second[:2] = first[:2] + distance * np.array([np.cos(seed), np.sin(seed)])
    grid = (np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 200)] * 2), -1)).reshape(-1, 2)
    c, s = np.cos(first[6]), np.sin(first[6])
    ground = np.zeros((len(grid), 3))
    ground[:, :2] = (grid * first[3:5]) @ np.array([[c, s], [-s, c]]) + first[:2]
    ground[:, 2] = second[2] + 0.1
    shared = len(module.points_inside(ground, second)) / len(ground)
    overlap = module.overlap_from_above(first, second[None])
    assert overlap or shared == 0
    if overlap and shared == 0:  # a corner's tip between two grid points at most
        shrunk = second.copy()
        shrunk[3:5] = np.maximum(second[3:5] - 0.2, 0.01)
        assert not module.overlap_from_above(first, shrunk[None])


def test_overlap_with_none_and_with_a_contained_box():
    box = np.array([0, 0, 0, 4, 2, 2, 0.3])
    assert not module.overlap_from_above(box, np.zeros((0, 7)))
    inner = np.array([0.1, 0, 0, 0.5, 0.5, 1, 1.0])
    assert module.overlap_from_above(box, inner[None])
    assert module.overlap_from_above(inner, box[None])


@pytest.mark.parametrize("seed", range(5))
def test_rectangles_hold_all_corners_that_the_image_shows(seed):
    data = scene(seed)
    boxes, matrix = data["gt_bboxes_3d"].tensor.numpy(), data["lidar2img"][0]
    rectangles, depths = module.image_rectangles(module.corners(boxes), matrix, 90, 160)
    for box, rectangle, depth in zip(data["gt_bboxes_3d"].corners, rectangles, depths, strict=True):
        pixels, corner_depths = projected(box, matrix)
        assert depth == pytest.approx(float(corner_depths.mean()), abs=1e-4)
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        if (corner_depths <= 0).any() or (high <= 0).any() or (low >= [160, 90]).any():
            assert (rectangle == 0).all()
            continue
        expected = [*np.clip(low, 0, [160, 90]), *np.clip(high, 0, [160, 90])]
        assert np.abs(rectangle - expected).max() <= 1.0 + 1e-3


def test_box_behind_the_camera_has_no_rectangle():
    matrix = scene()["lidar2img"][0]
    boxes = np.array([[-10, 0, -1, 4, 2, 2, 0.0], [0.5, 0, -1, 4, 2, 2, 0.0]])
    rectangles, _ = module.image_rectangles(module.corners(boxes), matrix, 90, 160)
    assert (rectangles == 0).all()
