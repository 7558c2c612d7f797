"""Rigid transforms between nuScenes' frames, in numpy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def rotation_matrix(quaternion: Sequence[float]) -> Floats:
    """Turn a unit quaternion into a rotation matrix.

    Args:
        quaternion: (w, x, y, z), as in nuScenes' tables.

    Returns:
        Rotation. [3, 3]
    """
    w, x, y, z = np.asarray(quaternion, dtype=np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def pose_matrix(translation: Sequence[float], quaternion: Sequence[float]) -> Floats:
    """Homogeneous transform of a pose: from the posed frame into its parent. [4, 4]."""
    return homogeneous(rotation_matrix(quaternion), np.asarray(translation, dtype=np.float64))


def homogeneous(rotation: Floats, translation: Floats) -> Floats:
    """Put a rotation [3, 3] and a translation [3] into one matrix. [4, 4]."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def inverse(transform: Floats) -> Floats:
    """Invert a rigid transform without solving a linear system. [4, 4]."""
    rotation = transform[:3, :3].T
    return homogeneous(rotation, -rotation @ transform[:3, 3])


def turn_about_z(quaternion: Sequence[float] | Floats, yaws: Floats) -> Floats:
    """Rotate by yaws about z first and by a quaternion afterwards.

    Args:
        quaternion: (w, x, y, z) of the outer rotation.
        yaws: Angles about z, radians. [N]

    Returns:
        Product quaternions (w, x, y, z). [N, 4]
    """
    w, x, y, z = np.asarray(quaternion, dtype=np.float64)
    c, s = np.cos(yaws / 2), np.sin(yaws / 2)
    return np.stack([w * c - z * s, x * c + y * s, y * c - x * s, z * c + w * s], axis=-1)


def quaternion_product(outer: Sequence[float], inner: Sequence[float]) -> Floats:
    """Rotation by ``inner`` first and ``outer`` afterwards; all (w, x, y, z)."""
    w1, v1 = outer[0], np.asarray(outer[1:], dtype=np.float64)
    w2, v2 = inner[0], np.asarray(inner[1:], dtype=np.float64)
    return np.array([w1 * w2 - v1 @ v2, *(w1 * v2 + w2 * v1 + np.cross(v1, v2))])
