"""The ten nuScenes detection classes: size, number, speed and looks in the synthetic world."""

from dataclasses import dataclass
from typing import Literal

Habitat = Literal["road", "sidewalk", "roadside", "kerb"]
"""Where objects stand: lanes and parking strips, footways, the cycle strip, or at the kerb."""


@dataclass(frozen=True, kw_only=True)
class ObjectClass:
    """How the objects of one class are drawn.

    Attributes:
        name: Detection class.
        category: nuScenes category.
        size: Mean width, length and height, metres.
        mean_count: Expected number around the ego vehicle.
        moving_share: Probability that an object moves.
        speed: Range of speeds of the moving ones, m/s.
        colour: Mean (blue, green, red), 0 to 255.
        reflectivity: LiDAR intensity of its sides, 0 to 255.
        habitat: Where it stands.
        moving: Attribute of moving objects; empty for none.
        resting: Attribute of resting objects; empty for none.
    """

    name: str
    category: str
    size: tuple[float, float, float]
    mean_count: float
    moving_share: float
    speed: tuple[float, float]
    colour: tuple[int, int, int]
    reflectivity: float
    habitat: Habitat
    moving: str = ""
    resting: str = ""


def _vehicle(
    name: str,
    category: str,
    size: tuple[float, float, float],
    colour: tuple[int, int, int],
    reflectivity: float,
    *,
    mean_count: float = 1.6,
    moving_share: float = 0.4,
    speed: tuple[float, float] = (2.0, 7.0),
) -> ObjectClass:
    return ObjectClass(
        name=name,
        category=category,
        size=size,
        mean_count=mean_count,
        moving_share=moving_share,
        speed=speed,
        colour=colour,
        reflectivity=reflectivity,
        habitat="road",
        moving="vehicle.moving",
        resting="vehicle.parked",
    )


def _cycle(
    name: str,
    category: str,
    size: tuple[float, float, float],
    colour: tuple[int, int, int],
    reflectivity: float,
    *,
    speed: tuple[float, float],
) -> ObjectClass:
    return ObjectClass(
        name=name,
        category=category,
        size=size,
        mean_count=2.3,
        moving_share=0.5,
        speed=speed,
        colour=colour,
        reflectivity=reflectivity,
        habitat="roadside",
        moving="cycle.with_rider",
        resting="cycle.without_rider",
    )


def _furniture(
    name: str,
    category: str,
    size: tuple[float, float, float],
    colour: tuple[int, int, int],
    reflectivity: float,
) -> ObjectClass:
    return ObjectClass(
        name=name,
        category=category,
        size=size,
        mean_count=3.0,
        moving_share=0.0,
        speed=(0.0, 0.0),
        colour=colour,
        reflectivity=reflectivity,
        habitat="kerb",
    )


OBJECT_CLASSES: tuple[ObjectClass, ...] = (
    _vehicle(
        "car",
        "vehicle.car",
        (1.95, 4.62, 1.73),
        (200, 120, 60),
        20,
        mean_count=6.0,
        moving_share=0.5,
        speed=(2.0, 8.0),
    ),
    _vehicle("truck", "vehicle.truck", (2.51, 6.93, 2.84), (60, 140, 220), 27, mean_count=2.0),
    _vehicle("bus", "vehicle.bus.rigid", (2.94, 11.1, 3.47), (40, 210, 230), 34),
    _vehicle(
        "trailer",
        "vehicle.trailer",
        (2.90, 12.3, 3.87),
        (170, 170, 170),
        41,
        moving_share=0.3,
        speed=(1.5, 6.0),
    ),
    _vehicle(
        "construction_vehicle",
        "vehicle.construction",
        (2.82, 6.56, 3.20),
        (0, 190, 255),
        48,
        moving_share=0.3,
        speed=(1.0, 4.0),
    ),
    ObjectClass(
        name="pedestrian",
        category="human.pedestrian.adult",
        size=(0.67, 0.73, 1.77),
        mean_count=5.0,
        moving_share=0.6,
        speed=(0.7, 1.8),
        colour=(80, 60, 200),
        reflectivity=55,
        habitat="sidewalk",
        moving="pedestrian.moving",
        resting="pedestrian.standing",
    ),
    _cycle(
        "motorcycle",
        "vehicle.motorcycle",
        (0.77, 2.11, 1.46),
        (160, 40, 140),
        62,
        speed=(2.0, 7.0),
    ),
    _cycle(
        "bicycle",
        "vehicle.bicycle",
        (0.61, 1.70, 1.30),
        (60, 180, 60),
        69,
        speed=(1.5, 5.0),
    ),
    _furniture("traffic_cone", "movable_object.trafficcone", (0.41, 0.42, 1.08), (0, 100, 255), 76),
    _furniture("barrier", "movable_object.barrier", (2.50, 0.50, 0.99), (230, 230, 240), 83),
)
"""All classes, in the order of the category table."""

STOPPED_VEHICLE = "vehicle.stopped"
"""Attribute of a vehicle that rests on a lane instead of at the roadside."""

SITTING_PEDESTRIAN = "pedestrian.sitting_lying_down"
"""Attribute of a resting pedestrian who is only 0.7 times as high."""

ATTRIBUTES: tuple[str, ...] = (
    "vehicle.moving",
    STOPPED_VEHICLE,
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    SITTING_PEDESTRIAN,
    "pedestrian.standing",
    "pedestrian.moving",
)
"""All nuScenes attributes."""
