"""All settings of a synthetic dataset."""

from dataclasses import dataclass

from .domain import DOMAINS, Domain

KEYFRAME_INTERVAL_S = 0.5
"""nuScenes annotates at 2 Hz."""


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """What to write; two equal configs give byte-identical datasets.

    Attributes:
        domain: Key in ``DOMAINS``.
        train_scenes: Scenes of the split ``synth_train``.
        val_scenes: Scenes of the split ``synth_val``.
        keyframes: Keyframes of each scene; the devkit needs two to tell velocities.
        seed: Everything random follows from it.
        image_size: Width and height, pixels.
        jpeg_quality: 1 to 100.
        azimuths: LiDAR columns of one turn; 32 rings each.
        sweep_offsets_s: How long before each keyframe extra LiDAR sweeps are taken. A single one at
            0.4 s shows velocity better than one close to the keyframe.
        radius_m: Objects are placed up to this distance around the ego vehicle.
        density: Factor on the expected number of objects.
    """

    domain: str = "base"
    train_scenes: int = 60
    val_scenes: int = 10
    keyframes: int = 4
    seed: int = 0
    image_size: tuple[int, int] = (400, 225)
    jpeg_quality: int = 85
    azimuths: int = 300
    sweep_offsets_s: tuple[float, ...] = (0.4,)
    radius_m: float = 36.0
    density: float = 1.0

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise ValueError(
                f"domain must be one of {', '.join(DOMAINS)}, but got {self.domain!r}."
            )
        _require(self.train_scenes >= 0 and self.val_scenes >= 0, "scenes >= 0", self)
        _require(self.train_scenes + self.val_scenes > 0, "at least one scene", self)
        _require(self.keyframes >= 2, "keyframes >= 2 (velocities need two)", self)
        _require(self.seed >= 0, "seed >= 0", self)
        _require(min(self.image_size) >= 16, "image_size of at least 16x16", self)
        _require(1 <= self.jpeg_quality <= 100, "1 <= jpeg_quality <= 100", self)
        _require(self.azimuths >= 8, "azimuths >= 8", self)
        _require(
            all(0 < offset < KEYFRAME_INTERVAL_S for offset in self.sweep_offsets_s)
            and len(set(self.sweep_offsets_s)) == len(self.sweep_offsets_s),
            f"sweep_offsets_s different from each other, between 0 and {KEYFRAME_INTERVAL_S}",
            self,
        )
        _require(self.radius_m >= 10, "radius_m >= 10", self)
        _require(self.density >= 0, "density >= 0", self)

    @property
    def domain_settings(self) -> Domain:
        """The domain itself."""
        return DOMAINS[self.domain]

    @property
    def splits(self) -> dict[str, int]:
        """Number of scenes by split; the devkit ties names like ``val`` to the real dataset."""
        return {"synth_train": self.train_scenes, "synth_val": self.val_scenes}

    @property
    def sweep_times_s(self) -> tuple[float, ...]:
        """Moments of the extra sweeps relative to their keyframe, earliest first."""
        return tuple(-offset for offset in sorted(self.sweep_offsets_s, reverse=True))


def _require(holds: bool, what: str, config: SyntheticConfig) -> None:
    if not holds:
        raise ValueError(f"{what} must hold, but got {config}.")
