"""A 32-beam spinning LiDAR: ray-cast returns with ring, intensity, noise and drop-out."""

import math

import numpy as np

from .calibration import Calibration
from .domain import SensorQuality
from .raycast import FACES, NOTHING, DepthBuffer, enter_box
from .world import BoxArray

NUM_RINGS = 32
RANGE_NOISE_M = 0.02
"""Standard deviation of the measured range."""

_ELEVATIONS_DEG = np.linspace(-30.67, 10.67, NUM_RINGS)  # the Velodyne HDL-32E on nuScenes' roof
_MAX_RANGE_M = 70.0
_GROUND_REFLECTIVITY = 8.0
_INTENSITY_NOISE = 3.0
# Heading cannot be read from a box's shape: its front must answer brighter than its rear.
_FRONT_BONUS = 55.0
_REAR_MALUS = 12.0


class Lidar:
    """The rays of one sensor, computed once and cast many times.

    R rays, ring by ring, azimuths ascending within a ring.

    Args:
        calibration: Pose in the ego frame.
        azimuths: Columns of one turn.
    """

    def __init__(self, calibration: Calibration, azimuths: int) -> None:
        self._azimuths = azimuths
        self._origin = np.array(calibration.translation)
        self._rotation = calibration.rotation_matrix()
        elevation = np.deg2rad(_ELEVATIONS_DEG)[:, None]
        azimuth = (np.arange(azimuths) / azimuths * 2 * math.pi)[None]
        rays = np.stack(
            [
                np.cos(elevation) * np.cos(azimuth),
                np.cos(elevation) * np.sin(azimuth),
                np.sin(elevation) * np.ones_like(azimuth),
            ]
        ).reshape(3, -1)
        self._rays = rays.astype(np.float32)
        self._ego_rays = (self._rotation @ rays).astype(np.float32)
        self._ring = np.repeat(np.arange(NUM_RINGS), azimuths).astype(np.float32)
        with np.errstate(divide="ignore"):
            ground = np.where(self._ego_rays[2] < 0, -self._origin[2] / self._ego_rays[2], np.inf)
        self._ground = ground

    def scan(
        self,
        boxes: BoxArray,
        reflectivity: np.ndarray,
        quality: SensorQuality,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Take one turn.

        N boxes, P returns.

        Args:
            boxes: Ego frame.
            reflectivity: Intensity of each box's sides. [N]
            quality: Rings, drop-out and intensity gain.
            rng: Source of the noise.

        Returns:
            points: x, y, z in the sensor frame (metres), intensity, ring; float32. [P, 5]
            owner: Box that returned the point, or ``NOTHING`` for ground. [P]
        """
        buffer = DepthBuffer(np.minimum(self._ground, _MAX_RANGE_M))
        for index in range(len(boxes)):
            rays = self._rays_towards(boxes, index)
            buffer.add(index, rays, enter_box(self._origin, self._ego_rays[:, rays], boxes, index))
        returned = buffer.depth < _MAX_RANGE_M
        returned &= rng.random(len(returned)) >= quality.dropout
        returned &= self._ring % quality.ring_step == 0
        kept = np.flatnonzero(returned)
        owner = buffer.owner[kept]
        distance = buffer.depth[kept] + rng.normal(0, RANGE_NOISE_M, len(kept))
        intensity = _intensity(owner, buffer.face[kept], reflectivity)
        intensity = intensity + rng.normal(0, _INTENSITY_NOISE, len(kept))
        points = np.empty((len(kept), 5), np.float32)
        points[:, :3] = (self._rays[:, kept] * distance).T
        points[:, 3] = np.clip(intensity * quality.intensity_gain, 0, 255)
        points[:, 4] = self._ring[kept]
        return points, owner

    def _rays_towards(self, boxes: BoxArray, index: int) -> np.ndarray:
        """Return the rays of all columns that may meet a box."""
        centre = (boxes.centres[index] - self._origin) @ self._rotation
        radius = float(np.linalg.norm(boxes.sizes[index])) / 2
        distance = math.hypot(centre[0], centre[1])
        if distance <= radius:
            return np.arange(self._rays.shape[1])
        middle = math.atan2(centre[1], centre[0])
        spread = math.asin(radius / distance)
        step = 2 * math.pi / self._azimuths
        first = math.floor((middle - spread) / step)
        last = math.ceil((middle + spread) / step)
        columns = np.arange(first, last + 1) % self._azimuths
        return (np.arange(NUM_RINGS)[:, None] * self._azimuths + columns).ravel()


def _intensity(owner: np.ndarray, face: np.ndarray, reflectivity: np.ndarray) -> np.ndarray:
    """Return the noiseless intensity of each point. [P]."""
    bonus = np.zeros(len(FACES))
    bonus[FACES.index("front")] = _FRONT_BONUS
    bonus[FACES.index("back")] = -_REAR_MALUS
    # The ground takes the place behind the last box, which index -1 (NOTHING) addresses.
    assert NOTHING == -1
    levels = np.append(reflectivity, _GROUND_REFLECTIVITY)
    return levels[owner] + np.where(owner == NOTHING, 0.0, bonus[face])
