"""Slow loop references of AQR, written from the formulas, and the scenes they are compared on."""

import math

import torch

from aqr_model.aqr import (
    AqrSemantics,
    AQRWeightGenerator,
    BevGrid,
    Projection,
    QueryWeights,
    project_queries,
)
from aqr_model.aqr.semantics import CHOICES

GRID = BevGrid(point_cloud_range=(-8.0, -6.0, -5.0, 8.0, 6.0, 3.0), voxel_size=(0.5, 0.5), stride=2)
BEV_SHAPE = (12, 16)
CAMERA_SHAPE = (3, 5, 8)
IMAGE_SHAPE = (80, 128)
NUM_TOKENS = 12 * 16 + 3 * 5 * 8


def ring_of_cameras(batch=2, views=3, image_shape=IMAGE_SHAPE, field_deg=100.0):
    """lidar2img of cameras that look outwards, every 360/views degrees, overlapping a little."""
    height, width = image_shape
    focal = width / 2 / math.tan(math.radians(field_deg) / 2)
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    matrices = torch.zeros(batch, views, 4, 4)
    matrices[:, :, 3, 3] = 1
    for view in range(views):
        yaw = 2 * math.pi * view / views
        cos, sin = math.cos(yaw), math.sin(yaw)
        rotation = torch.tensor([[sin, -cos, 0], [0, 0, -1.0], [cos, sin, 0]])
        matrices[:, view, :3, :3] = intrinsics @ rotation
        matrices[:, view, :3, 3] = intrinsics @ torch.tensor([0.0, 0.1, 0.05])
    return matrices


def project(reference_points, bev_shape=BEV_SHAPE, semantics=None):
    return project_queries(
        reference_points,
        ring_of_cameras(len(reference_points)),
        grid=GRID,
        image_shape=IMAGE_SHAPE,
        bev_shape=bev_shape,
        camera_shape=CAMERA_SHAPE,
        semantics=semantics,
    )


def random_scene(seed=0, batch=2, queries=7, semantics=None):
    """Random weights, and where their queries lie."""
    draw = torch.Generator().manual_seed(seed)
    lidar, camera = torch.rand(2, batch, queries, generator=draw).unbind()
    weights = QueryWeights(lidar=lidar.requires_grad_(), camera=camera.requires_grad_())
    points = torch.rand(batch, queries, 3, generator=draw)
    return weights, project(points, semantics=semantics)


def random_inputs(seed=0, batch=2, queries=9, dims=16):
    """reference_points [B, Q, 3], query_pos [B, Q, d], memory and memory_pos [B, T, d]."""
    draw = torch.Generator().manual_seed(seed)
    points = torch.rand(batch, queries, 3, generator=draw)
    tensors = [
        torch.randn(batch, count, dims, generator=draw).requires_grad_()
        for count in (queries, NUM_TOKENS, NUM_TOKENS)
    ]
    return points, *tensors


def busy_generator(seed=0, **keywords):
    """A generator whose predictor is not at its zero start."""
    torch.manual_seed(seed)
    generator = AQRWeightGenerator(
        **{"embed_dims": 16, "num_heads": 2, "window_sizes": (3, 5)} | keywords
    )
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return generator


def allowed_tokens(projection: Projection, sample, query, *, camera_size, bev_size):
    """Memory tokens of a query's windows, by walking over all tokens."""
    rows, cols = projection.bev_shape
    views, height, width = projection.camera_shape
    allowed = []

    def near(cell, row, col, shape, size):
        centre = [
            min(max(math.floor(float(value) + 0.5), 0), n - 1)
            for value, n in zip(cell, shape, strict=True)
        ]
        return max(abs(centre[0] - row), abs(centre[1] - col)) <= size // 2

    if projection.bev_valid[sample, query]:
        cell = projection.bev_cells[sample, query]
        allowed += [
            row * cols + col
            for row in range(rows)
            for col in range(cols)
            if near(cell, row, col, (rows, cols), bev_size)
        ]
    for view in range(views):
        if projection.camera_visible[sample, view, query]:
            cell = projection.camera_cells[sample, view, query]
            allowed += [
                rows * cols + (view * height + row) * width + col
                for row in range(height)
                for col in range(width)
                if near(cell, row, col, (height, width), camera_size)
            ]
    return allowed


def generator_twin(generator, query_pos, memory, memory_pos, projection):
    """Weights [B, Q, 2], one query at a time, by torch's own attention over its tokens."""
    layer = generator.encoder.layers[0]
    attention = layer.attentions[0].attn
    weights = []
    for sample in range(len(query_pos)):
        for query in range(query_pos.shape[1]):
            tokens = allowed_tokens(
                projection,
                sample,
                query,
                camera_size=generator.camera_window,
                bev_size=generator.bev_window,
            )
            content = attention.out_proj.bias[None]
            if tokens:
                values = memory[sample, tokens]
                keys = values + memory_pos[sample % len(memory_pos), tokens]
                content, _ = attention(query_pos[sample, query][None], keys, values)
            content = layer.norms[0](content)
            content = content + layer.ffns[0].layers(content)
            content = generator.encoder.post_norm(layer.norms[1](content))
            weights.append(generator.weight_predictor(content)[0].sigmoid())
    return torch.stack(weights).view(*query_pos.shape[:2], 2)


