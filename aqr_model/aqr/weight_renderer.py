"""Query weights drawn as maps over the BEV grid and the camera features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .projection import Projection
from .weight_generator import QueryWeights, check_feature_shapes

_METHODS = ("gaussian",)
# Six sigma out. Beside a 1 in float32 less than this is nothing, and the denormal numbers further
# out make a CPU's matrix product many times slower.
_NEGLIGIBLE = 1.5e-8


class WeightMaps(NamedTuple):
    """Maps in [0, clamp]; 1 changes nothing. B batch, V views."""

    bev: Tensor  # [B, H, W]
    camera: Tensor  # [B, V, h, w]


class WeightRenderer(nn.Module):
    """Draw M(p) = clamp(1 + Σ_q (2 w_q − 1) k_q(p), 0, c) around the queries' projections.

    k_q is a Gaussian of peak 1 at the exact projection, so its height does not depend on sigma.
    Where no query reaches, M is 1. The gradient passes wherever 0 ≤ M ≤ c, bounds included; where
    the sum lies beyond a bound it is 0, like the map's own response to the weights there.

    No parameters and no buffers: a checkpoint does not depend on sigma. `gaussian_sigma` and
    `max_weight_clamp` are plain numbers that may be set at any time.

    Args:
        render_method: 'gaussian'.
        gaussian_sigma: Of the kernel, feature cells, > 0.
        max_weight_clamp: c, the largest value of a map, >= 1.
        normalize_weights: The users' name for clamping; maps are always clamped, so True.
        min_weight_threshold: Not read: with a neutral background a low weight says as much as a
            high one. Accepted at its old default.
        bilinear_radius: Not read by 'gaussian'; accepted at its old default.
        distance_decay: Not read by 'gaussian'; accepted at its old default.
        bev_feature_shape: (H, W) that the BEV features must have; not checked if left out.
        pers_feature_shape: (V, h, w) that the camera features must have.

    Raises:
        ValueError: If a value is out of range or would have no effect.

    Source: design section 3; defects D1-D3, D7, D8, D10-D12 of facts/cmt-facts.md.
    """

    def __init__(
        self,
        *,
        render_method: str = "gaussian",
        gaussian_sigma: float = 1.0,
        max_weight_clamp: float = 1.5,
        normalize_weights: bool = True,
        min_weight_threshold: float = 0.01,
        bilinear_radius: float = 1.5,
        distance_decay: float = 0.8,
        bev_feature_shape: Sequence[int] | None = None,
        pers_feature_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        _check_method(render_method)
        _check_inert("normalize_weights", normalize_weights, True)
        _check_inert("min_weight_threshold", min_weight_threshold, 0.01)
        _check_inert("bilinear_radius", bilinear_radius, 1.5)
        _check_inert("distance_decay", distance_decay, 0.8)
        if not gaussian_sigma > 0:
            raise ValueError(f"`gaussian_sigma > 0` must hold, but got {gaussian_sigma}.")
        if not max_weight_clamp >= 1:
            raise ValueError(
                "`max_weight_clamp >= 1` must hold, or the neutral map would be cut, but got"
                f" {max_weight_clamp}."
            )
        self.render_method = render_method
        self.gaussian_sigma = float(gaussian_sigma)
        self.max_weight_clamp = float(max_weight_clamp)
        self.bev_feature_shape = bev_feature_shape
        self.pers_feature_shape = pers_feature_shape

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
        views = projection.camera_shape[0]
        # fp16 would move cells beyond 2048 and lose small sums.
        with torch.autocast(weights.lidar.device.type, enabled=False):
            bev = self._draw(
                weights.lidar, projection.bev_cells, projection.bev_valid, projection.bev_shape
            )
            camera = self._draw(
                weights.camera[:, None].expand(-1, views, -1),
                projection.camera_cells,
                projection.camera_visible,
                projection.camera_shape[1:],
            )
        return WeightMaps(bev=bev, camera=camera)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return (
            f"{self.render_method}, gaussian_sigma={self.gaussian_sigma},"
            f" max_weight_clamp={self.max_weight_clamp}"
        )

    def _draw(self, weights: Tensor, cells: Tensor, seen: Tensor, shape: tuple[int, int]) -> Tensor:
        """One map a leading index. [..., Q], [..., Q, 2], [..., Q] -> [..., rows, cols].

        A Gaussian is a product of one factor a row and one a column, so the sum over queries is a
        matrix product.
        """
        # Both masks: a place that means nothing must reach neither the value nor the gradient.
        strength = torch.where(seen, 2 * weights.float() - 1, 0.0)
        cells = torch.where(seen[..., None], cells.float(), 0.0)
        by_row = self._profile(cells[..., 0], shape[0]) * strength[..., None]
        by_col = self._profile(cells[..., 1], shape[1])
        return (1 + by_row.mT @ by_col).clamp(0.0, self.max_weight_clamp)

    def _profile(self, centres: Tensor, size: int) -> Tensor:
        """The kernel along one axis. [..., Q] -> [..., Q, size]."""
        tokens = torch.arange(size, device=centres.device, dtype=centres.dtype)
        kernel = (-0.5 * ((tokens - centres[..., None]) / self.gaussian_sigma) ** 2).exp()
        return nn.functional.threshold(kernel, _NEGLIGIBLE, 0.0)


def _check_method(render_method: str) -> None:
    if render_method not in _METHODS:
        raise ValueError(
            f"`render_method` must be one of {', '.join(map(repr, _METHODS))}, but got"
            f" {render_method!r}."
        )


def _check_inert(name: str, value: float, accepted: float) -> None:
    if value != accepted:
        raise ValueError(
            f"`{name}` has no effect on the maps and must be {accepted}, but got {value}. Leave it"
            " out."
        )
