"""AQR at full size with torch alone: the scenes, the works to be measured, their slow twins.

Nothing here imports the detector, so that the folders `aqr_model/aqr` and `tests/benchmarks` run
wherever torch and pytest-benchmark do.
"""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import DEVICE
from torch import Tensor, nn


def _import_alone() -> Any:
    folder = str(Path(__file__).parents[2] / "aqr_model")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("aqr")
    finally:
        sys.path.remove(folder)


aqr = _import_alone()


@dataclass(frozen=True)
class Size:
    """A model's grids, images and batch."""

    batch: int
    voxel_m: float
    bev: tuple[int, int]
    camera: tuple[int, int, int]
    image: tuple[int, int]
    windows: tuple[int, int]  # camera, LiDAR

    @property
    def tokens(self) -> int:
        return math.prod(self.bev) + math.prod(self.camera)


SIZES = {
    "r50": Size(4, 0.1, (128, 128), (6, 20, 50), (320, 800), (9, 5)),
    "vov": Size(2, 0.075, (180, 180), (6, 40, 100), (640, 1600), (15, 5)),
}


def ring_of_cameras(size: Size) -> Tensor:
    """lidar2img of six cameras of 70 degrees and one of 110 behind. [B, V, 4, 4]."""
    height, width = size.image
    matrices = torch.zeros(size.batch, 6, 4, 4)
    matrices[:, :, 3, 3] = 1
    # The public camera order, and about nuScenes' directions, counter-clockwise from ahead.
    yaws_deg = (0.0, -56.0, 56.0, 180.0, 110.0, -110.0)
    for view, yaw in enumerate(map(math.radians, yaws_deg)):
        field = math.radians(110.0 if view == 3 else 70.0)
        focal = width / 2 / math.tan(field / 2)
        intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height * 0.4], [0, 0, 1.0]])
        cos, sin = math.cos(yaw), math.sin(yaw)
        rotation = torch.tensor([[sin, -cos, 0], [0, 0, -1.0], [cos, sin, 0]])
        matrices[:, view, :3, :3] = intrinsics @ rotation
        matrices[:, view, :3, 3] = intrinsics @ torch.tensor([0.0, 0.3, -0.5])
    return matrices


def project(size: Size, num_queries: int) -> Any:
    """Queries spread over the whole range, as before training."""
    draw = torch.Generator().manual_seed(0)
    return aqr.project_queries(
        torch.rand(size.batch, num_queries, 3, generator=draw).to(DEVICE),
        ring_of_cameras(size).to(DEVICE),
        grid=aqr.BevGrid(
            point_cloud_range=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
            voxel_size=(size.voxel_m, size.voxel_m),
            stride=8,
        ),
        image_shape=size.image,
        bev_shape=size.bev,
        camera_shape=size.camera,
    )


def random_weights(size: Size, num_queries: int) -> Any:
    draw = torch.Generator().manual_seed(1)
    lidar, camera = torch.rand(2, size.batch, num_queries, generator=draw).to(DEVICE).unbind()
    return aqr.QueryWeights(lidar=lidar.requires_grad_(), camera=camera.requires_grad_())


def rendering(name: str, num_queries: int, how: str) -> Callable[[], tuple[Tensor, ...]]:
    """Draw both maps, and the gradient of the weights. -> bev, camera, two gradients."""
    size = SIZES[name]
    projection, weights = project(size, num_queries), random_weights(size, num_queries)
    renderer = aqr.WeightRenderer()
    draw = torch.Generator().manual_seed(2)
    up_bev = torch.randn(size.batch, *size.bev, generator=draw).to(DEVICE)
    up_camera = torch.randn(size.batch, *size.camera, generator=draw).to(DEVICE)

    def work() -> tuple[Tensor, ...]:
        if how == "fast":
            bev, camera = renderer(weights, projection)
        else:
            bev, camera = draw_one_by_one(weights, projection, skipping=how == "seen one by one")
        gradients = torch.autograd.grad(
            [bev, camera], [weights.lidar, weights.camera], [up_bev, up_camera]
        )
        return bev.detach(), camera.detach(), *gradients

    return work


