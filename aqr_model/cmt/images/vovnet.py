"""VoVNet with effective squeeze-excitation, the camera backbone of CMT's larger model."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from mmcv.runner import BaseModule
from mmdet.models import BACKBONES
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, kw_only=True)
class VoVSpec:
    """Sizes of a VoVNet.

    Attributes:
        stem: Output channels of the three convolutions before the stages.
        hidden: Channels of the 3x3 convolutions, by stage.
        out: Channels after aggregation, by stage.
        blocks: Aggregation blocks, by stage.
        layers: 3x3 convolutions of a block.
    """

    stem: tuple[int, int, int]
    hidden: tuple[int, int, int, int]
    out: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]
    layers: int


SPECS = {
    "V-99-eSE": VoVSpec(
        stem=(64, 64, 128),
        hidden=(128, 160, 192, 224),
        out=(256, 512, 768, 1024),
        blocks=(1, 3, 9, 3),
        layers=5,
    )
}
_STAGES = ("stage2", "stage3", "stage4", "stage5")


@BACKBONES.register_module()
class VoVNet(BaseModule):
    """One-shot aggregation: a block reads all of its layers at once, at its end.

    Strides: stem and stage2 4, then 8, 16, 32.

    Args:
        spec_name: A key of ``SPECS``.
        input_ch: Channels of the images.
        out_features: Parts whose output is returned: ``stem``, ``stage2`` to ``stage5``.
        frozen_stages: Parts that do not learn, from the front: -1 none, 0 the stem, i the stem and
            the first i stages. Their batch norms keep their statistics.
        norm_eval: Batch norms keep their statistics everywhere.
        with_cp: Recompute each block in the backward pass instead of keeping its activations.
        init_cfg: mmcv's initialisation config.

    Raises:
        ValueError: If a name or a number is not among those above.

    Source: An Energy and GPU-Computation Efficient Backbone Network, CVPRW 2019, and CenterMask,
    CVPR 2020; junjie18/CMT, commit d3b1d78, ``models/backbones/vovnet.py``, for the names.
    """

    def __init__(
        self,
        spec_name: str,
        input_ch: int = 3,
        out_features: Sequence[str] = ("stage4", "stage5"),
        frozen_stages: int = -1,
        norm_eval: bool = True,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        _require("spec_name", [spec_name], list(SPECS))
        _require("out_features", list(out_features), ["stem", *_STAGES])
        _require("frozen_stages", [frozen_stages], list(range(-1, len(_STAGES) + 1)))
        spec = SPECS[spec_name]
        self.out_features = tuple(out_features)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.stem = _stem(input_ch, spec.stem)
        channels = (spec.stem[-1], *spec.out)
        for i, (name, (c_in, c_out)) in enumerate(zip(_STAGES, pairwise(channels), strict=True)):
            blocks = [
                (
                    f"OSA{i + 2}_{block + 1}",
                    AggregationBlock(
                        c_in if block == 0 else c_out,
                        hidden=spec.hidden[i],
                        c_out=c_out,
                        layers=spec.layers,
                        name=f"OSA{i + 2}_{block + 1}",
                        with_cp=with_cp,
                    ),
                )
                for block in range(spec.blocks[i])
            ]
            pooling = [("Pooling", nn.MaxPool2d(3, stride=2, ceil_mode=True))] if i else []
            self.add_module(name, nn.Sequential(OrderedDict([*pooling, *blocks])))
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run all parts.

        Args:
            x: Normalised images. [N, input_ch, H, W]

        Returns:
            The outputs that ``out_features`` names, front to back. Each [N, C_i, H / s_i, W / s_i],
            rounded up
        """
        outputs = []
        for name in ("stem", *_STAGES):
            x = self.get_submodule(name)(x)
            if name in self.out_features:
                outputs.append(x)
        return tuple(outputs)

    def train(self, mode: bool = True) -> "VoVNet":
        """Set the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        self._freeze()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        for name in ("stem", *_STAGES)[: self.frozen_stages + 1]:
            self.get_submodule(name).eval().requires_grad_(False)


class AggregationBlock(nn.Module):
    """3x3 convolutions in a row, all of their outputs joined, weighed by channel.

    A block whose width does not change adds its input.
    """

    def __init__(
        self, c_in: int, *, hidden: int, c_out: int, layers: int, name: str, with_cp: bool
    ) -> None:
        super().__init__()
        self.adds_input = c_in == c_out
        self.with_cp = with_cp
        self.layers = nn.ModuleList(
            _conv(c_in if i == 0 else hidden, hidden, f"{name}_{i}") for i in range(layers)
        )
        joined = c_in + layers * hidden
        self.concat = _conv(joined, c_out, f"{name}_concat", kernel=1)
        self.ese = ChannelAttention(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block. [N, c_in, H, W] -> [N, c_out, H, W]."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(self._aggregate, x, use_reentrant=False)
        return self._aggregate(x)

    def _aggregate(self, x: Tensor) -> Tensor:
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        out = self.ese(self.concat(torch.cat(outputs, dim=1)))
        return out + x if self.adds_input else out


class ChannelAttention(nn.Module):
    """Effective squeeze-excitation: one layer on the mean of each channel, hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels. [N, C, H, W] -> [N, C, H, W]."""
        return x * nn.functional.hardsigmoid(self.fc(x.mean(dim=(2, 3), keepdim=True)))


def _stem(c_in: int, channels: tuple[int, int, int]) -> nn.Sequential:
    parts = OrderedDict()
    for i, (channel, stride) in enumerate(zip(channels, (2, 1, 2), strict=True)):
        parts.update(_conv(c_in, channel, f"stem_{i + 1}", stride=stride).named_children())
        c_in = channel
    return nn.Sequential(parts)


def _conv(c_in: int, c_out: int, name: str, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU, by the names of public checkpoints."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    parts = {"conv": conv, "norm": nn.BatchNorm2d(c_out), "relu": nn.ReLU(inplace=True)}
    return nn.Sequential(OrderedDict((f"{name}/{part}", module) for part, module in parts.items()))


def _require(name: str, values: list, known: list) -> None:
    wrong = [value for value in values if value not in known]
    if wrong or not values:
        raise ValueError(f"`{name}` must be among {known}, but got {wrong or values}.")
