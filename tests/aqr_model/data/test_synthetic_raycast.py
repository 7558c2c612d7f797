import numpy as np
import pytest

from aqr_model.data.synthetic.raycast import FACES, NOTHING, DepthBuffer, enter_box
from aqr_model.data.synthetic.world import BoxArray

ORIGIN = np.array([0.3, -0.2, 1.8])


def random_boxes(count: int, seed: int) -> BoxArray:
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-np.pi, np.pi, count)
    distance = rng.uniform(6, 20, count)
    sizes = rng.uniform(0.5, 6, (count, 3))
    centres = np.stack([distance * np.cos(angle), distance * np.sin(angle), sizes[:, 2] / 2], 1)
    return BoxArray(centres=centres, sizes=sizes, yaws=rng.uniform(-np.pi, np.pi, count))


def random_directions(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    directions = rng.normal(0, 1, (3, count))
    directions[2] *= 0.2
    return directions.astype(np.float32)


def slow_entry(origin, direction, boxes: BoxArray, index: int) -> tuple[float, str]:
    """Try each of the six faces as a plane with a rectangle in it."""
    width, length, height = boxes.sizes[index]
    cos, sin = np.cos(boxes.yaws[index]), np.sin(boxes.yaws[index])
    axes = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    half = np.array([length, width, height]) / 2
    best = (np.inf, "")
    for number, face in enumerate(FACES):
        axis, sign = number // 2, 1 - 2 * (number % 2)
        centre = boxes.centres[index] + sign * half[axis] * axes[axis]
        depth = ((centre - origin) @ axes[axis]) / (direction @ axes[axis])
        within = axes @ (origin + depth * direction - boxes.centres[index])
        others = [i for i in range(3) if i != axis]
        if 0 < depth < best[0] and all(abs(within[i]) <= half[i] for i in others):
            best = (float(depth), face)
    return best


def test_entries_equal_the_face_by_face_twin():
    boxes, directions = random_boxes(6, 0), random_directions(400, 1)
    num_hits = 0
    for index in range(len(boxes)):
        hits = enter_box(ORIGIN, directions, boxes, index)
        entered = dict(zip(hits.rays.tolist(), range(len(hits.rays)), strict=True))
        for ray in range(directions.shape[1]):
            direction = directions[:, ray].astype(float)
            depth, face = slow_entry(ORIGIN, direction, boxes, index)
            assert (ray in entered) == np.isfinite(depth)
            if ray in entered:
                position = entered[ray]
                assert hits.depth[position] == pytest.approx(depth, rel=1e-4)
                assert FACES[hits.face[position]] == face
                num_hits += 1
    assert num_hits > 50


def test_local_points_lie_on_the_face():
    boxes, directions = random_boxes(6, 2), random_directions(2000, 3)
    for index in range(len(boxes)):
        hits = enter_box(ORIGIN, directions, boxes, index)
        half = boxes.sizes[index][[1, 0, 2]] / 2
        axis = hits.face // 2
        on_face = hits.local[axis, np.arange(len(axis))]
        sign = 1 - 2 * (hits.face % 2)
        np.testing.assert_allclose(on_face, sign * half[axis], atol=1e-4)
        assert (np.abs(hits.local) <= half[:, None] + 1e-4).all()


def test_a_ray_from_inside_or_away_does_not_enter():
    boxes = BoxArray(
        centres=np.array([[0.0, 0.0, 1.8], [5.0, 0.0, 1.8]]),
        sizes=np.ones((2, 3)) * 2,
        yaws=np.zeros(2),
    )
    directions = np.array([[-1.0, 0.01, 0.02]], np.float32).T
    assert len(enter_box(ORIGIN, directions, boxes, 0).rays) == 0
    assert len(enter_box(ORIGIN, directions, boxes, 1).rays) == 0
    assert len(enter_box(ORIGIN, -directions, boxes, 1).rays) == 1


def test_buffer_keeps_the_nearest_box_in_any_order():
    boxes, directions = random_boxes(8, 4), random_directions(1500, 5)
    rays = np.arange(directions.shape[1])
    limits = np.full(len(rays), 15.0)
    orders = [np.arange(8), np.arange(8)[::-1]]
    buffers = []
    for order in orders:
        buffer = DepthBuffer(limits)
        for index in order:
            buffer.add(int(index), rays, enter_box(ORIGIN, directions, boxes, int(index)))
        buffers.append(buffer)
    np.testing.assert_array_equal(buffers[0].owner, buffers[1].owner)
    expected = np.full((9, len(rays)), np.inf)
    expected[0] = limits
    for index in range(8):
        hits = enter_box(ORIGIN, directions, boxes, index)
        expected[index + 1, hits.rays] = hits.depth
    np.testing.assert_array_equal(buffers[0].owner, expected.argmin(axis=0) - 1)
    np.testing.assert_allclose(buffers[0].depth, expected.min(axis=0))
    assert set(np.unique(buffers[0].owner)) >= {NOTHING, 0}
