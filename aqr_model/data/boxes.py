"""Geometry of boxes in numpy: corners, points inside, overlap from above, rectangles in images.

A box is (x, y, bottom z, dx, dy, dz, yaw, ...), as mmdet3d's LiDAR boxes store it.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
_SIGNS = np.array([(x, y) for x in (-0.5, 0.5) for y in (-0.5, 0.5)])


def corners(boxes: Array) -> NDArray[np.float64]:
    """Corners of boxes, the bottom four first. [N, 7 or more] to [N, 8, 3]."""
    boxes = np.asarray(boxes, dtype=np.float64)
    footprint = footprints(boxes)
    low = np.broadcast_to(boxes[:, None, 2:3], (len(boxes), 4, 1))
    bottom = np.concatenate([footprint, low], axis=-1)
    top = np.concatenate([footprint, low + boxes[:, None, 5:6]], axis=-1)
    return np.concatenate([bottom, top], axis=1)


def footprints(boxes: Array) -> NDArray[np.float64]:
    """Corners of boxes from above, each opposite of the first being the last. [N, 4, 2]."""
    boxes = np.asarray(boxes, dtype=np.float64)
    axes = _axes(boxes) * boxes[:, 3:5, None]
    return boxes[:, None, :2] + _SIGNS @ axes


def points_inside(points: Array, box: Array) -> NDArray[np.int64]:
    """Find the points of a cloud that lie in a box.

    Args:
        points: x, y, z and more. [N, 3 or more]
        box: One box. [7 or more]

    Returns:
        Indices into points, rising. [M]
    """
    x, y, bottom, dx, dy, dz, yaw = (float(value) for value in box[:7])
    reach = 0.5 * np.hypot(dx, dy)
    # Few points are near; only those are turned.
    near = np.flatnonzero(np.abs(points[:, 0] - x) <= reach)
    near = near[np.abs(points[near, 1] - y) <= reach]
    offset_x, offset_y = points[near, 0] - x, points[near, 1] - y
    height = points[near, 2] - bottom
    c, s = np.cos(yaw), np.sin(yaw)
    inside = np.abs(c * offset_x + s * offset_y) <= dx / 2
    inside &= np.abs(c * offset_y - s * offset_x) <= dy / 2
    inside &= (height >= 0) & (height <= dz)
    return near[inside]


def overlap_from_above(box: Array, others: Array) -> bool:
    """Tell whether a box and any of several others share ground.

    Two rectangles are apart exactly if the sides of one of them part them (separating axes).

    Args:
        box: One box. [7 or more]
        others: Boxes. [N, 7 or more]
    """
    reach = 0.5 * (np.hypot(box[3], box[4]) + np.hypot(others[:, 3], others[:, 4]))
    others = others[np.hypot(others[:, 0] - box[0], others[:, 1] - box[1]) < reach]
    if not len(others):
        return False
    ours, theirs = footprints(box[None])[0], footprints(others)
    apart = np.zeros(len(others), dtype=bool)
    for axes in (np.broadcast_to(_axes(box[None]), (len(others), 2, 2)), _axes(others)):
        mine = ours @ axes.transpose(0, 2, 1)  # [N, corner, axis]
        other = theirs @ axes.transpose(0, 2, 1)
        apart |= (mine.max(axis=1) <= other.min(axis=1)).any(axis=1)
        apart |= (other.max(axis=1) <= mine.min(axis=1)).any(axis=1)
    return bool((~apart).any())


def image_rectangles(
    box_corners: Array, lidar2img: Array, height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rectangles of pixels that boxes take up in an image, cut at its borders.

    Args:
        box_corners: From :func:`corners`. [N, 8, 3]
        lidar2img: Projection; pixel i spans [i, i + 1). [4, 4]
        height: Of the image.
        width: Of the image.

    Returns:
        rectangles: (left, top, right, bottom), right and bottom exclusive; empty (zeros) for boxes
            that are not wholly in front of the camera or lie beside the image. [N, 4]
        depths: Mean depth of the corners, metres. [N]
    """
    seen = box_corners @ lidar2img[:3, :3].T + lidar2img[:3, 3]  # [N, 8, 3]
    depth = seen[..., 2]
    front = (depth > 0).all(axis=1)
    pixels = seen[..., :2] / np.where(front[:, None], depth, 1.0)[..., None]
    limits = np.array([width, height], dtype=np.float64)
    low = np.clip(np.floor(pixels.min(axis=1)), 0, limits)
    high = np.clip(np.ceil(pixels.max(axis=1)), 0, limits)
    shown = front & (low < high).all(axis=1)
    rectangles = np.where(shown[:, None], np.concatenate([low, high], axis=1), 0)
    return rectangles.astype(np.int64), depth.mean(axis=1)


def _axes(boxes: Array) -> NDArray[np.float64]:
    """Unit vectors along dx and dy, from above. [N, 2, 2]."""
    yaw = np.asarray(boxes[:, 6], dtype=np.float64)
    c, s = np.cos(yaw), np.sin(yaw)
    return np.stack([np.stack([c, s], axis=-1), np.stack([-s, c], axis=-1)], axis=1)