def map_twin(weights, cells, seen, shape, *, sigma, clamp):
    """One map [rows, cols], pixel by pixel and query by query."""
    rows = []
    for row in range(shape[0]):
        pixels = []
        for col in range(shape[1]):
            total = torch.ones(())
            for query in range(len(weights)):
                if seen[query]:
                    away = (row - cells[query, 0]) ** 2 + (col - cells[query, 1]) ** 2
                    kernel = torch.exp(-away / (2 * sigma**2))
                    total = total + (2 * weights[query] - 1) * kernel
            pixels.append(total.clamp(0, clamp))
        rows.append(torch.stack(pixels))
    return torch.stack(rows)


def kernel_twin(renderer, cell, pixel, shape):
    """What one query of strength 1 adds to one pixel."""
    method, semantics = renderer.render_method, renderer.semantics
    summed = semantics.kernel == "sum"
    if method in ("gaussian", "direct") and semantics.cells == "floored":
        cell = [int(value) for value in cell]
        if not all(0 <= value < n for value, n in zip(cell, shape, strict=True)):
            return 0.0
    away = [place - value for place, value in zip(pixel, cell, strict=True)]
    nearest = [math.floor(value + 0.5) for value in cell]
    if method == "direct":
        held = [min(max(value, 0), n - 1) for value, n in zip(nearest, shape, strict=True)]
        return float(held == list(pixel))
    if method == "gaussian":
        kernel = math.exp(-(math.hypot(*away) ** 2) / (2 * renderer.gaussian_sigma**2))
        if not summed:
            return kernel
        size = int(6 * renderer.gaussian_sigma + 1)
        radius = (size + 1 - size % 2) // 2
        offsets = range(-radius, radius + 1)
        total = sum(
            math.exp(-(y**2 + x**2) / (2 * renderer.gaussian_sigma**2))
            for y in offsets
            for x in offsets
        )
        reached = all(abs(p - n) <= radius for p, n in zip(pixel, nearest, strict=True))
        return kernel / total if reached else 0.0
    if method == "bilinear":
        if not summed:
            return math.prod(max(0.0, 1 - abs(value) / renderer.bilinear_radius) for value in away)
        first = [int(value) for value in cell]
        if not all(0 <= value < n - 1 for value, n in zip(first, shape, strict=True)):
            return 0.0
        shares = [{n: 1 - (v - n), n + 1: v - n} for v, n in zip(cell, first, strict=True)]
        return math.prod(share.get(place, 0.0) for share, place in zip(shares, pixel, strict=True))
    distance, decay = math.hypot(*away), renderer.distance_decay
    if not summed:
        return decay**distance
    reach = 0.2 * min(shape)
    return math.exp(-distance / (reach * decay)) if distance <= reach else 0.0


def drawn_twin(renderer, weights, cells, seen, shape, *, clamped=True):
    """One map [rows, cols] under any semantics, pixel by pixel and query by query."""
    zero = renderer.semantics.background == "zero"
    rows = []
    for row in range(shape[0]):
        pixels = []
        for col in range(shape[1]):
            added = [torch.zeros(())]
            for query in range(len(weights)):
                weight = weights[query]
                if not seen[query] or (zero and weight < renderer.min_weight_threshold):
                    continue
                kernel = kernel_twin(renderer, cells[query].tolist(), (row, col), shape)
                added.append((weight if zero else 2 * weight - 1) * kernel)
            largest = zero and renderer.render_method == "direct"
            value = torch.stack(added).max() if largest else torch.stack(added).sum()
            value = value if zero else 1 + value
            if clamped and zero and value < renderer.min_weight_threshold:
                value = value * 0
            limit = renderer.max_weight_clamp if clamped else math.inf
            pixels.append(value.clamp(0, limit))
        rows.append(torch.stack(pixels))
    return torch.stack(rows)


def with_second_values(names):
    """The preset 'right' with the second value of the named fields."""
    second = {name: choices[1] for name, choices in CHOICES.items()}
    return AqrSemantics(**{name: second[name] for name in names})


def assert_same_gradients(fast, slow, inputs, *, tolerance=1e-4):
    """Compare two results in value and in the gradient of a random projection of them."""
    torch.testing.assert_close(fast, slow, rtol=tolerance, atol=tolerance)
    direction = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1))
    of_fast = torch.autograd.grad((fast * direction).sum(), inputs, retain_graph=True)
    of_slow = torch.autograd.grad((slow * direction).sum(), inputs)
    assert any(gradient.abs().max() > 1e-3 for gradient in of_slow)
    for fast_gradient, slow_gradient in zip(of_fast, of_slow, strict=True):
        torch.testing.assert_close(fast_gradient, slow_gradient, rtol=tolerance, atol=tolerance)
