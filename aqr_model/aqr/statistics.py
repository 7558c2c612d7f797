"""What AQR does to a batch, as plain floats under the names of the users' logs."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .feature_modulator import FeatureModulator
from .projection import BevGrid, Projection
from .weight_generator import QueryWeights
from .weight_renderer import WeightMaps, WeightRenderer

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


@torch.no_grad()
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
    """Describe weights, maps and modulation of one forward.

    Everything is reduced on the device and read once. Weights count where their modality sees the
    query. What has nothing to count (no query in a box, a camera without queries) is left out
    instead of being invented.

    B batch, Q queries, V views, C channels.

    Args:
        weights: [B, Q] each
        maps: [B, H, W] and [B, V, h, w]
        projection: Where the queries lie.
        bev: Features before and after the modulation. [B, C, H, W] each
        camera: The same of the cameras. [B * V, C, h, w] each
        renderer: Gives the effective clamp and sigma.
        modulator: Gives the effective residual weight.
        gt_boxes: Of each sample x, y, z, dx, dy, dz, yaw, ...; metres, radians. [n, >= 7] each.
            Only x, y, dx, dy and yaw are read.
        grid: Of the BEV features; needed with `gt_boxes`.

    Returns:
        `aqr/<group>/<statistic>`; the groups are lidar_weights_stats, camera_weights_stats,
        weight_map_bev_stats, weight_map_pers_stats, modulation_effect_bev, modulation_effect_pers,
        effective. Per-camera values end in `cam0`, `cam1`, ...

    Raises:
        ValueError: If boxes come without a grid, or not one set for each sample.
        FloatingPointError: If a value is not finite: the features or the weights are not.
    """
    boxes = None
    if gt_boxes is not None:
        boxes = _boxes_on_grid(gt_boxes, grid, maps.bev)
    clamp = renderer.max_weight_clamp
    found = {
        **_weights("lidar_weights_stats", weights.lidar, projection.bev_valid),
        **_weights("camera_weights_stats", weights.camera, projection.camera_visible.any(1)),
        **_map("weight_map_bev_stats", maps.bev, clamp),
        **_map("weight_map_pers_stats", maps.camera, clamp),
        **_cameras(weights.camera, maps.camera, projection.camera_visible),
        **_modulation("modulation_effect_bev", *bev),
        **_modulation("modulation_effect_pers", *camera),
    }
    if boxes is not None:
        found |= _in_boxes(weights, maps, projection, boxes)
    effective = {
        "aqr/effective/residual_weight": modulator.residual_weight,
        "aqr/effective/max_weight_clamp": clamp,
        "aqr/effective/gaussian_sigma": renderer.gaussian_sigma,
        "aqr/effective/amplification": modulator.max_gain(clamp),
    }
    values = _read_once(found)
    broken = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if broken:
        raise FloatingPointError(f"`{broken}` must be finite, but got {values[broken]}.")
    return values | effective


@torch.no_grad()
def histograms(
    *, weights: QueryWeights, maps: WeightMaps, projection: Projection, max_weight_clamp: float
) -> dict[str, list[float]]:
    """Count weights over [0, 1] and maps over [0, c] in 20 equal bins.

    Args:
        weights: [B, Q] each; counted where their modality sees the query.
        maps: [B, H, W] and [B, V, h, w]
        projection: Where the queries lie.
        max_weight_clamp: c, the end of the last bin of the maps.

    Returns:
        Shares by group, 20 each. They sum to 1, or to 0 where nothing was counted.
    """
    everywhere = {
        "weight_map_bev_stats": (maps.bev, max_weight_clamp),
        "weight_map_pers_stats": (maps.camera, max_weight_clamp),
    }
    shares = {
        "lidar_weights_stats": _shares(weights.lidar, projection.bev_valid, 1.0),
        "camera_weights_stats": _shares(weights.camera, projection.camera_visible.any(1), 1.0),
    } | {
        name: _shares(values, torch.ones_like(values, dtype=torch.bool), end)
        for name, (values, end) in everywhere.items()
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


def bev_box_mask(boxes: Tensor, *, grid: BevGrid, bev_shape: tuple[int, int]) -> Tensor:
    """Mark the BEV cells whose centre lies in a box.

    Args:
        boxes: x, y, z, dx, dy, dz, yaw, ...; LiDAR metres, yaw counter-clockwise. [n, >= 7]
        grid: Of the BEV features.
        bev_shape: Its rows and columns.

    Returns:
        The mask. [H, W]
    """
    start = grid.point_cloud_range
    x = start[0] + (torch.arange(bev_shape[1], device=boxes.device) + 0.5) * grid.cell_size[0]
    y = start[1] + (torch.arange(bev_shape[0], device=boxes.device) + 0.5) * grid.cell_size[1]
    dx = x[None, None, :] - boxes[:, 0, None, None]
    dy = y[None, :, None] - boxes[:, 1, None, None]
    cos, sin = boxes[:, 6].cos()[:, None, None], boxes[:, 6].sin()[:, None, None]
    along = (dx * cos + dy * sin).abs() <= boxes[:, 3, None, None] / 2
    across = (dy * cos - dx * sin).abs() <= boxes[:, 4, None, None] / 2
    return (along & across).any(dim=0)


def _boxes_on_grid(gt_boxes: Sequence[Tensor], grid: BevGrid | None, bev_map: Tensor) -> Tensor:
    """One mask a sample. -> [B, H, W]."""
    if grid is None or len(gt_boxes) != len(bev_map):
        raise ValueError(
            "`gt_boxes` must hold the boxes of each sample and come with `grid`, but got"
            f" {len(gt_boxes)} for {len(bev_map)} samples, grid={grid}."
        )
    rows, cols = bev_map.shape[1:]
    return torch.stack(
        [
            bev_box_mask(boxes.to(bev_map.device), grid=grid, bev_shape=(rows, cols))
            for boxes in gt_boxes
        ]
    )


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


def _map(group: str, weight_map: Tensor, clamp: float) -> dict[str, Counted]:
    """Distribution of a map, and how much of it stands at the clamp."""
    found = _distribution(weight_map, torch.ones_like(weight_map, dtype=torch.bool))
    return _named(group, found | {"share_saturated": ((weight_map >= clamp).float().mean(), None)})


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


def _cameras(weights: Tensor, maps: Tensor, visible: Tensor) -> dict[str, Counted]:
    """Map and weights of each camera. [B, Q], [B, V, h, w], [B, V, Q]."""
    found: dict[str, Counted] = {}
    for view in range(maps.shape[1]):
        found |= {
            f"aqr/weight_map_pers_stats/mean_cam{view}": (maps[:, view].mean(), None),
            f"aqr/weight_map_pers_stats/max_cam{view}": (maps[:, view].max(), None),
            f"aqr/camera_weights_stats/mean_cam{view}": _mean(weights, visible[:, view]),
        }
    return found


def _modulation(group: str, before: Tensor, after: Tensor) -> dict[str, Counted]:
    """How far the modulation moved the features."""
    before = before.float()
    change = after.float() - before
    size = change.abs()
    moved = {
        "mean_change": change.mean(),
        "std_change": change.std(correction=0),
        "max_change": size.max(),
        "relative_change": (size / (before.abs() + 1e-8)).mean(),
    }
    return _named(group, {name: (value, None) for name, value in moved.items()})


def _in_boxes(
    weights: QueryWeights, maps: WeightMaps, projection: Projection, boxes: Tensor
) -> dict[str, Counted]:
    """Weights of queries, and the BEV map, inside and outside the boxes. [B, H, W]."""
    rows, cols = boxes.shape[1:]
    cells = (projection.bev_cells + 0.5).floor().long()
    token = cells[..., 0].clamp(0, rows - 1) * cols + cells[..., 1].clamp(0, cols - 1)
    inside = boxes.flatten(1).gather(1, token)
    on_grid = projection.bev_valid
    in_view = on_grid & projection.camera_visible.any(1)
    compared = {
        "lidar_weights_stats": (weights.lidar, on_grid & inside, on_grid & ~inside),
        "camera_weights_stats": (weights.camera, in_view & inside, in_view & ~inside),
        "weight_map_bev_stats": (maps.bev, boxes, ~boxes),
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
