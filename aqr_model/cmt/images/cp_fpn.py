"""The feature pyramid of CMT and PETR: only the finest level gets an output convolution."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmcv.runner import BaseModule
from mmdet.models import NECKS
from torch import Tensor, nn


@NECKS.register_module()
class CPFPN(BaseModule):
    """A feature pyramid whose coarser levels are the plain lateral maps.

    Its convolutions have neither norm nor activation: features of both signs leave it.

    Args:
        in_channels: Channels of each input level, finest first.
        out_channels: Channels of every output level.
        num_outs: Output levels; must equal the number of inputs.

    Source: junjie18/CMT, commit d3b1d78, ``models/necks/cp_fpn.py``, whose ``act_cfg`` is None.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        init_cfg: dict | None = None,
    ) -> None:
        init_cfg = init_cfg or dict(type="Xavier", layer="Conv2d", distribution="uniform")
        super().__init__(init_cfg)
        if num_outs != len(in_channels):
            raise ValueError(
                f"num_outs == len(in_channels) must hold, but got (num_outs={num_outs}, "
                f"in_channels={list(in_channels)}); extra levels are not part of CMT"
            )
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, act_cfg=None) for channels in in_channels
        )
        self.fpn_convs = nn.ModuleList(
            [ConvModule(out_channels, out_channels, 3, padding=1, act_cfg=None)]
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Merge levels from the coarsest down.

        Args:
            inputs: Backbone maps, finest first. Each [N, in_channels[i], H_i, W_i]

        Returns:
            One map a level. Each [N, out_channels, H_i, W_i]
        """
        if len(inputs) != len(self.lateral_convs):
            raise ValueError(
                f"{len(self.lateral_convs)} levels must come in, but got {len(inputs)}; "
                "make the backbone's out_indices match the neck's in_channels"
            )
        levels = [conv(level) for conv, level in zip(self.lateral_convs, inputs, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            size = levels[i - 1].shape[-2:]
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=size, mode="nearest")
        return (self.fpn_convs[0](levels[0]), *levels[1:])
