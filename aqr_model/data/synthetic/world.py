"""What happens in one scene: the ego vehicle drives, boxes move steadily over flat ground."""

import math
from dataclasses import dataclass

import numpy as np

from .classes import ObjectClass


@dataclass(frozen=True, kw_only=True)
class EgoPose:
    """Where the ego vehicle is.

    Attributes:
        position: On the ground, global frame, metres. [2]
        yaw: Heading, radians.
    """

    position: np.ndarray
    yaw: float

    def to_global(self, point: np.ndarray) -> np.ndarray:
        """Move ground points from the ego to the global frame. [..., 2] to [..., 2]."""
        return point @ _rotation(self.yaw).T + self.position

    def to_ego(self, point: np.ndarray) -> np.ndarray:
        """Move ground points from the global to the ego frame. [..., 2] to [..., 2]."""
        return (point - self.position) @ _rotation(self.yaw)


@dataclass(frozen=True, kw_only=True)
class EgoPath:
    """A circular arc, or a straight line, driven at constant speed.

    Attributes:
        start: Position at time 0, global frame, metres.
        heading: Yaw at time 0, radians.
        speed: Metres per second.
        yaw_rate: Radians per second.
    """

    start: tuple[float, float]
    heading: float
    speed: float
    yaw_rate: float

    def pose(self, time_s: float) -> EgoPose:
        """Return the pose at a time relative to the first keyframe."""
        turned = self.yaw_rate * time_s
        # Chord of the arc; sinc keeps the straight line a special case of nothing.
        chord = self.speed * time_s * float(np.sinc(turned / 2 / math.pi))
        direction = self.heading + turned / 2
        position = np.array(
            [
                self.start[0] + chord * math.cos(direction),
                self.start[1] + chord * math.sin(direction),
            ]
        )
        return EgoPose(position=position, yaw=self.heading + turned)


@dataclass(frozen=True, kw_only=True)
class MovingBox:
    """A box that stands on the ground and moves at constant velocity.

    Attributes:
        object_class: Its class; none for unlabelled clutter.
        attribute: nuScenes attribute; empty for none.
        position: Centre at time 0, global frame, metres.
        velocity: Global frame, m/s.
        yaw: Heading in the global frame, radians.
        size: Width, length, height, metres.
        colour: (blue, green, red), 0 to 255.
    """

    object_class: ObjectClass | None
    attribute: str
    position: tuple[float, float]
    velocity: tuple[float, float]
    yaw: float
    size: tuple[float, float, float]
    colour: tuple[float, float, float]

    def position_at(self, time_s: float) -> np.ndarray:
        """Return the centre on the ground plane, global frame. [2]."""
        return np.array(self.position) + np.array(self.velocity) * time_s


@dataclass(frozen=True, kw_only=True)
class BoxArray:
    """Boxes at one moment in the ego frame.

    Attributes:
        centres: Metres. [N, 3]
        sizes: Width, length, height, metres. [N, 3]
        yaws: Radians. [N]
    """

    centres: np.ndarray
    sizes: np.ndarray
    yaws: np.ndarray

    def __len__(self) -> int:
        return len(self.yaws)

    def corners(self) -> np.ndarray:
        """Return the eight corners of each box. [N, 8, 3]."""
        signs = np.array([[x, y, z] for x in (1, -1) for y in (1, -1) for z in (1, -1)])
        local = signs[None] * (self.sizes[:, None, [1, 0, 2]] / 2)
        cos, sin = np.cos(self.yaws)[:, None], np.sin(self.yaws)[:, None]
        rotated = np.stack(
            [
                cos * local[..., 0] - sin * local[..., 1],
                sin * local[..., 0] + cos * local[..., 1],
                local[..., 2],
            ],
            axis=-1,
        )
        return rotated + self.centres[:, None]


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything in one scene, for all its duration.

    Attributes:
        ego: The ego vehicle's path.
        objects: Labelled boxes.
        clutter: Unlabelled boxes (walls, poles).
        light: Factor on the colours of boxes.
        sky: Colour (blue, green, red) above the horizon.
        ground: Grey value of the ground.
    """

    ego: EgoPath
    objects: tuple[MovingBox, ...]
    clutter: tuple[MovingBox, ...]
    light: float
    sky: tuple[float, float, float]
    ground: float

    @property
    def boxes(self) -> tuple[MovingBox, ...]:
        """All boxes, the labelled ones first."""
        return self.objects + self.clutter

    def boxes_at(self, time_s: float) -> BoxArray:
        """Return all boxes at one moment in the ego frame."""
        pose = self.ego.pose(time_s)
        boxes = self.boxes
        sizes = np.array([box.size for box in boxes]).reshape(-1, 3)
        ground = np.array([box.position_at(time_s) for box in boxes]).reshape(-1, 2)
        return BoxArray(
            centres=np.concatenate([pose.to_ego(ground), sizes[:, 2:] / 2], axis=1),
            sizes=sizes,
            yaws=np.array([box.yaw - pose.yaw for box in boxes]),
        )


def _rotation(yaw: float) -> np.ndarray:
    """Return the rotation by ``yaw`` in the plane. [2, 2]."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin], [sin, cos]])
