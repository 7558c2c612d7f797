"""GridMask: hide a regular grid of squares in the training images."""

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
        if not self.training or torch.rand(()).item() > self.probability:
            return images
        height, width = images.shape[-2:]
        period = int(torch.randint(2, height, ()))
        kept = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        rows = self._kept_lines(height, period, kept, images.device)
        columns = self._kept_lines(width, period, kept, images.device)
        return images * (rows[:, None] | columns[None, :])

    @staticmethod
    def _kept_lines(length: int, period: int, kept: int, device: torch.device) -> Tensor:
        phase = int(torch.randint(0, period, ()))  # drawn on the host: nothing waits for it
        return (torch.arange(length, device=device) + phase) % period < kept
