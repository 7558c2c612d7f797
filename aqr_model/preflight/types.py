"""Type names of a config that are registered nowhere, all of them at once."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcv import Config

from aqr_model.preflight.reading import ConfigError, listed

BUILT_SECTIONS = ("model", "data", "optimizer")
"""Sections of a config whose types are built from registries."""

# Named by configs and built by name, without a registry.
_UNREGISTERED = ("AQRWeightGenerator", "WeightRenderer", "FeatureModulator", "CBGSDataset")


@dataclass(frozen=True, kw_only=True)
class UnknownType:
    """A type name that no registry has.

    Attributes:
        name: As the config writes it.
        place: Dotted key of the dict that carries it.
        nearest: The most similar registered name, None without a similar one.
    """

    name: str
    place: str
    nearest: str | None

    def __str__(self) -> str:
        return f"{self.name} at {self.place}" + (f" (nearest: {self.nearest})" * bool(self.nearest))


def unknown_types(cfg: Config, sections: Sequence[str] = BUILT_SECTIONS) -> tuple[UnknownType, ...]:
    """Type names that are registered nowhere, all of them, in the order of the config.

    Args:
        cfg: A config; ``import aqr_model`` must have registered the project's types.
        sections: Top-level keys to search.
    """
    known = _registered_names().union(_UNREGISTERED)
    return tuple(
        UnknownType(name=name, place=place, nearest=_nearest(name, known))
        for section in sections
        for place, name in _types(cfg._cfg_dict.get(section), section)
        if name not in known
    )


def require_known_types(cfg: Config, sections: Sequence[str] = BUILT_SECTIONS) -> None:
    """Refuse a config with types that are registered nowhere, before anything is built.

    Raises:
        ConfigError: If there are any; all are named, with place and nearest registered name.
    """
    unknown = unknown_types(cfg, sections)
    if unknown:
        names = ", ".join(dict.fromkeys(entry.name for entry in unknown))
        raise ConfigError(
            f"every type of a config must be registered, but these are not: {names}. Correct the "
            "name, or take the step out." + listed("where", [str(entry) for entry in unknown])
        )


def _types(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Dotted place and name of every ``type`` below a node, those of schedules apart."""
    if isinstance(node, Mapping):
        if isinstance(name := node.get("type"), str):
            yield place, name
        for key, inner in node.items():
            if not str(key).endswith("_schedule"):
                yield from _types(inner, f"{place}.{key}")
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for i, inner in enumerate(node):
            yield from _types(inner, f"{place}.{i}")


def _registered_names() -> set[str]:
    """The names of all registries of mmcv, mmdet and mmdet3d."""
    from mmcv.cnn.bricks import registry as bricks
    from mmcv.cnn.builder import MODELS
    from mmcv.cnn.utils.weight_init import INITIALIZERS
    from mmcv.runner.optimizer.builder import OPTIMIZERS
    from mmcv.utils import Registry
    from mmdet.core.bbox import builder as boxes
    from mmdet.core.bbox.iou_calculators.builder import IOU_CALCULATORS
    from mmdet.core.bbox.match_costs.builder import MATCH_COST
    from mmdet.datasets import builder as datasets_2d
    from mmdet.models import builder as models_2d
    from mmdet.models.utils import builder as parts_2d
    from mmdet3d.datasets import builder as datasets_3d
    from mmdet3d.models import builder as models_3d

    modules = (bricks, boxes, datasets_2d, models_2d, parts_2d, datasets_3d, models_3d)
    found = [value for module in modules for value in vars(module).values()]
    found += [MODELS, INITIALIZERS, OPTIMIZERS, IOU_CALCULATORS, MATCH_COST]
    registries = [value for value in found if isinstance(value, Registry)]
    return {name for registry in registries for name in registry.module_dict}


def _nearest(name: str, known: set[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), None)
