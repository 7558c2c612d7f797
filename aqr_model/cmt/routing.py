"""Adaptive Query Routing between the features and the transformer of the CMT head.

Joins the parts of `aqr_model.aqr`, which know tensors only, to the head's geometry.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from aqr_model.aqr import (
    AqrSemantics,
    AQRWeightGenerator,
    BevGrid,
    FeatureModulator,
    Projection,
    QueryWeights,
    WeightMaps,
    WeightRenderer,
    project_queries,
)
from aqr_model.cmt.position import Cameras

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RoutingInputs:
    """What one forward hands to the routing: features not yet modulated and the queries that route.

    B batch, V views, C channels, T memory tokens. Q queries: the matching ones; with
    `AqrSemantics.queries='all'` the denoising ones before them.
    """

    bev: Tensor  # [B, C, H, W]
    camera: Tensor  # [B * V, C, h, w]
    memory: Tensor  # BEV tokens row by row, then cameras. [B, T, C]
    memory_pos: Tensor  # [B, T, C]
    query_pos: Tensor  # [B, Q, C]
    reference_points: Tensor  # fractions of the point-cloud range. [B, Q, 3]
    cameras: Cameras


@dataclass(frozen=True, kw_only=True)
class Routed:
    """What the routing made of its inputs."""

    bev: Tensor  # [B, C, H, W]
    camera: Tensor  # [B * V, C, h, w]
    weights: QueryWeights
    maps: WeightMaps
    projection: Projection


def build_parts(
    *,
    embed_dims: int,
    aqr_config: Mapping[str, Any] | None,
    renderer_config: Mapping[str, Any] | None,
    modulator_config: Mapping[str, Any] | None,
    use_simple_modulation: bool = False,
) -> tuple[AQRWeightGenerator, WeightRenderer, FeatureModulator]:
    """Build generator, renderer and modulator from the keys of the users' configs.

    All three take their meaning from `aqr_config.semantics`.
    """
    semantics = read_semantics(aqr_config)
    generator: dict[str, Any] = {"embed_dims": embed_dims} | _keywords(aqr_config)
    generator["semantics"] = semantics
    if generator["embed_dims"] != embed_dims:
        raise ValueError(
            f"`aqr_config.embed_dims` must equal the head's `hidden_dim` ({embed_dims}), but got"
            f" {generator['embed_dims']}. Leave it out."
        )
    return (
        AQRWeightGenerator(**generator),
        WeightRenderer(**_keywords(renderer_config), semantics=semantics),
        _modulator(_keywords(modulator_config), semantics, simple=use_simple_modulation),
    )


def read_semantics(aqr_config: Mapping[str, Any] | None) -> AqrSemantics:
    """Read `aqr_config.semantics`."""
    return AqrSemantics.from_config((aqr_config or {}).get("semantics"))


def route(
    inputs: RoutingInputs,
    *,
    generator: AQRWeightGenerator,
    renderer: WeightRenderer,
    modulator: FeatureModulator,
    grid: BevGrid,
    semantics: AqrSemantics,
) -> Routed:
    """Weigh the queries, render their weights and modulate the features."""
    num_views = len(inputs.camera) // len(inputs.reference_points)
    bev_rows, bev_columns = inputs.bev.shape[2:]
    camera_rows, camera_columns = inputs.camera.shape[2:]
    projection = project_queries(
        inputs.reference_points,
        inputs.cameras.lidar2img,
        grid=grid,
        image_shape=inputs.cameras.pad_hw,
        bev_shape=(bev_rows, bev_columns),
        camera_shape=(num_views, camera_rows, camera_columns),
        semantics=semantics,
    )
    weights = generator(inputs.query_pos, inputs.memory, inputs.memory_pos, projection)
    maps = renderer(weights, projection)
    bev, camera = modulator(inputs.bev, inputs.camera, maps)
    return Routed(bev=bev, camera=camera, weights=weights, maps=maps, projection=projection)


def collected(
    inputs: RoutingInputs, routed: Routed, *, gt_boxes: Sequence[Tensor] | None
) -> dict[str, Any]:
    """The tensors of one forward, detached, by the names that `aqr.aqr_statistics` takes."""
    return {
        "weights": QueryWeights(
            lidar=routed.weights.lidar.detach(), camera=routed.weights.camera.detach()
        ),
        "maps": WeightMaps(bev=routed.maps.bev.detach(), camera=routed.maps.camera.detach()),
        "projection": routed.projection,
        "bev": (inputs.bev.detach(), routed.bev.detach()),
        "camera": (inputs.camera.detach(), routed.camera.detach()),
        "gt_boxes": gt_boxes,
    }


def _modulator(
    keywords: Mapping[str, Any], semantics: AqrSemantics, *, simple: bool
) -> FeatureModulator:
    """The modulator of the config, or f * M alone."""
    if not simple:
        return FeatureModulator(**keywords, semantics=semantics)
    if keywords:
        _LOG.warning(
            "`use_simple_modulation=True` scales features by the map alone: `modulator_config` (%s)"
            " is not read.",
            ", ".join(keywords),
        )
    return FeatureModulator(residual_weight=0.0, semantics=semantics)


def _keywords(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """A config's keys without `type`, which names the only class there is."""
    return {key: value for key, value in (config or {}).items() if key != "type"}
