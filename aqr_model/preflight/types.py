"""Type names of a config that are registered nowhere, all of them at once."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mmcv.utils import Registry

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
        near = f"; the nearest name is {self.nearest}" if self.nearest else ""
        return (
            f"must have a `type` that is registered, but {self.name} is not{near}. Correct the"
            " name, or take the part out."
        )


def unknown_types(
    config: Mapping[str, Any], sections: Sequence[str] = BUILT_SECTIONS
) -> tuple[UnknownType, ...]:
    """Type names that are registered nowhere, all of them, in the order of the config.

    Args:
        config: A config; ``import aqr_model`` must have registered the project's types.
        sections: Top-level keys to search.
    """
    known: set[str] = {*_UNREGISTERED, *(n for each in registries() for n in each.module_dict)}
    return tuple(
        UnknownType(name=name, place=place, nearest=_nearest(name, known))
        for section in sections
        for place, name in _types(config.get(section), section)
        if name not in known
    )


@cache
def registries() -> tuple[Registry, ...]:
    """All registries of mmcv, mmdet and mmdet3d that a config's types are built from."""
    from mmcv.cnn.bricks import registry as bricks
    from mmcv.cnn.builder import MODELS
    from mmcv.cnn.utils.weight_init import INITIALIZERS
    from mmcv.runner.optimizer.builder import OPTIMIZERS
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
    return tuple({id(each): each for each in found if isinstance(each, Registry)}.values())


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


def _nearest(name: str, known: set[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), None)
