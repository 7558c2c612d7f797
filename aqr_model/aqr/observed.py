"""What the statistics look at: one forward, sample by sample, of one process or of several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .projection import BevGrid, Projection
from .weight_generator import QueryWeights
from .weight_renderer import WeightMaps


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One forward, small enough to be sent: no features.

    Every tensor has the samples first, so that the batches of several processes join to one.

    B batch, Q queries, V views.
    """

    lidar: Tensor  # weights. [B, Q]
    camera: Tensor  # weights. [B, Q]
    on_grid: Tensor  # the query lies on the BEV grid. [B, Q]
    visible: Tensor  # [B, V, Q]
    in_box: Tensor | None  # the query's cell lies in a ground-truth box. [B, Q]
    bev_map: Tensor  # [B, H, W]
    camera_maps: Tensor  # [B, V, h, w]
    boxes: Tensor | None  # cells in ground-truth boxes. [B, H, W]
    bev_change: Tensor  # of the features, see `_change`. [B, 1, 5]
    camera_change: Tensor  # the same of each view. [B, V, 5]


@torch.no_grad()
def observe(
    *,
    weights: QueryWeights,
    maps: WeightMaps,
    projection: Projection,
    bev: tuple[Tensor, Tensor],
    camera: tuple[Tensor, Tensor],
    gt_boxes: Sequence[Tensor] | None = None,
    grid: BevGrid | None = None,
) -> Observed:
    """Take what the statistics need from one forward, without waiting for the device.

    B batch, Q queries, V views, C channels.

    Args:
        weights: [B, Q] each
        maps: [B, H, W] and [B, V, h, w]
        projection: Where the queries lie.
        bev: Features before and after the modulation. [B, C, H, W] each
        camera: The same of the cameras. [B * V, C, h, w] each
        gt_boxes: Of each sample x, y, z, dx, dy, dz, yaw, ...; metres, radians. [n, >= 7] each.
            Only x, y, dx, dy and yaw are read.
        grid: Of the BEV features; needed with `gt_boxes`.

    Returns:
        The observation, on the device of the maps.

    Raises:
        ValueError: If boxes come without a grid, or not one set for each sample.
    """
    boxes = in_box = None
    if gt_boxes is not None:
        boxes = _boxes_on_grid(gt_boxes, grid, maps.bev)
        rows, cols = boxes.shape[1:]
        cells = (projection.bev_cells + 0.5).floor().long()
        token = cells[..., 0].clamp(0, rows - 1) * cols + cells[..., 1].clamp(0, cols - 1)
        in_box = boxes.flatten(1).gather(1, token)
    batch, views = maps.camera.shape[:2]
    return Observed(
        lidar=weights.lidar,
        camera=weights.camera,
        on_grid=projection.bev_valid,
        visible=projection.camera_visible,
        in_box=in_box,
        bev_map=maps.bev,
        camera_maps=maps.camera,
        boxes=boxes,
        bev_change=_change(*bev).view(batch, 1, -1),
        camera_change=_change(*camera).view(batch, views, -1),
    )


def to_host(observed: Observed) -> Observed:
    """The same in the host's memory, ready to be sent."""
    return _each(observed, lambda tensor: tensor.cpu())


def join(parts: Sequence[Observed]) -> Observed:
    """One batch out of the batches of several processes.

    Batches with fewer queries (denoising queries differ in number) get some that nothing sees.

    Args:
        parts: At least one; boxes in all or in none.

    Returns:
        The samples of all, in order.
    """
    most = max(part.lidar.shape[1] for part in parts)
    joined: dict[str, Any] = {}
    for field in fields(Observed):
        tensors = [getattr(part, field.name) for part in parts]
        if any(tensor is None for tensor in tensors):
            joined[field.name] = None
            continue
        if field.name in ("lidar", "camera", "on_grid", "visible", "in_box"):
            tensors = [
                torch.nn.functional.pad(tensor, (0, most - tensor.shape[-1])) for tensor in tensors
            ]
        joined[field.name] = torch.cat(tensors)
    return Observed(**joined)


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


def _change(before: Tensor, after: Tensor) -> Tensor:
    """Count, sum, sum of squares, sum of |d| / |f| and maximum |d| of d = after - before.

    One feature map at a time, in float64, so that neither memory nor rounding grows with the batch.

    Args:
        before: [N, C, H, W]
        after: [N, C, H, W]

    Returns:
        [N, 5], float64
    """
    rows = []
    for old, new in zip(before, after, strict=True):
        old = old.float()
        change = new.float() - old
        size = change.abs()
        relative = size / (old.abs() + 1e-8)
        sums = [part.sum(dtype=torch.float64) for part in (change, change * change, relative)]
        rows.append(torch.stack([sums[0].new_tensor(change.numel()), *sums, size.max().double()]))
    return torch.stack(rows)


def _each(observed: Observed, change: Callable[[Tensor], Tensor]) -> Observed:
    parts = {field.name: getattr(observed, field.name) for field in fields(Observed)}
    changed: dict[str, Any] = {n: None if t is None else change(t) for n, t in parts.items()}
    return Observed(**changed)
