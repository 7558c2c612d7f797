"""Query weights drawn as maps over the BEV grid and the camera features."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import kernels
from .crossings import constant
from .formats import autocast
from .projection import Projection
from .schedules import read_schedule
from .semantics import AqrSemantics
from .weight_generator import QueryWeights, check_feature_shapes

_LOG = logging.getLogger(__name__)
# The number that each method reads, of which the others say nothing.
_METHODS = {
    "gaussian": "gaussian_sigma",
    "bilinear": "bilinear_radius",
    "direct": None,
    "distance_weighted": "distance_decay",
}
_DEFAULTS = {"gaussian_sigma": 1.0, "bilinear_radius": 1.5, "distance_decay": 0.8}
_THRESHOLD = 0.01
# The users' distance kernel reaches over this share of the map's shorter side.
_DISTANCE_SHARE = 0.2

# Where reading a value makes nobody wait, so that shapes may follow from what is seen.
_HOSTS = ("cpu",)


class WeightMaps(NamedTuple):
    """Maps in [0, clamp]; 1 changes nothing. B batch, V views."""

    bev: Tensor  # [B, H, W]
    camera: Tensor  # [B, V, h, w]


class WeightRenderer(nn.Module):
    """Draw M(p) = clamp(1 + Σ_q (2 w_q − 1) k_q(p), 0, c) around the queries' projections.

    k_q is 1 at the exact projection and falls off by the render method, in feature cells:
    'gaussian' by `gaussian_sigma`; 'bilinear' straight to 0 at `bilinear_radius` along each axis;
    'distance_weighted' by the factor `distance_decay` with every cell; 'direct' is the nearest
    token alone. Where no query reaches, M is 1. The gradient passes wherever 0 ≤ M ≤ c, bounds
    included; where the sum lies beyond a bound it is 0, like the map's own response to the weights
    there.

    No parameters and no buffers: a checkpoint does not depend on sigma. The numbers may be set at
    any time.

    Args:
        render_method: 'gaussian', 'bilinear', 'direct' or 'distance_weighted'.
        gaussian_sigma: Of the Gaussian, feature cells, > 0.
        bilinear_radius: Half-width of the hat, feature cells, >= 1: from there on some token always
            lies under it.
        distance_decay: What a cell of distance leaves of the kernel, in (0, 1). With
            `semantics.kernel='sum'`, > 0: exp(−d / (decay · 0.2 · shorter side)), cut at
            0.2 · shorter side.
        max_weight_clamp: c, the largest value of a map, >= 1; 1.5 unless a schedule starts
            elsewhere.
        clamp_schedule: c over the epochs, see `schedules.read_schedule`; `set_epoch` applies it.
        clamp_quantile: Adaptive clamp, in (0, 1]: the bound of each sample and modality is this
            quantile of the map's values above the background, at most c. 1 is c itself.
        normalize_weights: The users' name for clamping. False leaves maps without upper bound; only
            with `semantics.background='zero'`.
        min_weight_threshold: Queries and map values below it count as 0. Only with
            `semantics.background='zero'`: before a neutral background a low weight says as much as
            a high one.
        bev_feature_shape: (H, W) that the BEV features must have; not checked if left out.
        pers_feature_shape: (V, h, w) that the camera features must have.
        semantics: See `AqrSemantics.from_config`; read are kernel, background, cells, gradient and
            clamped.

    Raises:
        ValueError: If a value is out of range or would have no effect.

    Source: design section 3; defects D1-D3, D7, D8, D10-D12 of facts/cmt-facts.md.
    """

    def __init__(
        self,
        *,
        render_method: str = "gaussian",
        gaussian_sigma: float = _DEFAULTS["gaussian_sigma"],
        bilinear_radius: float = _DEFAULTS["bilinear_radius"],
        distance_decay: float = _DEFAULTS["distance_decay"],
        max_weight_clamp: float | None = None,
        clamp_schedule: Mapping[str, Any] | None = None,
        clamp_quantile: float = 1.0,
        normalize_weights: bool = True,
        min_weight_threshold: float = _THRESHOLD,
        bev_feature_shape: Sequence[int] | None = None,
        pers_feature_shape: Sequence[int] | None = None,
        semantics: AqrSemantics | Mapping[str, Any] | str | None = None,
    ) -> None:
        super().__init__()
        self.semantics = AqrSemantics.from_config(semantics)
        self.render_method = render_method
        self.gaussian_sigma = float(gaussian_sigma)
        self.bilinear_radius = float(bilinear_radius)
        self.distance_decay = float(distance_decay)
        self.clamp_quantile = float(clamp_quantile)
        self.normalize_weights = normalize_weights
        self.min_weight_threshold = float(min_weight_threshold)
        self.bev_feature_shape = bev_feature_shape
        self.pers_feature_shape = pers_feature_shape
        self.clamp_schedule = None if clamp_schedule is None else read_schedule(clamp_schedule)
        self.max_weight_clamp = self._first_clamp(max_weight_clamp)
        self._check()

    def set_epoch(self, epoch: float, total_epochs: float) -> None:
        """Take today's clamp from the schedule, if there is one."""
        if self.clamp_schedule is not None:
            self.max_weight_clamp = self.clamp_schedule.at(epoch, total_epochs)

    def forward(self, weights: QueryWeights, projection: Projection) -> WeightMaps:
        """Draw both maps.

        B batch, Q queries, V views.

        Args:
            weights: In (0, 1). [B, Q] each
            projection: Where the queries lie. A query is drawn where it is valid, and into every
                view that sees it; elsewhere it adds exactly nothing.

        Returns:
            The maps, float32.

        Raises:
            ValueError: If the shapes that the config declares are not those of the features.
        """
        check_feature_shapes(projection, self.bev_feature_shape, self.pers_feature_shape)
        return WeightMaps(
            bev=self._bev(
                weights.lidar, projection.bev_cells, projection.bev_valid, projection.bev_shape
            ),
            camera=self._camera(
                weights.camera,
                projection.camera_cells,
                projection.camera_visible,
                projection.camera_shape,
            ),
        )

    def render_bev_weights(self, query_weights: Tensor, pts_bev: Tensor) -> Tensor:
        """Draw the BEV map from cells, as the users' code calls it.

        B batch, Q queries.

        Args:
            query_weights: [B, Q]
            pts_bev: (row, col) on a grid of `bev_feature_shape`; a query whose place is not finite
                is left out. [B, Q, 2]

        Returns:
            [B, H, W]

        Raises:
            ValueError: Without `bev_feature_shape`.
        """
        rows, cols = _declared("bev_feature_shape", self.bev_feature_shape)
        return self._bev(query_weights, pts_bev, pts_bev.isfinite().all(-1), (rows, cols))

    def render_perspective_weights(self, query_weights: Tensor, pts_pers: Tensor) -> Tensor:
        """Draw the camera maps from one view and cell a query, as the users' code calls it.

        B batch, Q queries, V views.

        Args:
            query_weights: [B, Q]
            pts_pers: (view, row, col) in maps of `pers_feature_shape`; a query whose place is not
                finite is left out. [B, Q, 3]

        Returns:
            [B, V, h, w]

        Raises:
            ValueError: Without `pers_feature_shape`.
        """
        views, rows, cols = _declared("pers_feature_shape", self.pers_feature_shape)
        numbers = torch.arange(views, device=pts_pers.device)[:, None]
        seen = (pts_pers[:, None, :, 0] == numbers) & pts_pers.isfinite().all(-1)[:, None]
        cells = pts_pers[:, None, :, 1:].expand(-1, views, -1, -1)
        return self._camera(query_weights, cells, seen, (views, rows, cols))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        number = _METHODS[self.render_method]
        shown = f", {number}={getattr(self, number)}" if number else ""
        return f"{self.render_method}{shown}, max_weight_clamp={self.max_weight_clamp}"

    def _bev(self, weights: Tensor, cells: Tensor, seen: Tensor, shape: tuple[int, int]) -> Tensor:
        drawn = self._draw(weights, cells, seen, shape)
        return self._bounded(drawn, clamped=self.normalize_weights)

    def _camera(
        self, weights: Tensor, cells: Tensor, seen: Tensor, shape: tuple[int, int, int]
    ) -> Tensor:
        each = weights[:, None].expand(-1, shape[0], -1)
        if weights.device.type in _HOSTS:
            each, cells, seen = _seen_first(each, cells, seen)
        drawn = self._draw(each, cells, seen, shape[1:])
        both = self.semantics.clamped == "both"
        return self._bounded(drawn, clamped=self.normalize_weights and both)

    def _draw(self, weights: Tensor, cells: Tensor, seen: Tensor, shape: tuple[int, int]) -> Tensor:
        """Sum the kernels. [..., Q], [..., Q, 2], [..., Q] -> [..., rows, cols]."""
        weights = weights.detach() if self.semantics.gradient == "blocked" else weights
        # fp16 would move cells beyond 2048 and lose small sums.
        with autocast(weights.device, None):
            weights, cells = weights.float(), cells.float()
            if self.semantics.background == "zero":
                seen = seen & (weights >= self.min_weight_threshold)
                strength = weights
            else:
                strength = 2 * weights - 1
            # Both masks: a place that means nothing must reach neither the value nor the gradient.
            cells = torch.where(seen[..., None], cells, 0.0)
            return self._sum(torch.where(seen, strength, 0.0), cells, shape)

    def _sum(self, strength: Tensor, cells: Tensor, shape: tuple[int, int]) -> Tensor:
        """[..., Q], [..., Q, 2] -> [..., rows, cols]."""
        summed = self.semantics.kernel == "sum"
        if self.render_method == "distance_weighted":
            reach = _DISTANCE_SHARE * min(shape) if summed else math.inf
            decay = self.distance_decay
            rate = 1 / (reach * decay) if summed else -math.log(decay)
            return kernels.distance_sum(strength, cells, shape, rate=rate, radius=reach)
        if self.render_method == "bilinear":
            if summed:  # the token that holds a place and the next, where both exist
                strength = torch.where(_inside(cells.trunc(), shape, margin=1), strength, 0.0)
            by_row, by_col = (
                kernels.splat_profile(cells[..., axis], size)
                if summed
                else kernels.hat_profile(cells[..., axis], size, self.bilinear_radius)
                for axis, size in enumerate(shape)
            )
            return kernels.separable_sum(strength, by_row, by_col)
        if self.semantics.cells == "floored":
            # As Python's int(): up to one token before the border a place is the first token's.
            cells = cells.trunc()
            strength = torch.where(_inside(cells, shape, margin=0), strength, 0.0)
        if self.render_method == "direct":
            return self._at_tokens(strength, (cells + 0.5).floor(), shape)
        profile = kernels.truncated_gaussian_profile if summed else kernels.gaussian_profile
        by_row, by_col = (
            profile(cells[..., axis], size, self.gaussian_sigma) for axis, size in enumerate(shape)
        )
        return kernels.separable_sum(strength, by_row, by_col)

    def _at_tokens(self, strength: Tensor, tokens: Tensor, shape: tuple[int, int]) -> Tensor:
        """[..., Q], [..., Q, 2] -> [..., rows, cols]."""
        # A place at an image's far edge is nearest to a token that would be one past the last.
        strength = torch.where(_inside(tokens, shape, margin=-1), strength, 0.0)
        last = constant(shape, tokens) - 1
        row, col = tokens.clamp(min=0).minimum(last).long().unbind(-1)
        largest = self.semantics.background == "zero"
        draw = kernels.token_max if largest else kernels.token_sum
        return draw(strength, row * shape[1] + col, shape)

    def _bounded(self, drawn: Tensor, *, clamped: bool) -> Tensor:
        """Background, threshold and clamp: the one place. [B, ...] -> [B, ...]."""
        background = 0.0 if self.semantics.background == "zero" else 1.0
        weight_map = drawn + background
        if not clamped:
            return weight_map.clamp(min=0.0)
        if self.semantics.background == "zero":
            weight_map = torch.where(weight_map < self.min_weight_threshold, 0.0, weight_map)
        weight_map = weight_map.clamp(0.0, self.max_weight_clamp)
        if self.clamp_quantile < 1:
            return weight_map.clamp(max=self._bounds(weight_map.detach(), background))
        return weight_map

    def _bounds(self, weight_map: Tensor, background: float) -> Tensor:
        """The quantile of each sample's values above the background. [B, ...] -> [B, 1, ...]."""
        above = weight_map.masked_fill(weight_map <= background, torch.nan).flatten(1)
        # Beyond c nothing is left to cut, so c may stand in where nothing rises.
        bounds = above.nanquantile(self.clamp_quantile, dim=1).nan_to_num(self.max_weight_clamp)
        return bounds.view(-1, *[1] * (weight_map.dim() - 1))

    def _first_clamp(self, given: float | None) -> float:
        """The clamp that training starts with."""
        default = 1.5
        if self.clamp_schedule is not None:
            default = self.clamp_schedule.at(0.0, math.inf)
            if given not in (None, default):
                raise ValueError(
                    f"`max_weight_clamp` ({given}) must be where `clamp_schedule` starts"
                    f" ({default}), which replaces it. Leave it out."
                )
            _check_clamps(self.clamp_schedule.extremes)
        _check_clamps([default if given is None else given])
        return float(default if given is None else given)

    def _check(self) -> None:
        if self.render_method not in _METHODS:
            raise ValueError(
                f"`render_method` must be one of {', '.join(map(repr, _METHODS))}, but got"
                f" {self.render_method!r}."
            )
        read = _METHODS[self.render_method]
        if self.render_method == "bilinear" and self.semantics.kernel == "sum":
            read = None  # the users' splat has no width
        for name, default in _DEFAULTS.items():
            if name != read and getattr(self, name) != default:
                _LOG.warning(
                    "`%s` (%s) has no effect with `render_method=%r` and `semantics.kernel=%r`.",
                    name,
                    getattr(self, name),
                    self.render_method,
                    self.semantics.kernel,
                )
        self._check_ranges(read)
        if self.semantics.background == "neutral":
            _check_inert("normalize_weights", self.normalize_weights, True)
            _check_inert("min_weight_threshold", self.min_weight_threshold, _THRESHOLD)

    def _check_ranges(self, read: str | None) -> None:
        if read == "gaussian_sigma" and not self.gaussian_sigma > 0:
            raise ValueError(f"`gaussian_sigma > 0` must hold, but got {self.gaussian_sigma}.")
        if read == "bilinear_radius" and not self.bilinear_radius >= 1:
            raise ValueError(f"`bilinear_radius >= 1` must hold, but got {self.bilinear_radius}.")
        most = math.inf if self.semantics.kernel == "sum" else 1.0
        if read == "distance_decay" and not 0 < self.distance_decay < most:
            raise ValueError(
                f"`0 < distance_decay < {most}` must hold, but got {self.distance_decay}."
            )
        if not 0 < self.clamp_quantile <= 1:
            raise ValueError(f"`0 < clamp_quantile <= 1` must hold, but got {self.clamp_quantile}.")
        if not self.min_weight_threshold >= 0:
            raise ValueError(
                f"`min_weight_threshold >= 0` must hold, but got {self.min_weight_threshold}."
            )
        if self.clamp_quantile < 1 and not self.normalize_weights:
            raise ValueError("`clamp_quantile` below 1 needs `normalize_weights=True`.")


