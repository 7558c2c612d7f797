import math

import cv2
import numpy as np
import pytest
from pyquaternion import Quaternion

from aqr_model.data.synthetic.calibration import CAMERAS, LIDAR, yaw_quaternion
from aqr_model.data.synthetic.domain import DOMAINS
from aqr_model.data.synthetic.placement import draw_world
from aqr_model.data.synthetic.world import BoxArray, EgoPath, EgoPose

EGO_FOOTPRINT = (1.4, 0.0, 4.1, 1.9)  # centre ahead of the rear axle, length, width


def draw(seed: int, domain: str = "base", density: float = 1.0):
    return draw_world(
        np.random.default_rng(seed),
        DOMAINS[domain],
        start_s=-0.4,
        end_s=1.5,
        radius_m=36.0,
        density=density,
    )


@pytest.mark.parametrize("yaw_rate", [0.0, 1e-9, 0.08, -0.3])
def test_ego_path_is_the_integral_of_its_speed(yaw_rate):
    path = EgoPath(start=(3.0, -2.0), heading=0.7, speed=6.0, yaw_rate=yaw_rate)
    num_steps, end_s = 20_000, 3.0
    position, yaw = np.array([3.0, -2.0]), 0.7
    step_s = end_s / num_steps
    for _ in range(num_steps):
        middle = yaw + yaw_rate * step_s / 2
        position += 6.0 * step_s * np.array([math.cos(middle), math.sin(middle)])
        yaw += yaw_rate * step_s
    pose = path.pose(end_s)
    np.testing.assert_allclose(pose.position, position, atol=1e-6)
    assert pose.yaw == pytest.approx(yaw)


def test_ego_and_global_frames_are_inverse():
    pose = EgoPose(position=np.array([500.0, 300.0]), yaw=2.1)
    points = np.random.default_rng(0).normal(0, 30, (7, 2))
    np.testing.assert_allclose(pose.to_ego(pose.to_global(points)), points, atol=1e-9)
    ahead = pose.to_global(np.array([1.0, 0.0])) - pose.position
    np.testing.assert_allclose(ahead, [math.cos(2.1), math.sin(2.1)])


def test_corners_span_the_box_in_its_own_axes():
    boxes = BoxArray(
        centres=np.array([[4.0, 2.0, 1.0]]),
        sizes=np.array([[2.0, 5.0, 1.6]]),  # width, length, height
        yaws=np.array([math.pi / 2]),
    )
    corners = boxes.corners()[0]
    np.testing.assert_allclose(np.ptp(corners, axis=0), [2.0, 5.0, 1.6], atol=1e-9)
    np.testing.assert_allclose(corners.mean(axis=0), [4.0, 2.0, 1.0], atol=1e-9)


def footprint(x: float, y: float, yaw: float, length: float, width: float):
    return ((x, y), (length, width), math.degrees(yaw))


def overlap(first, second) -> float:
    kind, polygon = cv2.rotatedRectangleIntersection(first, second)
    return 0.0 if kind == cv2.INTERSECT_NONE else cv2.contourArea(polygon)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_ever_overlaps(seed):
    world = draw(seed, density=1.5)
    assert len(world.objects) > 15
    for time_s in np.linspace(-0.4, 1.5, 9):
        boxes = world.boxes_at(float(time_s))
        rectangles = [
            footprint(float(c[0]), float(c[1]), float(yaw), float(s[1]), float(s[0]))
            for c, s, yaw in zip(boxes.centres, boxes.sizes, boxes.yaws, strict=True)
        ]
        rectangles.append(((EGO_FOOTPRINT[:2]), EGO_FOOTPRINT[2:], 0.0))
        for index, first in enumerate(rectangles):
            for second in rectangles[:index]:
                assert overlap(first, second) < 1e-3


def test_boxes_stand_on_the_ground_and_head_where_they_move():
    world = draw(7)
    boxes = world.boxes_at(0.5)
    np.testing.assert_allclose(boxes.centres[:, 2] - boxes.sizes[:, 2] / 2, 0, atol=1e-12)
    moving = [box for box in world.objects if any(box.velocity)]
    assert moving
    for box in moving:
        assert math.atan2(box.velocity[1], box.velocity[0]) == pytest.approx(
            math.remainder(box.yaw, 2 * math.pi)
        )
        assert box.object_class is not None
        low, high = box.object_class.speed
        assert low <= math.hypot(*box.velocity) <= high
        assert box.attribute == box.object_class.moving


def test_domains_differ_in_size_and_colour():
    cars = {
        domain: [
            box
            for seed in range(20)
            for box in draw(seed, domain).objects
            if box.object_class is not None and box.object_class.name == "car"
        ]
        for domain in ("base", "shifted")
    }
    length = {domain: np.mean([car.size[1] for car in found]) for domain, found in cars.items()}
    assert length["shifted"] / length["base"] == pytest.approx(1.12, abs=0.03)
    blue, red = (np.mean([car.colour[i] for car in cars["base"]]) for i in (0, 2))
    blue_shifted, red_shifted = (np.mean([c.colour[i] for c in cars["shifted"]]) for i in (0, 2))
    assert blue > red + 50
    assert red_shifted > blue_shifted + 50


def test_a_long_drive_meets_more_objects():
    def count(end_s: float) -> float:
        worlds = [
            draw_world(
                np.random.default_rng(seed),
                DOMAINS["base"],
                start_s=0.0,
                end_s=end_s,
                radius_m=36.0,
                density=0.5,
            )
            for seed in range(8)
        ]
        return sum(len(world.objects) for world in worlds)

    assert count(15.0) > 1.2 * count(0.5)
