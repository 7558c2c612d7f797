"""What AQR does to a batch, as plain floats under the names of the users' logs."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .feature_modulator import FeatureModulator
from .observed import Observed, bev_box_mask, observe
from .projection import BevGrid, Projection
from .weight_generator import QueryWeights
from .weight_renderer import WeightMaps, WeightRenderer

__all__ = [
    "aqr_statistics",
    "bev_box_mask",
    "describe",
    "gradient_norms",
    "histograms",
    "histograms_of",
]

_QUANTILES = {
    "min": 0.0, "q01": 0.01, "q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95,
    "q99": 0.99, "max": 1.0,
}  # fmt: skip
_LOW_WEIGHT, _HIGH_WEIGHT = 0.2, 0.8
_NUM_BINS = 20
_GRADIENT_PARTS = (
    "aqr_weight_generator.encoder",
    "aqr_weight_generator.weight_predictor",
    "feature_modulator",
)


def aqr_statistics(
    *,
    weights: QueryWeights,
    maps: WeightMaps,
    projection: Projection,
    bev: tuple[Tensor, Tensor],
    camera: tuple[Tensor, Tensor],
    renderer: WeightRenderer,
    modulator: FeatureModulator,
    gt_boxes: Sequence[Tensor] | None = None,
    grid: BevGrid | None = None,
) -> dict[str, float]:
    """Describe weights, maps and modulation of one forward: `observe`, then `describe`.

    Args:
        weights: See `observe`, like all that follow but two.
        maps: [B, H, W] and [B, V, h, w]
        projection: Where the queries lie.
        bev: Features before and after the modulation. [B, C, H, W] each
        camera: The same of the cameras. [B * V, C, h, w] each
        renderer: See `describe`.
        modulator: See `describe`.
        gt_boxes: Of each sample. [n, >= 7] each
        grid: Of the BEV features; needed with `gt_boxes`.

    Returns:
        See `describe`.
    """
    observed = observe(
        weights=weights,
        maps=maps,
        projection=projection,
        bev=bev,
        camera=camera,
        gt_boxes=gt_boxes,
        grid=grid,
    )
    return describe(observed, renderer=renderer, modulator=modulator)


@torch.no_grad()
def describe(
    observed: Observed, *, renderer: WeightRenderer, modulator: FeatureModulator
) -> dict[str, float]:
    """Turn an observation into numbers.

    Everything is reduced on the device and read once. Weights count where their modality sees the
    query. What has nothing to count (no query in a box, a camera without queries) is left out
    instead of being invented.

    Args:
        observed: Of one forward, or of those of several processes, joined.
        renderer: Gives the effective clamp and sigma.
        modulator: Gives the effective residual weight.

    Returns:
        `aqr/<group>/<statistic>`; the groups are lidar_weights_stats, camera_weights_stats,
        weight_map_bev_stats, weight_map_pers_stats, modulation_effect_bev, modulation_effect_pers,
        effective. Per-camera values end in `cam0`, `cam1`, ...

    Raises:
        FloatingPointError: If a value is not finite: the features or the weights are not.
    """
    in_view = observed.visible.any(1)
    found = {
        **_weights("lidar_weights_stats", observed.lidar, observed.on_grid),
        **_weights("camera_weights_stats", observed.camera, in_view),
        **_map("weight_map_bev_stats", observed.bev_map, renderer),
        **_map("weight_map_pers_stats", observed.camera_maps, renderer),
        **_cameras(observed),
        **_modulation("modulation_effect_bev", observed.bev_change),
        **_modulation("modulation_effect_pers", observed.camera_change),
    }
    if observed.boxes is not None and observed.in_box is not None:
        found |= _in_boxes(observed, observed.boxes, observed.in_box)
    clamp = renderer.max_weight_clamp
    effective = {
        "aqr/effective/residual_weight": float(modulator.residual_weight),
        "aqr/effective/max_weight_clamp": float(clamp),
        "aqr/effective/gaussian_sigma": float(renderer.gaussian_sigma),
        "aqr/effective/amplification": float(modulator.max_gain(clamp)),
    }
    values = _read_once(found)
    broken = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if broken:
        raise FloatingPointError(f"`{broken}` must be finite, but got {values[broken]}.")
    return values | effective


def histograms(
    *, weights: QueryWeights, maps: WeightMaps, projection: Projection, max_weight_clamp: float
) -> dict[str, list[float]]:
    """Count weights over [0, 1] and maps over [0, c] in 20 equal bins.

    Args:
        weights: [B, Q] each; counted where their modality sees the query.
        maps: [B, H, W] and [B, V, h, w]
        projection: Where the queries lie.
        max_weight_clamp: c, the end of the last bin of the maps, which also takes what is above.

    Returns:
        Shares by group, 20 each. They sum to 1, or to 0 where nothing was counted.
    """
    return _histograms(
        lidar=(weights.lidar, projection.bev_valid),
        camera=(weights.camera, projection.camera_visible.any(1)),
        maps=maps,
        clamp=max_weight_clamp,
    )


def histograms_of(observed: Observed, *, max_weight_clamp: float) -> dict[str, list[float]]:
    """`histograms` of an observation."""
    return _histograms(
        lidar=(observed.lidar, observed.on_grid),
        camera=(observed.camera, observed.visible.any(1)),
        maps=WeightMaps(bev=observed.bev_map, camera=observed.camera_maps),
        clamp=max_weight_clamp,
    )


@torch.no_grad()
def _histograms(
    *,
    lidar: tuple[Tensor, Tensor],
    camera: tuple[Tensor, Tensor],
    maps: WeightMaps,
    clamp: float,
) -> dict[str, list[float]]:
    """Values of the weights with what counts of them; all of the maps counts."""
    shares = {
        "lidar_weights_stats": _shares(*lidar, 1.0),
        "camera_weights_stats": _shares(*camera, 1.0),
        "weight_map_bev_stats": _shares(maps.bev, _all_of(maps.bev), clamp),
        "weight_map_pers_stats": _shares(maps.camera, _all_of(maps.camera), clamp),
    }
    rows = torch.stack(list(shares.values())).tolist()
    return {f"aqr/{name}/histogram": row for name, row in zip(shares, rows, strict=True)}


@torch.no_grad()
def gradient_norms(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, float]:
    """Measure the gradient of each part of AQR, after a backward pass.

    Args:
        named_parameters: Of the head or of the whole detector.

    Returns:
        `aqr/grad_norm/<part>`, Euclidean. A part without gradients is left out; an overflow (mixed
        precision has them) shows as inf.
    """
    squares: dict[str, list[Tensor]] = {}
    for name, parameter in named_parameters:
        part = next((part for part in _GRADIENT_PARTS if f".{part}." in f".{name}"), None)
        if part and parameter.grad is not None:
            squares.setdefault(part, []).append(parameter.grad.float().square().sum())
    norms = {part: torch.stack(parts).sum().sqrt() for part, parts in squares.items()}
    return _read_once({f"aqr/grad_norm/{part}": (norm, None) for part, norm in norms.items()})


# A value, and the number of elements behind it where that may be 0.
Counted = tuple[Tensor, Tensor | None]


def _weights(group: str, weights: Tensor, seen: Tensor) -> dict[str, Counted]:
    """Distribution of weights over the queries that are seen. [B, Q], [B, Q]."""
    found = {
        **_distribution(weights, seen),
        "share_low": _mean((weights < _LOW_WEIGHT).float(), seen),
        "share_high": _mean((weights > _HIGH_WEIGHT).float(), seen),
        "share_seen": (seen.float().mean(), None),
    }
    return _named(group, found)


def _map(group: str, weight_map: Tensor, renderer: WeightRenderer) -> dict[str, Counted]:
    """Distribution of a map, and how much of it stands at its bound. [B, ...]."""
    everywhere = _all_of(weight_map)
    found = {
        **_distribution(weight_map, everywhere),
        "share_low": _mean((weight_map < _LOW_WEIGHT).float(), everywhere),
        "share_high": _mean((weight_map > _HIGH_WEIGHT).float(), everywhere),
        "share_saturated": ((weight_map >= _bound(weight_map, renderer)).float().mean(), None),
    }
    return _named(group, found)


def _bound(weight_map: Tensor, renderer: WeightRenderer) -> Tensor | float:
    """The clamp; where it adapts to each sample, the largest value, if one rises at all."""
    clamp = renderer.max_weight_clamp
    if renderer.clamp_quantile == 1:
        return clamp
    background = 0.0 if renderer.semantics.background == "zero" else 1.0
    top = weight_map.amax(dim=tuple(range(1, weight_map.dim())), keepdim=True)
    return torch.where(top > background, top, clamp)


def _all_of(values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def _distribution(values: Tensor, counted: Tensor) -> dict[str, Counted]:
    """Moments, ends and quantiles of what is counted."""
    values = values.float()
    mean, count = _mean(values, counted)
    variance, _ = _mean((values - mean).square(), counted)
    hidden = values.where(counted, torch.nan).flatten()
    levels = torch.tensor(list(_QUANTILES.values()), device=values.device)
    # Selecting instead of hiding would wait for the device. Hiding also hides a NaN that counts;
    # the mean still carries it.
    quantiles = torch.nanquantile(hidden, levels) + 0 * mean
    found: dict[str, Counted] = {"mean": (mean, count), "std": (variance.sqrt(), count)}
    return found | {name: (value, count) for name, value in zip(_QUANTILES, quantiles, strict=True)}


def _cameras(observed: Observed) -> dict[str, Counted]:
    """Weights, map and modulation of each camera."""
    found: dict[str, Counted] = {}
    for view in range(observed.camera_maps.shape[1]):
        of_view = observed.camera_maps[:, view]
        count, _, _, relative, _ = observed.camera_change[:, view].sum(0).unbind()
        weight, number = _mean(observed.camera, observed.visible[:, view])
        found |= {
            f"aqr/weight_map_pers_stats/mean_cam{view}": (of_view.mean(), None),
            f"aqr/weight_map_pers_stats/max_cam{view}": (of_view.max(), None),
            f"aqr/camera_weights_stats/mean_cam{view}": (weight, number),
            f"aqr/modulation_effect_pers/relative_change_cam{view}": (relative / count, None),
        }
    return found


def _modulation(group: str, change: Tensor) -> dict[str, Counted]:
    """How far the modulation moved the features. [B, V, 5], see `Observed`."""
    count, total, squares, relative, _ = change.sum((0, 1)).unbind()
    mean = total / count
    moved = {
        "mean_change": mean,
        "std_change": (squares / count - mean * mean).clamp(min=0).sqrt(),
        "max_change": change[..., 4].max(),
        "relative_change": relative / count,
    }
    return _named(group, {name: (value, None) for name, value in moved.items()})


def _in_boxes(observed: Observed, boxes: Tensor, inside: Tensor) -> dict[str, Counted]:
    """Weights of queries, and the BEV map, inside and outside the boxes. [B, H, W], [B, Q]."""
    on_grid = observed.on_grid
    in_view = on_grid & observed.visible.any(1)
    compared = {
        "lidar_weights_stats": (observed.lidar, on_grid & inside, on_grid & ~inside),
        "camera_weights_stats": (observed.camera, in_view & inside, in_view & ~inside),
        "weight_map_bev_stats": (observed.bev_map, boxes, ~boxes),
    }
    found: dict[str, Counted] = {}
    for group, (values, within, without) in compared.items():
        means = {"in_boxes": _mean(values, within), "outside_boxes": _mean(values, without)}
        found |= _named(group, {f"mean_{place}": mean for place, mean in means.items()})
    return found


def _mean(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over what is counted, and its number."""
    count = counted.sum()
    return values.where(counted, 0.0).sum() / count, count


def _named(group: str, found: Mapping[str, Counted]) -> dict[str, Counted]:
    return {f"aqr/{group}/{name}": value for name, value in found.items()}


def _shares(values: Tensor, counted: Tensor, end: float) -> Tensor:
    """Histogram over [0, end] of what is counted, as shares. -> [bins]."""
    bins = (values.float() / end * _NUM_BINS).long().clamp(0, _NUM_BINS - 1).flatten()
    weight = counted.flatten().float()
    counts = torch.zeros(_NUM_BINS, device=values.device).index_add(0, bins, weight)
    return counts / weight.sum().clamp(min=1)


def _read_once(found: Mapping[str, Counted]) -> dict[str, float]:
    """Bring all scalars to the host together, without those that had nothing to count."""
    if not found:
        return {}
    values = torch.stack([value.float() for value, _ in found.values()])
    one = torch.ones_like(values[0])
    counts = torch.stack([one if count is None else count.float() for _, count in found.values()])
    numbers, present = torch.stack([values, counts]).tolist()
    rows = zip(found, numbers, present, strict=True)
    return {name: number for name, number, count in rows if count}
