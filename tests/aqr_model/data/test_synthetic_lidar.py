from dataclasses import replace

import numpy as np
import pytest

from aqr_model.data.synthetic.calibration import LIDAR
from aqr_model.data.synthetic.domain import SensorQuality
from aqr_model.data.synthetic.lidar import NUM_RINGS, RANGE_NOISE_M, Lidar
from aqr_model.data.synthetic.raycast import NOTHING
from aqr_model.data.synthetic.world import BoxArray

PERFECT = SensorQuality(
    condition="perfect",
    camera_gain=1.0,
    camera_noise=0.0,
    ring_step=1,
    dropout=0.0,
    intensity_gain=1.0,
)
TOLERANCE_M = 6 * RANGE_NOISE_M


@pytest.fixture(scope="module")
def lidar() -> Lidar:
    return Lidar(LIDAR, 240)


def boxes_of(*rows: tuple[float, float, float, float, float, float]) -> BoxArray:
    """Rows of x, y, yaw, width, length, height; the boxes stand on the ground."""
    table = np.array(rows, float).reshape(-1, 6)
    return BoxArray(
        centres=np.column_stack([table[:, :2], table[:, 5] / 2]),
        sizes=table[:, 3:],
        yaws=table[:, 2],
    )


def scan(lidar: Lidar, boxes: BoxArray, quality: SensorQuality = PERFECT, reflectivity=20.0):
    levels = np.full(len(boxes), reflectivity)
    return lidar.scan(boxes, levels, quality, np.random.default_rng(0))


def in_ego(points: np.ndarray) -> np.ndarray:
    return points[:, :3] @ LIDAR.rotation_matrix().T + np.array(LIDAR.translation)


def distance_to_surface(points: np.ndarray, boxes: BoxArray, index: int) -> np.ndarray:
    """Distance of ego-frame points to a box's surface, from outside and inside."""
    cos, sin = np.cos(boxes.yaws[index]), np.sin(boxes.yaws[index])
    axes = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    beyond = np.abs((points - boxes.centres[index]) @ axes.T) - boxes.sizes[index][[1, 0, 2]] / 2
    outside = np.linalg.norm(np.maximum(beyond, 0), axis=1)
    return np.where((beyond < 0).all(axis=1), -beyond.max(axis=1), outside)


def test_points_lie_on_their_box_or_on_the_ground(lidar):
    boxes = boxes_of(
        (12, 3, 0.4, 1.9, 4.6, 1.7), (-9, -6, 2.0, 0.7, 0.7, 1.8), (8, -9, 1, 3, 11, 4)
    )
    points, owner = scan(lidar, boxes)
    ego = in_ego(points)
    for index in range(len(boxes)):
        mine = ego[owner == index]
        assert len(mine) > 10
        assert distance_to_surface(mine, boxes, index).max() < TOLERANCE_M
    ground = ego[owner == NOTHING]
    assert np.abs(ground[:, 2]).max() < TOLERANCE_M


def test_a_wall_hides_what_is_behind_it(lidar):
    hidden, wall = (20, 0, 0.0, 1.9, 4.6, 1.7), (10, 0, 0.0, 16.0, 1.0, 6.0)
    _, alone = scan(lidar, boxes_of(hidden))
    _, behind = scan(lidar, boxes_of(hidden, wall))
    assert np.count_nonzero(alone == 0) > 10
    assert np.count_nonzero(behind == 0) == 0
    assert np.count_nonzero(behind == 1) > 100


def test_no_point_lies_beyond_a_box_on_its_ray(lidar):
    boxes = boxes_of((15, 5, 0.3, 2, 5, 2), (7, 2, 0.3, 1, 2, 1.5), (-14, 0, 1.0, 3, 8, 3))
    points, owner = scan(lidar, boxes)
    origin = np.array(LIDAR.translation)
    ego = in_ego(points)
    for index in range(len(boxes)):
        others = ego[owner != index]
        # Walk along each ray up to its return: no sample may be well inside another box.
        for share in np.linspace(0.05, 0.97, 60):
            walked = origin + share * (others - origin)
            inside = walked - boxes.centres[index]
            cos, sin = np.cos(boxes.yaws[index]), np.sin(boxes.yaws[index])
            x = cos * inside[:, 0] + sin * inside[:, 1]
            y = cos * inside[:, 1] - sin * inside[:, 0]
            width, length, height = boxes.sizes[index] / 2 - TOLERANCE_M
            assert not (
                (np.abs(x) < length) & (np.abs(y) < width) & (np.abs(inside[:, 2]) < height)
            ).any()


def test_front_answers_brighter_than_rear(lidar):
    facing, averted = boxes_of((10, 0, np.pi, 2, 4, 1.7)), boxes_of((10, 0, 0, 2, 4, 1.7))
    medians = []
    for boxes in (facing, averted):
        points, owner = scan(lidar, boxes)
        medians.append(np.median(points[owner == 0, 3]))
    assert medians[0] == pytest.approx(75, abs=4)
    assert medians[1] == pytest.approx(8, abs=4)


def test_rings_are_elevations_in_the_sensor_frame(lidar):
    points, _ = scan(lidar, boxes_of())
    elevation = np.degrees(np.arctan2(points[:, 2], np.linalg.norm(points[:, :2], axis=1)))
    expected = np.linspace(-30.67, 10.67, NUM_RINGS)[points[:, 4].astype(int)]
    np.testing.assert_allclose(elevation, expected, atol=1e-3)
    assert points.dtype == np.float32
    assert points.shape[1] == 5


def test_quality_thins_and_dims(lidar):
    boxes = boxes_of((10, 0, 0.5, 2, 4, 1.7), (-8, 4, 0, 2, 6, 3))
    full, _ = scan(lidar, boxes)
    stepped, _ = scan(lidar, boxes, replace(PERFECT, ring_step=4))
    dropped, _ = scan(lidar, boxes, replace(PERFECT, dropout=0.4))
    dimmed, _ = scan(lidar, boxes, replace(PERFECT, intensity_gain=0.5))
    assert set(np.unique(stepped[:, 4]) % 4) == {0}
    assert len(dropped) / len(full) == pytest.approx(0.6, abs=0.03)
    np.testing.assert_allclose(dimmed[:, 3], full[:, 3] * 0.5, rtol=1e-5)


def test_only_the_columns_towards_a_box_are_tried_and_they_suffice(lidar, monkeypatch):
    rng = np.random.default_rng(3)
    rows = [
        (d * np.cos(a), d * np.sin(a), rng.uniform(-3, 3), *rng.uniform(0.4, 6, 3))
        for a, d in zip(np.linspace(-3.1, 3.1, 12), rng.uniform(6, 30, 12), strict=True)
    ]
    boxes = boxes_of(*rows)
    points, owner = scan(lidar, boxes)
    tried = [len(lidar._rays_towards(boxes, index)) for index in range(len(boxes))]
    assert max(tried) < 240 * NUM_RINGS
    monkeypatch.setattr(Lidar, "_rays_towards", lambda self, *_: np.arange(240 * NUM_RINGS))
    all_points, all_owner = scan(lidar, boxes)
    np.testing.assert_array_equal(owner, all_owner)
    np.testing.assert_array_equal(points, all_points)
