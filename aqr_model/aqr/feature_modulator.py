"""Features scaled by the weight maps."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .schedules import read_schedule
from .semantics import AqrSemantics
from .weight_renderer import WeightMaps

# The share of a pixel's own value and of its map's mean.
_MIXES = {"element_wise": (1.0, 0.0), "channel_wise": (0.0, 1.0), "adaptive": (0.7, 0.3)}
_ACTIVATIONS = ("none", "sigmoid", "tanh", "relu")


class FeatureModulator(nn.Module):
    """Scale features by a map M: f' = f + (1 − r)(M' − 1) f, which is f ((1 − r) M' + r).

    M' is M after scale, bias and activation, which act on its distance to neutral, so that M = 1
    stays: M' = 1 + a(s (M − 1) + b), with a(0) = 0. Then `channel_wise` replaces it by its mean
    over the map of a sample (of a camera image), `adaptive` by 0.7 M' + 0.3 of that mean. Written
    as a change so that M = 1 returns f bit for bit, at any r; so does r = 1 at any M.

    With `semantics.background='zero'` M' = a(s M + b). With `semantics.residual='additive'`
    f' = f (M' + r).

    `residual_weight` is a plain number that may be set at any time.

    Args:
        modulation_type: 'element_wise', 'channel_wise' or 'adaptive'.
        residual_weight: r, the share of the features that no map touches, in [0, 1]; 0.7 unless a
            schedule starts elsewhere.
        residual_schedule: r over the epochs, see `schedules.read_schedule`; `set_epoch` applies it.
        residual_connection: True; for none, set `residual_weight` to 0.
        normalize_weights: Stretch each map to [0, 1] first (a constant one to 0.5). Only with
            `semantics.background='zero'`: it would move the neutral value of the others.
        learnable_modulation: Learn s and b, from 1 and 0.
        activation: a: 'none'; 'tanh'; 'sigmoid', which is 2 σ(d) − 1; 'relu', which leaves out what
            would push down. On a map of zero background the functions as they are called.
        semantics: See `AqrSemantics.from_config`; read are background and residual.

    Raises:
        ValueError: If a value is out of range or would have no effect.

    Source: design section 3; defects D8, D9 of facts/cmt-facts.md.
    """

    def __init__(
        self,
        *,
        modulation_type: str = "element_wise",
        residual_weight: float | None = None,
        residual_schedule: Mapping[str, Any] | None = None,
        residual_connection: bool = True,
        normalize_weights: bool = False,
        learnable_modulation: bool = False,
        activation: str = "none",
        semantics: AqrSemantics | Mapping[str, Any] | str | None = None,
    ) -> None:
        super().__init__()
        self.semantics = AqrSemantics.from_config(semantics)
        _require_one_of("modulation_type", modulation_type, tuple(_MIXES))
        _require_one_of("activation", activation, _ACTIVATIONS)
        if normalize_weights and self.semantics.background == "neutral":
            raise ValueError(
                "`normalize_weights` must be False, or the maps' neutral value 1 would move. Leave"
                " it out, or set `semantics.background` to 'zero'."
            )
        if not residual_connection:
            raise ValueError(
                "`residual_connection` must be True, but got False. For features that follow the"
                " map alone, set `residual_weight=0`."
            )
        self.modulation_type = modulation_type
        self.normalize_weights = normalize_weights
        self.activation = activation
        self.residual_schedule = (
            None if residual_schedule is None else read_schedule(residual_schedule)
        )
        self.residual_weight = self._first_residual(residual_weight)
        self.modulation_scale = self.modulation_bias = None
        if learnable_modulation:
            self.modulation_scale = nn.Parameter(torch.ones(1))
            self.modulation_bias = nn.Parameter(torch.zeros(1))

    def set_epoch(self, epoch: float, total_epochs: float) -> None:
        """Take today's residual weight from the schedule, if there is one."""
        if self.residual_schedule is not None:
            self.residual_weight = self.residual_schedule.at(epoch, total_epochs)

    @torch.no_grad()
    def max_gain(self, max_weight_clamp: float) -> float:
        """The gain where a whole map stands at the clamp c.

        It is A = r + c (1 − r), the most that such a map can scale a feature by, with neither
        activation nor learned numbers; c + r with an additive residual.
        """
        top = 1.0 if self.normalize_weights else max_weight_clamp
        if self.modulation_scale is None and self.activation == "none":
            return self._gain(top - 1.0)
        return self._gain(self._deviation(torch.tensor(top, dtype=torch.float64)).item())

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
        return (
            f"{self.modulation_type}, residual_weight={self.residual_weight},"
            f" activation={self.activation}"
        )

    def _scale(self, features: Tensor, weight_map: Tensor) -> Tensor:
        """[N, C, H, W], [N, H, W] -> [N, C, H, W]."""
        rest = features.shape[:1] + features.shape[2:]
        if features.dim() != 4 or rest != weight_map.shape:
            raise ValueError(
                "Features must be [N, C, H, W] over a map [N, H, W], but got"
                f" {list(features.shape)} over {list(weight_map.shape)}."
            )
        if self.normalize_weights:
            weight_map = _stretched(weight_map)
        change = self._change(self._mixed(self._deviation(weight_map))).to(features.dtype)
        return torch.addcmul(features, change[:, None], features)

    def _deviation(self, weight_map: Tensor) -> Tensor:
        """M' − 1 before it is mixed with its mean."""
        if self.semantics.background == "zero":
            return self._activated(self._scaled(weight_map)) - 1.0
        distance = self._activated(self._scaled(weight_map - 1.0))
        return 2 * distance - 1.0 if self.activation == "sigmoid" else distance

    def _scaled(self, values: Tensor) -> Tensor:
        if self.modulation_scale is None or self.modulation_bias is None:
            return values
        return values * self.modulation_scale + self.modulation_bias

    def _activated(self, values: Tensor) -> Tensor:
        return values if self.activation == "none" else getattr(torch, self.activation)(values)

    def _mixed(self, deviation: Tensor) -> Tensor:
        """Each pixel with its map's mean. [N, H, W] -> [N, H, W]."""
        own, shared = _MIXES[self.modulation_type]
        if not shared:
            return deviation
        mean = deviation.mean(dim=(1, 2), keepdim=True).expand_as(deviation)
        return own * deviation + shared * mean if own else mean

    def _change(self, deviation: Any) -> Any:
        """The gain less 1, of a number or a tensor."""
        if self.semantics.residual == "additive":
            return deviation + self.residual_weight
        return (1.0 - self.residual_weight) * deviation

    def _gain(self, deviation: float) -> float:
        return 1.0 + self._change(deviation)

    def _first_residual(self, given: float | None) -> float:
        """The residual weight that training starts with."""
        default = 0.7
        if self.residual_schedule is not None:
            default = self.residual_schedule.at(0.0, math.inf)
            if given not in (None, default):
                raise ValueError(
                    f"`residual_weight` ({given}) must be where `residual_schedule` starts"
                    f" ({default}), which replaces it. Leave it out."
                )
            _check_residuals(self.residual_schedule.extremes)
        _check_residuals((default if given is None else given,))
        return float(default if given is None else given)


def _stretched(weight_map: Tensor) -> Tensor:
    """Each map from its minimum to its maximum. [N, H, W] -> [N, H, W]."""
    low, high = weight_map.amin((1, 2), keepdim=True), weight_map.amax((1, 2), keepdim=True)
    flat = high <= low
    return torch.where(flat, 0.5, (weight_map - low) / torch.where(flat, 1.0, high - low))


def _check_residuals(values: tuple[float, ...]) -> None:
    for value in values:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"`0 <= residual_weight <= 1` must hold, but got {value}.")


def _require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}, but got {value!r}."
        )
