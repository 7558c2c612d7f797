"""A pinhole camera: a ray through each pixel's centre finds a shaded box, the ground or the sky."""

from dataclasses import dataclass, replace

import numpy as np

from .calibration import Calibration
from .domain import SensorQuality
from .raycast import NOTHING, BoxHits, DepthBuffer, enter_box
from .world import BoxArray, World

_NEAR_M = 0.1
_GROUND_FADE_M = 60.0
_FACE_SHADES = np.array([1.0, 0.6, 0.8, 0.85, 1.25, 0.4])
_FRONT_LIGHTS, _REAR_LIGHTS = 6, 7  # face numbers of the panels inside the front and back faces
_LIGHT_COLOURS = np.array([[230.0, 240.0, 240.0], [30.0, 30.0, 220.0]])
_LIGHT_SHARE = 0.6  # of the face's width and height
_MIN_LENGTH_WITH_LIGHTS_M = 1.5


@dataclass(frozen=True, kw_only=True)
class View:
    """What one camera saw.

    N boxes.

    Attributes:
        image: Blue, green, red, uint8. [H, W, 3]
        visible: Pixels that show each box. [N]
        covered: Pixels that each box would take if it stood alone. [N]
    """

    image: np.ndarray
    visible: np.ndarray
    covered: np.ndarray


class Camera:
    """The rays of one camera, computed once and rendered many times.

    Args:
        calibration: Pose in the ego frame and lens.
        image_size: Width and height, pixels.
    """

    def __init__(self, calibration: Calibration, image_size: tuple[int, int]) -> None:
        self._width, self._height = image_size
        self._origin = np.array(calibration.translation)
        self._rotation = calibration.rotation_matrix()
        self._intrinsic = calibration.intrinsic(*image_size)
        column, row = np.meshgrid(np.arange(self._width), np.arange(self._height))
        pixels = np.stack([column.ravel(), row.ravel(), np.ones(column.size)])
        # Unit depth, not unit length: the ray parameter is the depth along the optical axis.
        rays = self._rotation @ np.linalg.inv(self._intrinsic) @ pixels
        self._rays = rays.astype(np.float32)
        with np.errstate(divide="ignore"):
            self._ground = np.where(rays[2] < 0, -self._origin[2] / rays[2], np.inf)
        self._fade = 1 + 0.15 * np.minimum(self._ground / _GROUND_FADE_M, 1)
        self._is_sky = ~np.isfinite(self._ground)
        self._pixel_numbers = np.arange(column.size).reshape(self._height, self._width)

    def render(
        self, world: World, boxes: BoxArray, quality: SensorQuality, rng: np.random.Generator
    ) -> View:
        """Take one picture.

        Args:
            world: Colours and light.
            boxes: The world's boxes now, ego frame. [N]
            quality: Gain and noise.
            rng: Source of the noise.

        Returns:
            The picture, and how much of each box it shows.
        """
        buffer = DepthBuffer(self._ground)
        covered = np.zeros(len(boxes), np.int64)
        windows = self._windows(boxes)
        for index, window in enumerate(windows):
            if window is None:
                continue
            pixels = self._pixel_numbers[window].ravel()
            hits = enter_box(self._origin, self._rays[:, pixels], boxes, index)
            buffer.add(index, pixels, _with_lights(hits, boxes.sizes[index]))
            covered[index] = len(hits.rays)
        colours = self._background(world)
        shown = np.flatnonzero(buffer.owner != NOTHING)
        colours[shown] = _palette(world)[buffer.owner[shown], buffer.face[shown]]
        colours *= quality.camera_gain
        noise = quality.camera_noise * rng.standard_normal(len(colours), np.float32)
        colours += np.repeat(noise[:, None], 3, axis=1)
        image = np.clip(colours, 0, 255, out=colours).astype(np.uint8)
        return View(
            image=image.reshape(self._height, self._width, 3),
            visible=np.bincount(buffer.owner[shown], minlength=len(boxes)),
            covered=covered,
        )

    def _windows(self, boxes: BoxArray) -> list[tuple[slice, slice] | None]:
        """Return the image region that may show each box; none if it is out of sight."""
        points = (boxes.corners() - self._origin) @ self._rotation
        return [self._window(corners) for corners in points]

    def _window(self, corners: np.ndarray) -> tuple[slice, slice] | None:
        """Return the region around eight corners in the camera frame. [8, 3]."""
        in_front = corners[:, 2] > _NEAR_M
        if not in_front.any():
            return None
        if not in_front.all():
            # The projection of a box that reaches behind the camera is not the hull of its corners.
            return slice(0, self._height), slice(0, self._width)
        projected = corners @ self._intrinsic.T
        pixels = projected[:, :2] / projected[:, 2:]
        left, top = np.maximum(np.floor(pixels.min(axis=0)), 0).astype(int)
        right, bottom = np.ceil(pixels.max(axis=0)) + 1
        if left >= self._width or top >= self._height or right <= 0 or bottom <= 0:
            return None
        return slice(top, min(int(bottom), self._height)), slice(left, min(int(right), self._width))

    def _background(self, world: World) -> np.ndarray:
        """Return sky and ground. [H * W, 3]."""
        grey = (world.ground * self._fade).astype(np.float32)
        colours = np.repeat(grey[:, None], 3, axis=1)
        colours[self._is_sky] = world.sky
        return colours


def _with_lights(hits: BoxHits, size: np.ndarray) -> BoxHits:
    """Give the inner part of the front and back faces their own face numbers."""
    width, length, height = size
    if length < _MIN_LENGTH_WITH_LIGHTS_M:
        return hits
    inside = (np.abs(hits.local[1]) < _LIGHT_SHARE * width / 2) & (
        np.abs(hits.local[2]) < _LIGHT_SHARE * height / 2
    )
    face = hits.face.copy()
    face[inside & (hits.face == 0)] = _FRONT_LIGHTS
    face[inside & (hits.face == 1)] = _REAR_LIGHTS
    return replace(hits, face=face)


def _palette(world: World) -> np.ndarray:
    """Return the colour of every face of every box. [N, 8, 3]."""
    colours = np.array([box.colour for box in world.boxes]).reshape(-1, 1, 3)
    faces = np.clip(colours * _FACE_SHADES[:, None] * world.light, 0, 255)
    lights = np.broadcast_to(_LIGHT_COLOURS, (len(colours), 2, 3))
    return np.concatenate([faces, lights], axis=1).astype(np.float32)
