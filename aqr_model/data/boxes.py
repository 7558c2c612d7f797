"""What mmdet3d has no function for: overlap from above, and rectangles of boxes in images.

A box is (x, y, bottom z, dx, dy, dz, yaw, ...), as mmdet3d's LiDAR boxes store it.
"""

import numpy as np
from mmdet3d.core.bbox import box_np_ops
from numpy.typing import NDArray

Array = NDArray[np.floating]


def footprints(boxes: Array) -> NDArray[np.float32]:
    """Corners of boxes from above, one after the other. [N, 7 or more] to [N, 4, 2]."""
    return box_np_ops.center_to_corner_box2d(boxes[:, :2], boxes[:, 3:5], boxes[:, 6])


def overlap_from_above(ours: Array, theirs: Array) -> NDArray[np.bool_]:
    """Tell which boxes share ground with which.

    Two rectangles are apart exactly if the sides of one of them part them (separating axes).
    mmdet3d's ``box_collision_test`` answers the same, but every process compiles it for five
    seconds first.

    Args:
        ours: Footprints. [N, 4, 2]
        theirs: Footprints. [M, 4, 2]

    Returns:
        [N, M]
    """
    ours, theirs = ours[:, None], theirs[None]
    apart = np.zeros((ours.shape[0], theirs.shape[1]), dtype=bool)
    for corners in (ours, theirs):
        axes = (corners[..., 1:3, :] - corners[..., :2, :]).swapaxes(-1, -2)
        one, other = ours @ axes, theirs @ axes  # [N, M, corner, axis]
        apart |= (one.max(axis=-2) <= other.min(axis=-2)).any(axis=-1)
        apart |= (other.max(axis=-2) <= one.min(axis=-2)).any(axis=-1)
    return ~apart


def image_rectangles(
    corners: Array, lidar2img: Array, height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rectangles of pixels that boxes take up in an image, cut at its borders.

    As in the public code, both ends are rounded down, and the last row and column stay free.

    Args:
        corners: Of mmdet3d's boxes. [N, 8, 3]
        lidar2img: Projection; pixel i spans [i, i + 1). [4, 4]
        height: Of the image.
        width: Of the image.

    Returns:
        rectangles: (left, top, right, bottom), right and bottom exclusive; zeros for boxes that
            are not wholly in front of the camera or show less than two pixels a side. [N, 4]
        depths: Mean depth of the corners, metres. [N]
    """
    seen = corners @ lidar2img[:3, :3].T + lidar2img[:3, 3]  # [N, 8, 3]
    depth = seen[..., 2]
    front = (depth > 0).all(axis=1)
    pixels = seen[..., :2] / np.where(front[:, None], depth, 1.0)[..., None]
    last = [width - 1, height - 1]
    low = np.clip(pixels.min(axis=1), 0, last).astype(np.int64)
    high = np.clip(pixels.max(axis=1), 0, last).astype(np.int64)
    shown = front & (high - low > 1).all(axis=1)
    rectangles = np.where(shown[:, None], np.concatenate([low, high], axis=1), 0)
    return rectangles, depth.mean(axis=1)
