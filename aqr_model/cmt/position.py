"""Position encodings of CMT: where BEV cells, camera pixels and queries look in 3D.

Query and token encodings are made by the same functions, so that a query at a point resembles
the tokens that see that point.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqr_model.aqr.crossings import constant, upload


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """Camera geometry of a batch. B batch, V views.

    `lidar2img` maps homogeneous LiDAR points (metres) to (u * depth, v * depth, depth), u and v
    in pixels of the padded image.
    """

    lidar2img: Tensor  # [B, V, 4, 4]
    img2lidar: Tensor  # [B, V, 4, 4]
    pad_hw: tuple[int, int]

    @classmethod
    def from_metas(cls, img_metas: Sequence[Mapping[str, Any]], device: torch.device) -> "Cameras":
        """Read `lidar2img` and `pad_shape` of every sample."""
        sizes = {tuple(int(s) for s in shape[:2]) for m in img_metas for shape in m["pad_shape"]}
        if len(sizes) != 1:
            raise ValueError(
                f"`pad_shape` must be the same for all views of a batch, but got {sorted(sizes)}."
                " Pad the images to one size in the pipeline."
            )
        # float64 until the inverse is taken: the matrices mix pixels and metres.
        lidar2img = np.stack([np.asarray(m["lidar2img"], dtype=np.float64) for m in img_metas])
        forward, inverse = torch.from_numpy(lidar2img), torch.from_numpy(np.linalg.inv(lidar2img))
        ((height, width),) = sizes
        forward, inverse = upload([forward.float(), inverse.float()], device, "cameras")
        return cls(lidar2img=forward, img2lidar=inverse, pad_hw=(height, width))


@dataclass(frozen=True, kw_only=True)
class PointRange:
    """Axis-aligned range of the point cloud, metres."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @classmethod
    def from_list(cls, values: Sequence[float]) -> "PointRange":
        """Take (x, y, z) low, then (x, y, z) high."""
        low, high = tuple(map(float, values[:3])), tuple(map(float, values[3:]))
        if len(low) != 3 or len(high) != 3 or any(a >= b for a, b in zip(low, high, strict=True)):
            raise ValueError(
                "`pc_range` must be [x, y, z] low then high with low < high, but got"
                f" {list(values)}."
            )
        return cls(low=low, high=high)

    def normalise(self, points: Tensor) -> Tensor:
        """Metres to fractions of the range, not clamped. [..., 3]."""
        low, high = constant(self.low, points), constant(self.high, points)
        return (points - low) / (high - low)

    def denormalise(self, fractions: Tensor) -> Tensor:
        """Fractions of the range to metres. [..., 3]."""
        low, high = constant(self.low, fractions), constant(self.high, fractions)
        return fractions * (high - low) + low


def sine_encoding(values: Tensor, num_feats: int) -> Tensor:
    """Encode one coordinate by interleaved sine and cosine.

    The divisors run from 1 to just below 2: public checkpoints were trained without the usual
    power of a temperature.

    Args:
        values: Fractions of the range. [...]
        num_feats: F.

    Returns:
        [..., F]
    """
    index = torch.arange(num_feats, device=values.device, dtype=torch.float32)
    divisors = 2 * torch.div(index, 2, rounding_mode="floor") / num_feats + 1
    angles = values[..., None] * (2 * math.pi) / divisors
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def point_encoding(points: Tensor, num_feats: int) -> Tensor:
    """Encode BEV points, the y part first.

    Args:
        points: (x, y, ...), fractions of the range. [..., >=2]
        num_feats: F, of each axis.

    Returns:
        [..., 2 * F]
    """
    parts = [sine_encoding(points[..., axis], num_feats) for axis in (1, 0)]
    return torch.cat(parts, dim=-1)


def grid_encoding(height: int, width: int, num_feats: int, device: torch.device) -> Tensor:
    """Encode all cell centres of a BEV grid; equals `point_encoding`, axis by axis.

    Returns:
        Row-major. [H * W, 2 * F]
    """
    y, x = (
        sine_encoding((torch.arange(size, device=device) + 0.5) / size, num_feats)
        for size in (height, width)
    )
    parts = [y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)]
    return torch.cat(parts, dim=-1).flatten(0, 1)


def ray_depths(num_depths: int, farthest: float, device: torch.device) -> Tensor:
    """Depths along a camera ray: linear from 1 m, `farthest` excluded. [D]."""
    steps = torch.arange(num_depths, device=device, dtype=torch.float32)
    return 1 + steps * (farthest - 1) / num_depths


def ray_points(
    pixels: Tensor, img2lidar: Tensor, depths: Tensor, point_range: PointRange
) -> Tensor:
    """Back-project pixels to points along their rays.

    Args:
        pixels: Homogeneous (u, v, 1). [..., 3]
        img2lidar: Broadcastable to the pixels. [..., 4, 4]
        depths: [D]
        point_range: The points are given as fractions of it.

    Returns:
        Depth-major: index 3 * depth + axis. [..., 3 * D]
    """
    # Not a matrix product: TF32 would move the points by decimetres.
    directions = (img2lidar[..., :3, :3] * pixels[..., None, :]).sum(-1)
    origins = img2lidar[..., :3, 3]
    points = directions[..., None, :] * depths[:, None] + origins[..., None, :]
    return point_range.normalise(points).flatten(-2)


def pixel_rays(
    feature_hw: tuple[int, int], cameras: Cameras, depths: Tensor, point_range: PointRange
) -> Tensor:
    """Rays of all cells of the camera feature maps.

    Args:
        feature_hw: (h, w) of the feature maps.
        cameras: Geometry of the batch.
        depths: [D]
        point_range: See `ray_points`.

    Returns:
        [B * V, h, w, 3 * D]
    """
    # A cell's ray starts at its upper left corner, as public checkpoints were trained.
    v, u = (
        torch.arange(cells, device=depths.device, dtype=torch.float32) * (size / cells)
        for cells, size in zip(feature_hw, cameras.pad_hw, strict=True)
    )
    grid = torch.meshgrid(v, u, indexing="ij")
    pixels = torch.stack([grid[1], grid[0], torch.ones_like(grid[0])], dim=-1)
    img2lidar = cameras.img2lidar.flatten(0, 1)[:, None, None]
    return ray_points(pixels, img2lidar, depths, point_range)


def project(points: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Project points into every view.

    Args:
        points: LiDAR frame, metres. [B, Q, 3]
        cameras: Geometry of the batch.

    Returns:
        pixels: (u, v, depth / detached depth = 1). The division's depth carries no gradient.
            [B, V, Q, 3]
        visible: In front of the camera and inside the padded image. [B, V, Q]
    """
    rows = cameras.lidar2img[:, :, None, :3]  # [B, V, 1, 3, 4]
    projected = (rows[..., :3] * points[:, None, :, None]).sum(-1) + rows[..., 3]
    depth = projected[..., 2:].detach()
    in_front = depth > 0
    pixels = projected / (depth + torch.where(in_front, 1e-6, -1e-6))
    height, width = cameras.pad_hw
    u, v = pixels[..., 0], pixels[..., 1]
    visible = (u >= 0) & (u < width) & (v >= 0) & (v < height) & in_front.squeeze(-1)
    return pixels, visible
