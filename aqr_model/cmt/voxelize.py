"""Points to voxels through spconv, with one limit for training and one for testing."""

from collections.abc import Sequence

import torch
from spconv.pytorch.utils import PointToVoxel
from torch import Tensor, nn


class SpconvVoxelizer(nn.Module):
    """Group points into voxels; no parameters.

    spconv's generator is bound to a device and a voxel limit when it is made, so one is kept for
    each pair in use. Ranges that are no multiple of the voxel size are cut to whole voxels by
    spconv, as in training CMT.

    Args:
        voxel_size: Edge lengths x, y, z, metres.
        point_cloud_range: x, y, z minimum, then maximum, metres.
        max_num_points: Most points kept in a voxel.
        max_voxels: Most voxels of a sample, (training, testing).
        num_point_features: Columns of a point.

    Source: spconv 2.3 ``PointToVoxel``; CMT uses the same generator.
    """

    def __init__(
        self,
        *,
        voxel_size: Sequence[float],
        point_cloud_range: Sequence[float],
        max_num_points: int,
        max_voxels: Sequence[int] | int,
        num_point_features: int = 5,
    ) -> None:
        super().__init__()
        limits = (max_voxels, max_voxels) if isinstance(max_voxels, int) else tuple(max_voxels)
        if len(limits) != 2:
            raise ValueError(
                f"max_voxels must be one number or (training, testing), but got {max_voxels!r}"
            )
        self.voxel_size = tuple(voxel_size)
        self.point_cloud_range = tuple(point_cloud_range)
        self.max_num_points = max_num_points
        self.max_voxels = limits
        self.num_point_features = num_point_features
        self._generators: dict[tuple[torch.device, int], PointToVoxel] = {}

    def _generator(self, device: torch.device) -> PointToVoxel:
        limit = self.max_voxels[0] if self.training else self.max_voxels[1]
        key = (device, limit)
        if key not in self._generators:
            self._generators[key] = PointToVoxel(
                vsize_xyz=list(self.voxel_size),
                coors_range_xyz=list(self.point_cloud_range),
                num_point_features=self.num_point_features,
                max_num_voxels=limit,
                max_num_points_per_voxel=self.max_num_points,
                device=device,
            )
        return self._generators[key]

    @torch.no_grad()
    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Voxelise one sample.

        M voxels, K points a voxel, C point features.

        Args:
            points: x, y, z, then other features. [N, C]

        Returns:
            voxels: Points, zero-padded. [M, K, C]
            coordinates: z, y, x index. [M, 3]
            counts: Points in each voxel. [M]
        """
        # spconv hands out copies of the buffers that it fills again for the next sample.
        return self._generator(points.device)(points.float().contiguous())

    def __getstate__(self) -> dict:
        """Leave the generators behind: they are made anew where the module arrives."""
        state = super().__getstate__() if hasattr(super(), "__getstate__") else self.__dict__.copy()
        return {**state, "_generators": {}}
