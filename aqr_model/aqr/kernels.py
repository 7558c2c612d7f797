"""Sums of query kernels over a map, without a loop over queries.

Q queries, rows and cols tokens; `...` any leading shape, one map each.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .formats import full_float32

# Six sigma out. Beside a 1 in float32 less than this is nothing, and the denormal numbers further
# out make a CPU's matrix product many times slower.
_NEGLIGIBLE = 1.5e-8
# Beyond this an exponential is below _NEGLIGIBLE; where it underflows, a CPU takes ten times as
# long.
_FAR = 20.0
# Kernel values at a time where a kernel has no factors: 4 MiB each, and a few such arrays.
_CHUNK = 2**20


def separable_sum(strength: Tensor, by_row: Tensor, by_col: Tensor) -> Tensor:
    """Sum kernels that are a product of one factor a row and one a column: a matrix product.

    Args:
        strength: [..., Q]
        by_row: [..., Q, rows]
        by_col: [..., Q, cols]

    Returns:
        [..., rows, cols]
    """
    out: Tensor = _SeparableSum.apply(strength, by_row, by_col)  # type: ignore[assignment]
    return out


class _SeparableSum(torch.autograd.Function):
    """The gradient of a strength is one product more; autograd scales a third array, for 25 % more.

    The factors are constants of autograd.
    """

    @staticmethod
    def forward(ctx: Any, strength: Tensor, by_row: Tensor, by_col: Tensor) -> Tensor:
        ctx.save_for_backward(by_row, by_col)
        with full_float32(by_row.device):
            return (by_row * strength[..., None]).mT @ by_col

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (gradient,), (by_row, by_col) = grad_outputs, ctx.saved_tensors
        with full_float32(by_row.device):
            return (by_col @ gradient.mT).mul_(by_row).sum(-1), None, None


@torch.no_grad()
def gaussian_profile(centres: Tensor, size: int, sigma: float) -> Tensor:
    """A Gaussian along one axis, 1 at the centre. [..., Q] -> [..., Q, size]."""
    exponent = _away(centres, size).mul_(0.5**0.5 / sigma).square_().clamp_(max=_FAR)
    return nn.functional.threshold(exponent.neg_().exp_(), _NEGLIGIBLE, 0.0, inplace=True)


def truncated_gaussian_profile(centres: Tensor, size: int, sigma: float) -> Tensor:
    """The users' Gaussian: int(6 sigma + 1) tokens, made odd, whose sum is 1 on a whole cell.

    Cut at the map's edges without restoring the sum. [..., Q] -> [..., Q, size]
    """
    radius = int(6 * sigma + 1) // 2
    table = torch.arange(-radius, radius + 1, dtype=torch.float64)
    total = (-0.5 * (table / sigma) ** 2).exp().sum().item()
    nearest = (centres + 0.5).floor()
    kernel = (-0.5 * (_away(centres, size) / sigma) ** 2).exp() / total
    return torch.where(_away(nearest, size).abs() <= radius, kernel, 0.0)


def hat_profile(centres: Tensor, size: int, radius: float) -> Tensor:
    """A straight fall from 1 at the centre to 0 at the radius. [..., Q] -> [..., Q, size]."""
    return (1 - _away(centres, size).abs() / radius).clamp(min=0.0)


def splat_profile(centres: Tensor, size: int) -> Tensor:
    """The users' linear split between the token that holds a place and the next one.

    A place is held by its whole part, cut towards 0: up to one token before the border the split is
    an extrapolation, 1.5 and -0.5 at -0.5. [..., Q] -> [..., Q, size]
    """
    ahead = -_away(centres.trunc(), size)  # 0 at the token, -1 at the next
    share = (centres - centres.trunc())[..., None]
    return torch.where(ahead == 0, 1 - share, torch.where(ahead == -1, share, 0.0))


def token_sum(strength: Tensor, tokens: Tensor, shape: tuple[int, int]) -> Tensor:
    """Add each strength to one token.

    Args:
        strength: [..., Q]
        tokens: Index of the token, row by row. [..., Q]
        shape: rows, cols

    Returns:
        [..., rows, cols]
    """
    empty = strength.new_zeros(*strength.shape[:-1], shape[0] * shape[1])
    return empty.scatter_add(-1, tokens, strength).unflatten(-1, shape)


def token_max(strength: Tensor, tokens: Tensor, shape: tuple[int, int]) -> Tensor:
    """Keep the largest strength, at least 0, of each token; arguments as `token_sum`."""
    empty = strength.new_zeros(*strength.shape[:-1], shape[0] * shape[1])
    return empty.scatter_reduce(-1, tokens, strength, "amax").unflatten(-1, shape)


def distance_sum(
    strength: Tensor,
    cells: Tensor,
    shape: tuple[int, int],
    *,
    rate: float,
    radius: float = float("inf"),
) -> Tensor:
    """Sum exp(-rate * distance), cut behind the radius.

    Distance has no factors, so Q * rows * cols values must be computed. They are made in chunks,
    forward and again backward, so that memory does not grow with Q.

    Args:
        strength: [..., Q]
        cells: (row, col); constants of autograd. [..., Q, 2]
        shape: rows, cols
        rate: Per token, > 0.
        radius: Tokens.

    Returns:
        [..., rows, cols]
    """

    def added(strength: Tensor, cells: Tensor) -> Tensor:
        return strength @ _distance_kernel(cells, shape, rate, radius)

    flat, places = strength.flatten(0, -2), cells.flatten(0, -3)
    maps = [strength.new_zeros(shape[0] * shape[1]) for _ in flat]
    for sample, queries in _chunks(places, shape):
        chunk = flat[sample, queries], places[sample, queries]
        more = checkpoint(added, *chunk, use_reentrant=False, preserve_rng_state=False)
        maps[sample] = maps[sample] + more
    return torch.stack(maps).view(*strength.shape[:-1], *shape)


def _chunks(cells: Tensor, shape: tuple[int, int]) -> list[tuple[int, slice]]:
    """Samples, and spans of their queries whose kernels fit a chunk; at least one each."""
    samples, queries = cells.shape[:2]
    step = max(_CHUNK // (shape[0] * shape[1]), 1)
    return [
        (sample, slice(first, first + step))
        for sample in range(samples)
        for first in range(0, max(queries, 1), step)
    ]


def _distance_kernel(cells: Tensor, shape: tuple[int, int], rate: float, radius: float) -> Tensor:
    """[q, 2] -> [q, rows * cols]."""
    rows, cols = (_away(cells[:, axis], size).square() for axis, size in enumerate(shape))
    distance = (rows[:, :, None] + cols[:, None, :]).flatten(1).sqrt_()
    outside = distance > radius if math.isfinite(radius) else None
    kernel = distance.mul_(-rate).exp_()
    kernel = nn.functional.threshold(kernel, _NEGLIGIBLE, 0.0, inplace=True)
    return kernel if outside is None else kernel.masked_fill_(outside, 0.0)


def _away(centres: Tensor, size: int) -> Tensor:
    """Signed distance of every token along one axis. [..., Q] -> [..., Q, size]."""
    tokens = torch.arange(size, device=centres.device, dtype=centres.dtype)
    return tokens - centres[..., None]
