"""The prediction branches of a task, all decoder layers at once."""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from mmcv.runner import BaseModule
from mmdet.models.builder import HEADS
from torch import Tensor, nn


class GroupLayerNorm1d(nn.Module):
    """LayerNorm over the channels of each group, at each position."""

    def __init__(self, channels: int, groups: int, eps: float = 1e-6) -> None:
        """Start as the plain normalisation."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.groups = groups
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise. [B, groups * c, Q]."""
        grouped = x.unflatten(1, (self.groups, -1))
        variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
        normed = ((grouped - mean) * (variance + self.eps).rsqrt()).flatten(1, 2)
        return normed * self.weight[:, None] + self.bias[:, None]


@HEADS.register_module()
class SeparateTaskHead(BaseModule):
    """Branches of 1-D convolutions over queries; decoder layers are channel groups.

    N decoder layers, B batch, Q queries, C channels.
    """

    def __init__(
        self,
        in_channels: int,
        heads: Mapping[str, tuple[int, int]],
        groups: int,
        head_conv: int = 64,
        final_kernel: int = 1,
        init_bias: float = -2.19,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        """Build the branches.

        Args:
            in_channels: C.
            heads: For each branch its output channels and number of convolutions.
            groups: N.
            head_conv: Hidden channels.
            final_kernel: Kernel size along the queries.
            init_bias: Initial bias of the class logits.
            init_cfg: mmcv's initialisation config.
        """
        super().__init__(init_cfg)
        self.heads = dict(heads)
        self.init_bias = init_bias
        for name, (channels, num_convs) in self.heads.items():
            widths = [in_channels] + [head_conv] * (num_convs - 1)
            layers: list[nn.Module] = []
            for c_in, c_out in itertools.pairwise(widths):
                layers += [
                    _conv(c_in, c_out, final_kernel, groups, bias=False),
                    GroupLayerNorm1d(c_out * groups, groups),
                    nn.ReLU(inplace=True),
                ]
            layers.append(_conv(widths[-1], channels, final_kernel, groups, bias=True))
            self.add_module(name, nn.Sequential(*layers))

    def init_weights(self) -> None:
        """Start class logits at the prior that focal loss expects."""
        super().init_weights()
        last = 3 * (self.heads["cls_logits"][1] - 1)  # each hidden convolution has norm and ReLU
        nn.init.constant_(self.get_parameter(f"cls_logits.{last}.bias"), self.init_bias)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Predict.

        Args:
            x: Decoder outputs. [N, B, Q, C]

        Returns:
            For each branch, [N, B, Q, channels].
        """
        num_layers = x.shape[0]
        channels_first = x.permute(1, 0, 3, 2).flatten(1, 2)
        return {
            name: self.get_submodule(name)(channels_first)
            .unflatten(1, (num_layers, -1))
            .permute(1, 0, 3, 2)
            for name in self.heads
        }


def _conv(c_in: int, c_out: int, kernel: int, groups: int, *, bias: bool) -> nn.Conv1d:
    return nn.Conv1d(
        c_in * groups, c_out * groups, kernel, padding=kernel // 2, groups=groups, bias=bias
    )
