"""Features scaled by the weight maps."""

import torch
from torch import Tensor, nn

from .weight_renderer import WeightMaps


class FeatureModulator(nn.Module):
    """Scale features by a map M: f' = f + (1 − r)(M − 1) f, which is f ((1 − r) M + r).

    Written as a change so that M = 1 returns f bit for bit, at any r; so does r = 1 at any M.
    `residual_weight` is a plain number that may be set at any time.

    Args:
        modulation_type: 'element_wise'.
        residual_weight: r, the share of the features that no map touches, in [0, 1].
        residual_connection: True; for none, set `residual_weight` to 0.
        normalize_weights: False; stretching a map to [0, 1] would move its neutral value.
        learnable_modulation: False.
        activation: 'none'.

    Raises:
        ValueError: If `residual_weight` is out of range or a variant is not there.

    Source: design section 3; defects D8, D9 of facts/cmt-facts.md.
    """

    def __init__(
        self,
        *,
        modulation_type: str = "element_wise",
        residual_weight: float = 0.7,
        residual_connection: bool = True,
        normalize_weights: bool = False,
        learnable_modulation: bool = False,
        activation: str = "none",
    ) -> None:
        super().__init__()
        _require("modulation_type", modulation_type, "element_wise")
        _require("learnable_modulation", learnable_modulation, False)
        _require("activation", activation, "none")
        _require("normalize_weights", normalize_weights, False)
        if not residual_connection:
            raise ValueError(
                "`residual_connection` must be True, but got False. For features that follow the"
                " map alone, set `residual_weight=0`."
            )
        if not 0.0 <= residual_weight <= 1.0:
            raise ValueError(f"`0 <= residual_weight <= 1` must hold, but got {residual_weight}.")
        self.modulation_type = modulation_type
        self.residual_weight = float(residual_weight)

    def max_gain(self, max_weight_clamp: float) -> float:
        """A = r + c (1 − r), the most that a map clamped at c can scale a feature by."""
        return self.residual_weight + max_weight_clamp * (1.0 - self.residual_weight)

    def forward(
        self, bev_features: Tensor, camera_features: Tensor, maps: WeightMaps
    ) -> tuple[Tensor, Tensor]:
        """Scale the features of both modalities.

        B batch, V views, C channels.

        Args:
            bev_features: Of LiDAR. [B, C, H, W]
            camera_features: Of all views, sample by sample. [B * V, C, h, w]
            maps: [B, H, W] and [B, V, h, w]

        Returns:
            The scaled features, in the shapes and types of the inputs.

        Raises:
            ValueError: If shapes disagree.
        """
        bev = self._scale(bev_features, maps.bev)
        return bev, self._scale(camera_features, maps.camera.flatten(0, 1))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.modulation_type}, residual_weight={self.residual_weight}"

    def _scale(self, features: Tensor, weight_map: Tensor) -> Tensor:
        """[N, C, H, W], [N, H, W] -> [N, C, H, W]."""
        rest = features.shape[:1] + features.shape[2:]
        if features.dim() != 4 or rest != weight_map.shape:
            raise ValueError(
                "Features must be [N, C, H, W] over a map [N, H, W], but got"
                f" {list(features.shape)} over {list(weight_map.shape)}."
            )
        change = ((1.0 - self.residual_weight) * (weight_map - 1.0)).to(features.dtype)
        return torch.addcmul(features, change[:, None], features)


def _require(name: str, value: object, supported: object) -> None:
    if value != supported:
        raise ValueError(
            f"`{name}` must be {supported!r}, but got {value!r}: the other variants of the"
            " modulator are not built yet. Leave it out."
        )
