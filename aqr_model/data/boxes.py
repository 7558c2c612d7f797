"""What mmdet3d has no function for: overlap from above, and rectangles of boxes in images.

A box is (x, y, bottom z, dx, dy, dz, yaw, ...), as mmdet3d's LiDAR boxes store it.
"""

import numpy as np
from mmdet3d.core.bbox import box_np_ops
from numpy.typing import NDArray

Array = NDArray[np.floating]


def overlap_from_above(box: Array, others: Array) -> bool:
    """Tell whether a box and any of several others share ground.

    Two rectangles are apart exactly if the sides of one of them part them (separating axes).
    mmdet3d's ``box_collision_test`` answers the same, but every process compiles it for five
    seconds first.

    Args:
        box: One box. [7 or more]
        others: Boxes. [N, 7 or more]
    """
    reach = 0.5 * (np.hypot(box[3], box[4]) + np.hypot(others[:, 3], others[:, 4]))
    others = others[np.hypot(others[:, 0] - box[0], others[:, 1] - box[1]) < reach]
    if not len(others):
        return False
    ours, theirs = _footprints(box[None])[0], _footprints(others)
    apart = np.zeros(len(others), dtype=bool)
    for corners in (np.broadcast_to(ours, theirs.shape), theirs):
        sides = corners[:, 1:3] - corners[:, :2]  # [N, axis, 2]
        mine = ours @ sides.transpose(0, 2, 1)  # [N, corner, axis]
        other = theirs @ sides.transpose(0, 2, 1)
        apart |= (mine.max(axis=1) <= other.min(axis=1)).any(axis=1)
        apart |= (other.max(axis=1) <= mine.min(axis=1)).any(axis=1)
    return bool((~apart).any())


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


def _footprints(boxes: Array) -> NDArray[np.float64]:
    """Corners of boxes from above, one after the other. [N, 4, 2]."""
    boxes = np.asarray(boxes, dtype=np.float64)
    return box_np_ops.center_to_corner_box2d(boxes[:, :2], boxes[:, 3:5], boxes[:, 6])
