"""Rays against boxes: the geometry that LiDAR and cameras share, occlusion included."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .world import BoxArray

FACES = ("front", "back", "left", "right", "top", "bottom")
"""Names of the face numbers 0 to 5: along +x, -x, +y, -y, +z, -z of the box."""

NOTHING = -1
"""Owner of a ray that meets no box."""


@dataclass(frozen=True, kw_only=True)
class BoxHits:
    """Where rays enter one box.

    H rays that hit it.

    Attributes:
        rays: Which of the rays tried they are. [H]
        depth: Ray parameter at the entry. [H]
        face: Face that is entered. [H]
        local: Entry point in the box's own axes, metres. [3, H]
    """

    rays: np.ndarray
    depth: np.ndarray
    face: np.ndarray
    local: np.ndarray


class DepthBuffer:
    """The nearest box along each ray of a sensor, filled box by box in any order.

    R rays.

    Args:
        limits: Ray parameter of whatever is behind the boxes (ground, range limit). [R]
    """

    def __init__(self, limits: np.ndarray) -> None:
        self.depth = limits.astype(np.float32, copy=True)
        self.owner = np.full(len(limits), NOTHING, np.int32)
        self.face = np.zeros(len(limits), np.int8)

    def add(self, number: int, rays: np.ndarray, hits: BoxHits) -> None:
        """Enter a box where it is nearer than all before.

        Args:
            number: The box's number, kept as owner.
            rays: Indices, in this buffer, of the rays that were tried. [R]
            hits: The result for these rays.
        """
        met = rays[hits.rays]
        nearer = hits.depth < self.depth[met]
        won = met[nearer]
        self.depth[won] = hits.depth[nearer]
        self.owner[won] = number
        self.face[won] = hits.face[nearer]


def enter_box(
    origin: Sequence[float] | np.ndarray, directions: np.ndarray, boxes: BoxArray, index: int
) -> BoxHits:
    """Find where rays from one point enter one box, by the slab method.

    R rays. A ray that starts inside the box does not enter it.

    Args:
        origin: Common start of the rays, same frame as the boxes. [3]
        directions: Need not be unit vectors. [3, R]
        boxes: All boxes.
        index: The box to try.

    Returns:
        The entries, with depth in multiples of each direction's length.
    """
    width, length, height = boxes.sizes[index]
    half = np.array([length, width, height], np.float32) / 2
    cos = np.float32(np.cos(boxes.yaws[index]))
    sin = np.float32(np.sin(boxes.yaws[index]))
    offset = np.asarray(origin) - boxes.centres[index]
    start = np.array(
        [
            cos * offset[0] + sin * offset[1],
            cos * offset[1] - sin * offset[0],
            offset[2],
        ],
        np.float32,
    )
    ahead = cos * directions[0] + sin * directions[1]
    aside = cos * directions[1] - sin * directions[0]
    entry, leave, crossings = _slabs(start, half, (ahead, aside, directions[2]))
    # A negated comparison would count the NaN of a ray within a slab's plane as a hit.
    met = (entry < leave) & (entry > 0)
    rays = np.flatnonzero(met)
    depth = entry[rays]
    local = np.stack([ahead[rays], aside[rays], directions[2][rays]])
    axis = np.stack([crossing[rays] for crossing in crossings]).argmax(axis=0)
    along = local[axis, np.arange(len(rays))]
    return BoxHits(
        rays=rays,
        depth=depth,
        face=(2 * axis + (along > 0)).astype(np.int8),
        local=start[:, None] + depth * local,
    )


def _slabs(
    start: np.ndarray, half: np.ndarray, directions: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Intersect rays with the three pairs of planes of a box in its own axes.

    Returns:
        entry: Where a ray has entered all three slabs. [R]
        leave: Where it leaves the first of them. [R]
        crossings: Where it enters each slab. 3 x [R]
    """
    crossings = []
    leave = np.full(directions[0].shape, np.float32(np.inf))
    with np.errstate(divide="ignore", invalid="ignore"):
        for position, reach, direction in zip(start, half, directions, strict=True):
            signed = np.copysign(reach, direction)
            crossings.append((-position - signed) / direction)
            leave = np.minimum(leave, (-position + signed) / direction)
    entry = np.maximum(np.maximum(crossings[0], crossings[1]), crossings[2])
    return entry, leave, crossings