def _inside(tokens: Tensor, shape: tuple[int, int], *, margin: int) -> Tensor:
    """Whole places on a map less a margin at its far edges. [..., 2] -> [...]."""
    limits = constant(shape, tokens) - margin
    return ((tokens >= 0) & (tokens < limits)).all(-1)


def _declared(name: str, shape: Sequence[int] | None) -> Sequence[int]:
    if shape is None:
        raise ValueError(f"`{name}` must be given to draw without features.")
    return shape


def _check_clamps(values: Sequence[float]) -> None:
    if not all(value >= 1 for value in values):
        raise ValueError(
            "`max_weight_clamp >= 1` must hold, or the neutral map would be cut, but got"
            f" {min(values)}."
        )


def _check_inert(name: str, value: float, accepted: float) -> None:
    if value != accepted:
        raise ValueError(
            f"`{name}` has no effect on maps with a neutral background and must be {accepted}, but"
            f" got {value}. Leave it out, or set `semantics.background` to 'zero'."
        )


def _seen_first(weights: Tensor, cells: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Drop queries that a view does not see, as far as all views can: five of six.

    Their number decides a shape; on a GPU, whose products are fast, the host would wait for it.
    [..., Q], [..., Q, 2], [..., Q]
    """
    most = int(seen.sum(-1).max()) if seen.numel() else 0
    order = seen.byte().argsort(dim=-1, descending=True, stable=True)[..., :most]
    places = order[..., None].expand(*order.shape, 2)
    return weights.gather(-1, order), cells.gather(-2, places), seen.gather(-1, order)
