"""Domains: what the world looks like and how well its sensors work, scene by scene.

A domain holds several conditions; scene ``i`` of a split gets condition ``i % len(conditions)``, so
every split holds all of them in the same shares. In the shifted domain the conditions hurt the
sensors unevenly: no fixed balance between cameras and LiDAR is right for all scenes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SensorQuality:
    """How well the sensors work in one scene.

    Attributes:
        condition: Name of the condition it was drawn from.
        camera_gain: Factor on every pixel.
        camera_noise: Standard deviation of the pixel noise, grey values of 255.
        ring_step: Only every ``ring_step``-th LiDAR ring returns points.
        dropout: Share of LiDAR returns that are lost.
        intensity_gain: Factor on LiDAR intensity.
    """

    condition: str
    camera_gain: float
    camera_noise: float
    ring_step: int
    dropout: float
    intensity_gain: float

    def describe(self) -> str:
        """Return one line for the scene table."""
        return (
            f"{self.condition}: camera gain {self.camera_gain:.2f}, noise {self.camera_noise:.1f}; "
            f"LiDAR ring step {self.ring_step}, drop-out {self.dropout:.2f}, "
            f"intensity x{self.intensity_gain:.2f}"
        )


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A range of sensor qualities; a scene draws uniformly from it."""

    name: str
    camera_gain: Range
    camera_noise: Range
    ring_step: int
    dropout: Range
    intensity_gain: Range

    def draw(self, rng: np.random.Generator) -> SensorQuality:
        """Draw one scene's quality."""
        return SensorQuality(
            condition=self.name,
            camera_gain=rng.uniform(*self.camera_gain),
            camera_noise=rng.uniform(*self.camera_noise),
            ring_step=self.ring_step,
            dropout=rng.uniform(*self.dropout),
            intensity_gain=rng.uniform(*self.intensity_gain),
        )


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One kind of world.

    Attributes:
        name: Key in ``DOMAINS``.
        box_scale: Factor on every object's size.
        swap_colours: Red and blue of the object colours change places.
        conditions: The sensor conditions that its scenes go through in turn.
    """

    name: str
    box_scale: float
    swap_colours: bool
    conditions: tuple[Condition, ...]

    def condition_of(self, scene_index: int) -> Condition:
        """Return the condition of the scene with this index in its split."""
        return self.conditions[scene_index % len(self.conditions)]


_CLEAR = Condition(
    name="clear",
    camera_gain=(0.9, 1.1),
    camera_noise=(3.0, 6.0),
    ring_step=1,
    dropout=(0.03, 0.06),
    intensity_gain=(0.95, 1.05),
)
_DARK_CAMERAS = Condition(
    name="dark cameras",
    camera_gain=(0.10, 0.22),
    camera_noise=(9.0, 14.0),
    ring_step=1,
    dropout=(0.04, 0.10),
    intensity_gain=(0.7, 0.9),
)
_THIN_LIDAR = Condition(
    name="thin LiDAR",
    camera_gain=(0.7, 0.95),
    camera_noise=(3.0, 6.0),
    ring_step=4,
    dropout=(0.30, 0.45),
    intensity_gain=(0.4, 0.6),
)
_BOTH_MILD = Condition(
    name="both mild",
    camera_gain=(0.4, 0.6),
    camera_noise=(5.0, 8.0),
    ring_step=2,
    dropout=(0.20, 0.28),
    intensity_gain=(0.55, 0.75),
)

DOMAINS: Mapping[str, Domain] = MappingProxyType(
    {
        "base": Domain(name="base", box_scale=1.0, swap_colours=False, conditions=(_CLEAR,)),
        "shifted": Domain(
            name="shifted",
            box_scale=1.12,
            swap_colours=True,
            # Two of five scenes for each lame sensor; a cycle of five also balances small splits.
            conditions=(_DARK_CAMERAS, _THIN_LIDAR, _BOTH_MILD, _DARK_CAMERAS, _THIN_LIDAR),
        ),
    }
)
"""Every domain by name."""
