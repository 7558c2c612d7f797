import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from aqr_model.data.synthetic.calibration import CAMERAS
from aqr_model.data.synthetic.camera import Camera
from aqr_model.data.synthetic.classes import OBJECT_CLASSES
from aqr_model.data.synthetic.domain import SensorQuality
from aqr_model.data.synthetic.world import BoxArray, EgoPath, MovingBox, World

SIZE = (400, 225)
CLEAR = SensorQuality(
    condition="clear",
    camera_gain=1.0,
    camera_noise=0.0,
    ring_step=1,
    dropout=0.0,
    intensity_gain=1.0,
)
COLOUR = (40.0, 220.0, 60.0)  # no mixture of the white sky and the black ground below


def world_of(*boxes: MovingBox) -> World:
    return World(
        ego=EgoPath(start=(0.0, 0.0), heading=0.0, speed=0.0, yaw_rate=0.0),
        objects=boxes,
        clutter=(),
        light=1.0,
        sky=(255.0, 255.0, 255.0),
        ground=0.0,
    )


def box_at(x: float, y: float, yaw: float, size=(1.9, 4.6, 1.7), colour=COLOUR) -> MovingBox:
    return MovingBox(
        object_class=OBJECT_CLASSES[0],
        attribute="vehicle.parked",
        position=(x, y),
        velocity=(0.0, 0.0),
        yaw=yaw,
        size=size,
        colour=colour,
    )


def render(channel: str, world: World, quality: SensorQuality = CLEAR):
    camera = Camera(CAMERAS[channel], SIZE)
    return camera.render(world, world.boxes_at(0.0), quality, np.random.default_rng(0))


def coloured(image: np.ndarray) -> np.ndarray:
    """Pixels that are neither sky nor ground."""
    return np.ptp(image.astype(int), axis=2) > 0


def projected_hull(channel: str, boxes: BoxArray) -> np.ndarray:
    """Mask of the convex hull of the projected corners of box 0, drawn by OpenCV."""
    calibration = CAMERAS[channel]
    in_camera = (
        boxes.corners()[0] - np.array(calibration.translation)
    ) @ calibration.rotation_matrix()
    assert (in_camera[:, 2] > 0).all()
    pixels = in_camera @ calibration.intrinsic(*SIZE).T
    pixels = (pixels[:, :2] / pixels[:, 2:] * 16).round().astype(np.int32)
    mask = np.zeros(SIZE[::-1], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(pixels), 1, cv2.LINE_8, 4)
    return mask.astype(bool)


@pytest.mark.parametrize("channel", CAMERAS)
@pytest.mark.parametrize("distance", [8.0, 17.0, 30.0])
def test_a_lone_box_covers_its_projected_hull(channel, distance):
    heading = CAMERAS[channel].rotation_matrix() @ [0.0, 0.0, 1.0]
    ahead = math.atan2(heading[1], heading[0]) + 0.1
    world = world_of(box_at(distance * math.cos(ahead), distance * math.sin(ahead), 0.7))
    view = render(channel, world)
    painted = coloured(view.image)
    hull = projected_hull(channel, world.boxes_at(0.0))
    assert painted.sum() > 40
    border = np.ones((3, 3), np.uint8)
    grown = cv2.dilate(hull.astype(np.uint8), border).astype(bool)
    shrunk = cv2.erode(hull.astype(np.uint8), border).astype(bool)
    assert not (painted & ~grown).any()
    assert not (shrunk & ~painted).any()
    assert view.visible[0] == view.covered[0] == painted.sum()


def test_a_box_that_reaches_behind_the_camera_is_painted():
    # 40 m long, beside the front camera: its corners lie on both sides of the image plane.
    view = render("CAM_FRONT", world_of(box_at(2.0, 4.0, 0.0, size=(1.0, 40.0, 3.0))))
    assert coloured(view.image)[:, :60].any()
    assert view.visible[0] > 500


def test_what_is_behind_stays_out_of_sight():
    view = render("CAM_FRONT", world_of(box_at(-15.0, 0.0, 0.0)))
    assert not coloured(view.image).any()
    assert view.visible[0] == view.covered[0] == 0


def test_the_nearer_box_hides_the_farther_one():
    near = box_at(12.0, 0.0, 0.0, size=(3.0, 1.0, 3.0), colour=(220.0, 40.0, 40.0))
    far = box_at(25.0, 0.0, 0.0)
    for boxes, near_index in (((near, far), 0), ((far, near), 1)):
        view = render("CAM_FRONT", world_of(*boxes))
        assert view.visible[near_index] == view.covered[near_index]
        assert view.visible[1 - near_index] == 0
        assert view.covered[1 - near_index] > 50


def test_front_and_rear_carry_different_lights():
    def lights(yaw: float) -> np.ndarray:
        world = world_of(box_at(12.0, 0.0, yaw))
        return render("CAM_FRONT", world).image.reshape(-1, 3)

    white, red = np.array([230, 240, 240]), np.array([30, 30, 220])
    rear, front = lights(0.0), lights(math.pi)
    assert (rear == red).all(axis=1).any()
    assert not (rear == white).all(axis=1).any()
    assert (front == white).all(axis=1).any()
    assert not (front == red).all(axis=1).any()


def test_gain_darkens_and_noise_scatters():
    world = world_of(box_at(12.0, 0.0, 0.0))
    bright = render("CAM_BACK", world).image
    dark = render("CAM_BACK", world, replace(CLEAR, camera_gain=0.2)).image
    noisy = render("CAM_BACK", replace(world, ground=100.0), replace(CLEAR, camera_noise=8.0)).image
    np.testing.assert_allclose(dark, bright * 0.2, atol=1)
    assert noisy[200:].astype(float).std() == pytest.approx(8.0, abs=1.0)


def test_intrinsics_scale_with_the_image():
    native = CAMERAS["CAM_FRONT"].intrinsic(1600, 900)
    half = CAMERAS["CAM_FRONT"].intrinsic(800, 450)
    np.testing.assert_allclose(half[:2], native[:2] / 2)
    np.testing.assert_allclose(half[2], native[2])
