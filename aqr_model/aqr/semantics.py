"""What AQR's maps mean: right by default, or as past runs had it, field by field."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints


@dataclass(frozen=True, kw_only=True)
class AqrSemantics:
    """The corrections of today's AQR, each undone by itself through its second value.

    The defaults are the preset 'right'. The preset 'legacy' has the second value of every field but
    `clamped`: the users' code clamps both maps since the run whose camera map reached 70.
    docs/aqr.md holds the table of what each field changes and what mixes of them mean.

    Args:
        queries: Which queries are weighed and drawn: the matching ones, or also the denoising ones
            with their empty slots (D3, D4).
        kernel: Peak 1 at the projection, or the users' kernels: a truncated Gaussian that sums to
            1, a bilinear splat, a distance tied to the map's size (D7).
        background: Of the map: 1 and queries push up or down, or 0 and queries add up (D8).
        residual: f + (1 − r)(M − 1) f, or f (M + r) (D9).
        views: Every view that sees a query, or the first of them (D12).
        bev_grid: BEV cells from the config's range and voxels, or from 54 m and 108 m with the
            rows' number on both axes (D5).
        camera_scale: Camera cells by each axis' own ratio, or by the rows' ratio on both (D13).
        cells: Exact places on the maps, or the token they fall into (D25).
        unseen: A query that no camera sees is left out, or stands at view 0, pixel (0, 0) (D6).
        gradient: From the maps into the weights it flows, or is blocked (D1).
        clamped: Both maps, or the BEV map alone, as in the run of the first report (D10).
        predictor: Starts silent, at zero, or with random weights and bias 1.5, as the generator
            stood in past runs, which D1 kept from ever learning.

    Raises:
        ValueError: If a value is not among a field's two.
    """

    queries: Literal["matching", "all"] = "matching"
    kernel: Literal["peak", "sum"] = "peak"
    background: Literal["neutral", "zero"] = "neutral"
    residual: Literal["convex", "additive"] = "convex"
    views: Literal["all", "first"] = "all"
    bev_grid: Literal["config", "fixed"] = "config"
    camera_scale: Literal["axes", "rows"] = "axes"
    cells: Literal["exact", "floored"] = "exact"
    unseen: Literal["masked", "origin"] = "masked"
    gradient: Literal["flows", "blocked"] = "flows"
    clamped: Literal["both", "bev"] = "both"
    predictor: Literal["silent", "random"] = "silent"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`semantics.{name}` must be one of {', '.join(map(repr, choices))}, but got"
                    f" {getattr(self, name)!r}."
                )

    @classmethod
    def preset(cls, name: str, **chosen: str | None) -> "AqrSemantics":
        """Take a preset, with some of its fields replaced.

        Args:
            name: 'right' or 'legacy'.
            chosen: Fields to replace; None keeps the preset's value.

        Returns:
            The record.

        Raises:
            ValueError: For an unknown preset, field or value.
        """
        if name not in PRESETS:
            raise ValueError(
                f"`semantics.preset` must be one of {', '.join(map(repr, PRESETS))}, but got"
                f" {name!r}."
            )
        unknown = sorted(set(chosen) - set(CHOICES))
        if unknown:
            raise ValueError(
                f"`semantics` knows the keys preset, {', '.join(CHOICES)}, but got"
                f" {', '.join(unknown)}. Remove or rename the latter."
            )
        values: dict[str, Any] = {}
        if name == "legacy":
            values = {key: second for key, (_, second) in CHOICES.items() if key != "clamped"}
        values.update((key, value) for key, value in chosen.items() if value is not None)
        return cls(**values)

    @classmethod
    def from_config(cls, config: "str | Mapping[str, Any] | AqrSemantics | None") -> "AqrSemantics":
        """Read `aqr_config.semantics`.

        Args:
            config: A preset's name, or a mapping with `preset` ('right' if left out) and any of
                the fields, where None means as in the preset. None is the preset 'right'.

        Returns:
            The record.

        Raises:
            ValueError: For anything else.
        """
        if isinstance(config, AqrSemantics):
            return config
        if config is None or isinstance(config, str):
            return cls.preset(config or "right")
        if not isinstance(config, Mapping):
            raise ValueError(
                "`semantics` must be a preset's name or a dict with `preset` and fields, but got"
                f" {config!r}."
            )
        chosen = {key: value for key, value in config.items() if key != "preset"}
        return cls.preset(config.get("preset") or "right", **chosen)


PRESETS = ("right", "legacy")
# The two values of each field, the right one first.
CHOICES: Mapping[str, tuple[str, str]] = {
    field.name: get_args(get_type_hints(AqrSemantics)[field.name]) for field in fields(AqrSemantics)
}
