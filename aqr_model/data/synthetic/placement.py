"""Draw one scene's world: a road along the ego vehicle's path, objects that never touch."""

import math
from dataclasses import dataclass

import numpy as np

from .classes import OBJECT_CLASSES, SITTING_PEDESTRIAN, STOPPED_VEHICLE, ObjectClass
from .domain import Domain
from .world import EgoPath, MovingBox, World

_LANES = (-7.0, -3.5, 0.0, 3.5, 7.0)
_FIRST_ONCOMING_LANE = 1.5  # lateral position beyond which traffic comes towards the ego vehicle
_EGO_SIZE = (1.9, 4.1)  # width and length
_EGO_CENTRE_AHEAD = 1.4  # of the rear axle
_CLEARANCE = 0.25
_ATTEMPTS = 20
_MOTION_STEP_S = 0.25


@dataclass(frozen=True, kw_only=True)
class _Spot:
    """A pose in the ego frame of some moment; ``y`` points left."""

    x: float
    y: float
    yaw: float


class _Occupancy:
    """Where boxes are over the whole scene, each covered by a row of discs along its length."""

    def __init__(self, times: np.ndarray) -> None:
        self._times = times
        self._centres = np.empty((len(times), 0, 2))
        self._radii = np.empty(0)

    def add_path(self, path: EgoPath) -> None:
        """Reserve the ego vehicle's own path."""
        poses = [path.pose(float(time)) for time in self._times]
        offsets, radius = _disc_row(*_EGO_SIZE)
        local = np.stack([offsets + _EGO_CENTRE_AHEAD, np.zeros_like(offsets)], axis=-1)
        self._append(np.stack([pose.to_global(local) for pose in poses]), radius)

    def try_add(self, box: MovingBox) -> bool:
        """Reserve a box's path; false, and nothing reserved, if it meets another one."""
        offsets, radius = _disc_row(box.size[0], box.size[1])
        heading = np.array([math.cos(box.yaw), math.sin(box.yaw)])
        centres = np.stack([box.position_at(float(time)) for time in self._times])
        discs = centres[:, None] + offsets[None, :, None] * heading
        gaps = np.linalg.norm(discs[:, :, None] - self._centres[:, None], axis=-1) - self._radii
        if gaps.size and gaps.min() < radius + _CLEARANCE:
            return False
        self._append(discs, radius)
        return True

    def _append(self, discs: np.ndarray, radius: float) -> None:
        """Keep discs: [times, discs, 2]."""
        self._centres = np.concatenate([self._centres, discs], axis=1)
        self._radii = np.concatenate([self._radii, np.full(discs.shape[1], radius)])


def draw_world(
    rng: np.random.Generator,
    domain: Domain,
    *,
    start_s: float,
    end_s: float,
    radius_m: float,
    density: float,
) -> World:
    """Draw a world.

    Args:
        rng: Source of all randomness.
        domain: Sets object sizes and colours.
        start_s: Earliest moment that a sensor sees.
        end_s: Latest one.
        radius_m: Objects are placed up to this distance around the ego vehicle.
        density: Factor on the expected number of objects.

    Returns:
        The world; no two boxes, nor a box and the ego vehicle, overlap between start and end.
    """
    path = EgoPath(
        start=(rng.uniform(300, 900), rng.uniform(300, 900)),
        heading=rng.uniform(-math.pi, math.pi),
        speed=rng.uniform(0, 8) if rng.random() < 0.8 else 0.0,
        yaw_rate=rng.uniform(-0.08, 0.08),
    )
    steps = 1 + math.ceil((end_s - start_s) / _MOTION_STEP_S)
    occupancy = _Occupancy(np.linspace(start_s, end_s, steps))
    occupancy.add_path(path)
    # A long drive passes more road than one neighbourhood holds.
    stretch = 1 + path.speed * (end_s - start_s) / (2 * radius_m)
    objects = [
        box
        for object_class in OBJECT_CLASSES
        for _ in range(rng.poisson(object_class.mean_count * density * stretch))
        if (box := _place(rng, object_class, domain, path, end_s, radius_m, occupancy))
    ]
    clutter = [
        box
        for box in _draw_clutter(rng, path, rng.uniform(0, end_s), int(5 + rng.integers(6)))
        if occupancy.try_add(box)
    ]
    return World(
        ego=path,
        objects=tuple(objects),
        clutter=tuple(clutter),
        light=rng.uniform(0.55, 1.1),
        sky=(rng.uniform(170, 240), rng.uniform(150, 220), rng.uniform(120, 200)),
        ground=rng.uniform(70, 120),
    )


def _place(
    rng: np.random.Generator,
    object_class: ObjectClass,
    domain: Domain,
    path: EgoPath,
    end_s: float,
    radius_m: float,
    occupancy: _Occupancy,
) -> MovingBox | None:
    """Put one object where it is free for the whole scene; none if every attempt fails."""
    for _ in range(_ATTEMPTS):
        moves = rng.random() < object_class.moving_share
        spot = _draw_spot(rng, object_class, radius_m, moves)
        box = _draw_object(rng, object_class, domain, spot, path, rng.uniform(0, end_s), moves)
        if math.hypot(spot.x, spot.y) <= radius_m and occupancy.try_add(box):
            return box
    return None


