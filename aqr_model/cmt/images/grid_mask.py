"""GridMask: hide a regular grid of squares in the training images."""

import numpy as np
import torch
from torch import Tensor, nn


class GridMask(nn.Module):
    """Zero a grid of squares, the same for all images of a batch, in a share of the batches.

    Args:
        probability: Share of the training batches that are masked.
        ratio: Visible part of each period, per axis; squares of ``1 - ratio`` of the period are
            hidden.

    Source: Chen et al., GridMask Data Augmentation, 2020; CMT's setting (both axes, mode 1, no
    rotation).
    """

    def __init__(self, probability: float = 0.7, ratio: float = 0.5) -> None:
        super().__init__()
        self.probability = probability
        self.ratio = ratio

    def forward(self, images: Tensor) -> Tensor:
        """Mask images while training.

        Args:
            images: [N, C, H, W]

        Returns:
            The images, or their masked copy. [N, C, H, W]
        """
        if not self.training or np.random.rand() > self.probability:
            return images
        height, width = images.shape[-2:]
        period = np.random.randint(2, height)
        visible = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        rows = _visible_lines(height, period, visible, images.device)
        columns = _visible_lines(width, period, visible, images.device)
        return images * (rows[:, None] | columns[None, :])


def _visible_lines(length: int, period: int, visible: int, device: torch.device) -> Tensor:
    """Lines of an image that a grid leaves visible; its phase is drawn. [length].

    The public code cuts the grid out of the middle of a canvas half as long again. Its first period
    begins at the phase and only whole periods follow, so more is hidden near the borders than a
    grid without end would hide.
    """
    canvas = int(1.5 * length)
    phase = np.random.randint(period)  # drawn on the host: nothing waits for it
    place = torch.arange(length, device=device) + (canvas - length) // 2 - phase
    inside = (place >= 0) & (place < canvas // period * period)
    return inside & (place % period < visible)