def draw_one_by_one(weights: Any, projection: Any, *, skipping: bool) -> tuple[Tensor, Tensor]:
    """Both maps by a loop over samples, views and queries; each kernel over its whole map.

    The plain loop draws every query into every view, with its visibility as a factor; `skipping`
    looks first which views see it, and draws only there.
    """
    batch, views = projection.camera_visible.shape[:2]
    bev = [
        _one_map(
            weights.lidar[b],
            projection.bev_cells[b],
            projection.bev_valid[b],
            projection.bev_shape,
            skipping=skipping,
        )
        for b in range(batch)
    ]
    camera = [
        _one_map(
            weights.camera[b],
            projection.camera_cells[b, v],
            projection.camera_visible[b, v],
            projection.camera_shape[1:],
            skipping=skipping,
        )
        for b in range(batch)
        for v in range(views)
    ]
    return torch.stack(bev), torch.stack(camera).unflatten(0, (batch, views))


def _one_map(
    weights: Tensor, cells: Tensor, seen: Tensor, shape: tuple[int, int], *, skipping: bool
) -> Tensor:
    rows = torch.arange(shape[0], device=cells.device)[:, None]
    cols = torch.arange(shape[1], device=cells.device)
    total = torch.ones(shape, device=cells.device)
    drawn = seen.nonzero()[:, 0].tolist() if skipping else range(len(weights))
    for query in drawn:
        away = (rows - cells[query, 0]) ** 2 + (cols - cells[query, 1]) ** 2
        total = total + seen[query] * (2 * weights[query] - 1) * torch.exp(-away / 2)
    return total.clamp(0, 1.5)


def generating(name: str, num_queries: int, how: str) -> Callable[[], tuple[Tensor, ...]]:
    """Weigh the queries, and all gradients. -> weights, then gradients."""
    size = SIZES[name]
    torch.manual_seed(3)
    generator = aqr.AQRWeightGenerator(embed_dims=256, window_sizes=size.windows).to(DEVICE)
    nn.init.normal_(generator.weight_predictor.weight, std=0.1)
    projection = project(size, num_queries)
    shapes = [(size.batch, count, 256) for count in (num_queries, size.tokens, size.tokens)]
    inputs = [torch.randn(shape).to(DEVICE).requires_grad_() for shape in shapes]
    parameters = [p for _, p in generator.named_parameters()]
    attention = generator.encoder.layers[0].attentions[0]
    if how != "fast":
        generator.encoder.layers[0].attentions[0] = DenseAttention(
            attention, size, math_path=how == "masked dense"
        )

    def work() -> tuple[Tensor, ...]:
        weights = torch.stack(generator(*inputs, projection))
        gradients = torch.autograd.grad(weights.square().sum(), [*inputs, *parameters])
        return weights.detach(), *gradients

    return work


class DenseAttention(nn.Module):
    """What the windows stand for: all tokens projected, a mask over [Q, tokens].

    Args:
        windowed: Gives the parameters.
        size: Of the model.
        math_path: Write the softmax out, as the users' generator does; else torch's fused kernel.
    """

    def __init__(self, windowed: nn.Module, size: Size, *, math_path: bool) -> None:
        super().__init__()
        self.attn = windowed.attn
        self.num_heads = windowed.num_heads
        self.tokens, self.math_path = size.tokens, math_path

    def forward(self, query, query_pos, memory, memory_pos, windows):
        batch, num_queries = query.shape[:2]
        allowed = torch.zeros(
            batch * num_queries, self.tokens, dtype=torch.bool, device=query.device
        )
        for group in windows:
            column = group.tokens % self.tokens
            hits = torch.zeros(len(column), self.tokens, device=query.device)
            hits.scatter_add_(1, column, (~group.blocked).float())
            allowed[group.queries] = hits > 0
        allowed = allowed.view(batch, 1, num_queries, self.tokens)
        weights, biases = self.attn.in_proj_weight.chunk(3), self.attn.in_proj_bias.chunk(3)
        q, k, v = (
            nn.functional.linear(x, weight, bias)
            .unflatten(-1, (self.num_heads, -1))
            .transpose(1, 2)
            for x, weight, bias in zip(
                (query + query_pos, memory + memory_pos, memory), weights, biases, strict=True
            )
        )
        # A query that can read nothing gets the output bias alone.
        readable = allowed.any(-1, keepdim=True)
        if self.math_path:
            logits = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(
                ~(allowed | ~readable), -torch.inf
            )
            read = logits.softmax(-1) @ v
        else:
            read = nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=allowed | ~readable
            )
        read = (read * readable).transpose(1, 2).flatten(2)
        return query + self.attn.out_proj(read)