def _draw_spot(
    rng: np.random.Generator, object_class: ObjectClass, radius_m: float, moves: bool
) -> _Spot:
    """Draw a pose in the ego frame that suits the class."""
    side = rng.choice([-1.0, 1.0])
    along = rng.uniform(-radius_m, radius_m)
    if object_class.habitat == "sidewalk":
        return _Spot(x=along, y=side * rng.uniform(5, 20), yaw=rng.uniform(-math.pi, math.pi))
    if object_class.habitat == "roadside":
        y = side * rng.uniform(3, 12)
        return _Spot(x=along, y=y, yaw=_traffic_direction(y) + rng.normal(0, 0.25))
    if object_class.habitat == "kerb":
        yaw = rng.choice([0.0, math.pi / 2]) + rng.normal(0, 0.2)
        near = min(28.0, radius_m)
        return _Spot(x=rng.uniform(-near, near), y=side * rng.uniform(3.5, 12), yaw=yaw)
    if rng.random() < 0.2:  # crossing traffic
        yaw = side * math.pi / 2 + rng.normal(0, 0.1)
        return _Spot(x=along, y=rng.uniform(-radius_m, radius_m), yaw=yaw)
    on_lane = moves or rng.random() < 0.3
    y = (rng.choice(_LANES) if on_lane else side * rng.uniform(9, 15)) + rng.normal(0, 0.3)
    return _Spot(x=along, y=y, yaw=_traffic_direction(y) + rng.normal(0, 0.07))


def _traffic_direction(y: float) -> float:
    """Return the heading of traffic at a lateral position: right-hand driving."""
    return 0.0 if y < _FIRST_ONCOMING_LANE else math.pi


def _draw_object(
    rng: np.random.Generator,
    object_class: ObjectClass,
    domain: Domain,
    spot: _Spot,
    path: EgoPath,
    moment_s: float,
    moves: bool,
) -> MovingBox:
    """Make the object that is at the spot of the ego frame at ``moment_s``."""
    size = np.array(object_class.size) * domain.box_scale * np.exp(rng.normal(0, 0.08, 3))
    attribute = _draw_attribute(rng, object_class, spot, moves)
    if attribute == SITTING_PEDESTRIAN:
        size[2] *= 0.7
    colour = object_class.colour[::-1] if domain.swap_colours else object_class.colour
    colour = np.clip(np.array(colour) + rng.normal(0, 22, 3), 10, 250)
    speed = rng.uniform(*object_class.speed) if moves else 0.0
    pose = path.pose(moment_s)
    yaw = pose.yaw + spot.yaw
    velocity = speed * np.array([math.cos(yaw), math.sin(yaw)])
    position = pose.to_global(np.array([spot.x, spot.y])) - velocity * moment_s
    return MovingBox(
        object_class=object_class,
        attribute=attribute,
        position=(float(position[0]), float(position[1])),
        velocity=(float(velocity[0]), float(velocity[1])),
        yaw=float(yaw),
        size=(float(size[0]), float(size[1]), float(size[2])),
        colour=(float(colour[0]), float(colour[1]), float(colour[2])),
    )


def _draw_attribute(
    rng: np.random.Generator, object_class: ObjectClass, spot: _Spot, moves: bool
) -> str:
    if moves:
        return object_class.moving
    if object_class.habitat == "road" and abs(spot.y) <= max(_LANES):
        return STOPPED_VEHICLE
    if object_class.habitat == "sidewalk" and rng.random() < 0.2:
        return SITTING_PEDESTRIAN
    return object_class.resting


def _draw_clutter(
    rng: np.random.Generator, path: EgoPath, moment_s: float, count: int
) -> list[MovingBox]:
    """Draw walls behind the pavements and poles beside the road."""
    pose = path.pose(moment_s)
    boxes = []
    for _ in range(count):
        side = rng.choice([-1.0, 1.0])
        if rng.random() < 0.5:
            spot = np.array([rng.uniform(-45, 45), side * rng.uniform(22, 40)])
            size = (rng.uniform(1, 6), rng.uniform(4, 20), rng.uniform(2, 9))
        else:
            spot = np.array([rng.uniform(-35, 35), side * rng.uniform(8, 20)])
            size = (0.3, 0.3, rng.uniform(3, 6))
        position = pose.to_global(spot)
        boxes.append(
            MovingBox(
                object_class=None,
                attribute="",
                position=(float(position[0]), float(position[1])),
                velocity=(0.0, 0.0),
                yaw=float(pose.yaw + rng.normal(0, 0.1)),
                size=size,
                colour=(rng.uniform(70, 150), rng.uniform(70, 150), rng.uniform(70, 150)),
            )
        )
    return boxes


def _disc_row(width: float, length: float) -> tuple[np.ndarray, float]:
    """Cover a rectangle by equal discs along its length.

    Returns:
        Disc centres along the length axis (all 0 for a box wider than long), and their radius.
    """
    if width > length:
        return np.zeros(1), math.hypot(width, length) / 2
    count = math.ceil(length / width)
    step = length / count
    offsets = (np.arange(count) - (count - 1) / 2) * step
    return offsets, math.hypot(width, step) / 2
