"""Where the queries lie on the BEV grid and in each camera's feature map.

Cells are counted so that whole numbers are token centres. On the BEV grid token i covers
[i, i + 1) cells of the range, its centre half a cell in. In a camera token i sees the pixels around
i * stride: an odd, symmetrically padded convolution centres there, and the detector's position
embedding places it there too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .crossings import constant
from .semantics import AqrSemantics

# The largest fraction of the range that is still inside it: at 1 a point would lie in the cell
# behind the last one. The gap is far above float32's spacing near 1 and far below a cell.
_LAST_FRACTION = 1.0 - 1e-6
_MIN_DEPTH_M = 1e-5


@dataclass(frozen=True, kw_only=True)
class BevGrid:
    """The BEV feature grid in metres.

    The cell is `voxel_size * stride`, not range over cells: a grid may cover less than the range
    (the public R50 model's 128 cells of 0.8 m end at 48.4 m of 54 m).

    Args:
        point_cloud_range: x, y, z minimum, then maximum, metres.
        voxel_size: Edge lengths in x and y, metres; a third is allowed and not read.
        stride: Voxels per feature cell, the config's `out_size_factor`.

    Raises:
        ValueError: If a number is missing or the sizes are not positive.
    """

    point_cloud_range: Sequence[float]
    voxel_size: Sequence[float]
    stride: int

    def __post_init__(self) -> None:
        bounds, voxel = self.point_cloud_range, self.voxel_size
        if len(bounds) != 6 or any(
            low >= high for low, high in zip(bounds[:3], bounds[3:], strict=True)
        ):
            raise ValueError(
                "`point_cloud_range` must be [x_min, y_min, z_min, x_max, y_max, z_max] with each"
                f" minimum below its maximum, but got {list(bounds)}."
            )
        if len(voxel) not in (2, 3) or min(voxel) <= 0 or self.stride < 1:
            raise ValueError(
                "`voxel_size` must be two or three positive lengths and `stride` at least 1, but"
                f" got voxel_size={list(voxel)}, stride={self.stride}."
            )

    @property
    def cell_size(self) -> tuple[float, float]:
        """Edge lengths of a feature cell in x and y, metres."""
        return self.voxel_size[0] * self.stride, self.voxel_size[1] * self.stride


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Queries in the feature maps; cells of a query that is not there mean nothing.

    B batch, Q queries, V views.
    """

    bev_cells: Tensor  # (row, col), whole numbers are token centres. [B, Q, 2]
    bev_valid: Tensor  # inside the grid, bool. [B, Q]
    camera_cells: Tensor  # (row, col). [B, V, Q, 2]
    camera_visible: Tensor  # before the camera and inside its image, bool. [B, V, Q]
    bev_shape: tuple[int, int]  # rows, columns
    camera_shape: tuple[int, int, int]  # views, rows, columns


@torch.no_grad()
def project_queries(
    reference_points: Tensor,
    lidar2img: Tensor,
    *,
    grid: BevGrid,
    image_shape: tuple[int, int],
    bev_shape: tuple[int, int],
    camera_shape: tuple[int, int, int],
    semantics: AqrSemantics | None = None,
) -> Projection:
    """Find each query on the BEV grid and in every camera that sees it.

    Autograd takes the locations as constants: a query trains its place by its own box. Through the
    maps the division by depth would send it gradients without bound near a camera's plane.

    B batch, Q queries, V views.

    Args:
        reference_points: Fractions of the point-cloud range, clamped to [0, 1). [B, Q, 3]
        lidar2img: LiDAR metres to homogeneous pixels of the padded image. [B, V, 4, 4]
        grid: Range and cell size of the BEV features.
        image_shape: Height and width of the padded images, pixels.
        bev_shape: Rows and columns of the BEV features.
        camera_shape: Views, rows and columns of the camera features.
        semantics: The preset 'right' if left out; read are views, bev_grid, camera_scale, cells
            and unseen.

    Returns:
        The projection.

    Raises:
        ValueError: If shapes disagree.
    """
    _check_shapes(reference_points, lidar2img, camera_shape)
    semantics = semantics or AqrSemantics()
    points = to_metres(reference_points, grid.point_cloud_range)
    if semantics.bev_grid == "fixed":
        grid = _fixed_grid(bev_shape[0])
    bev_cells, bev_valid = project_to_bev(points, grid=grid, shape=bev_shape)
    camera_cells, camera_visible = project_to_cameras(
        points,
        lidar2img,
        image_shape=image_shape,
        shape=camera_shape[1:],
        one_scale=semantics.camera_scale == "rows",
    )
    if semantics.cells == "floored":
        bev_cells, camera_cells = (bev_cells + 0.5).floor(), camera_cells.floor()
    if semantics.views == "first":
        camera_visible = camera_visible & (camera_visible.cumsum(dim=1) == 1)
    if semantics.unseen == "origin":
        camera_cells, camera_visible = _at_origin(camera_cells, camera_visible)
    return Projection(
        bev_cells=bev_cells,
        bev_valid=bev_valid,
        camera_cells=camera_cells,
        camera_visible=camera_visible,
        bev_shape=bev_shape,
        camera_shape=camera_shape,
    )


def to_metres(reference_points: Tensor, point_cloud_range: Sequence[float]) -> Tensor:
    """Turn fractions of the range, clamped to [0, 1), into float32 metres. [..., 3] -> [..., 3]."""
    fractions = reference_points.float().clamp(0.0, _LAST_FRACTION)
    bounds = constant(point_cloud_range, fractions)
    return fractions * (bounds[3:] - bounds[:3]) + bounds[:3]


def project_to_bev(
    points: Tensor, *, grid: BevGrid, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Find points on the BEV grid.

    B batch, Q queries.

    Args:
        points: LiDAR frame, metres. [B, Q, 3]
        grid: Range and cell size.
        shape: Rows (y) and columns (x) of the grid.

    Returns:
        cells: (row, col), whole numbers are token centres. [B, Q, 2]
        valid: Inside the grid. [B, Q]
    """
    start = constant([grid.point_cloud_range[1], grid.point_cloud_range[0]], points)
    size = constant([grid.cell_size[1], grid.cell_size[0]], points)
    edges = (points[..., [1, 0]] - start) / size
    valid = ((edges >= 0) & (edges < constant(shape, edges))).all(-1)
    return edges - 0.5, valid


def project_to_cameras(
    points: Tensor,
    lidar2img: Tensor,
    *,
    image_shape: tuple[int, int],
    shape: tuple[int, int],
    one_scale: bool = False,
) -> tuple[Tensor, Tensor]:
    """Project points into each camera's feature map.

    B batch, Q queries, V views.

    Args:
        points: LiDAR frame, metres. [B, Q, 3]
        lidar2img: LiDAR metres to homogeneous pixels of the padded image. [B, V, 4, 4]
        image_shape: Height and width of the padded images, pixels.
        shape: Rows and columns of the feature map.
        one_scale: Scale columns by the rows' ratio, as past runs did; what then lies behind the
            map's edge is not visible.

    Returns:
        cells: (row, col), whole numbers are token centres. [B, V, Q, 2]
        visible: Before the camera and inside the padded image. [B, V, Q]
    """
    matrix = lidar2img.float()
    # Not a matrix product: in TF32 a pixel would be off by one or two.
    image = (matrix[:, :, None, :3, :3] * points[:, None, :, None]).sum(-1)  # [B, V, Q, 3]
    image = image + matrix[:, :, None, :3, 3]
    depth = image[..., 2]
    in_front = depth > _MIN_DEPTH_M
    # Not a place for points behind the camera, only a divisor that keeps them finite.
    divisor = torch.where(in_front, depth, 1.0)
    pixels = image[..., [1, 0]] / divisor[..., None]
    size = constant(image_shape, pixels)
    visible = in_front & ((pixels >= 0) & (pixels < size)).all(-1)
    limits = constant(shape, pixels)
    if not one_scale:
        return pixels * (limits / size), visible
    cells = pixels * (shape[0] / image_shape[0])
    return cells, visible & (cells < limits).all(-1)


def _fixed_grid(rows: int) -> BevGrid:
    """The users' BEV grid: 108 m from -54 m, in as many cells as there are rows, on both axes."""
    return BevGrid(
        point_cloud_range=(-54.0, -54.0, -1.0, 54.0, 54.0, 1.0),
        voxel_size=(108.0 / rows, 108.0 / rows),
        stride=1,
    )


def _at_origin(cells: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Put what no view sees at the first view's corner. [B, V, Q, 2], [B, V, Q]."""
    first = torch.zeros_like(visible)
    first[:, :1] = ~visible.any(dim=1, keepdim=True)
    return torch.where(first[..., None], 0.0, cells), visible | first


def _check_shapes(
    reference_points: Tensor, lidar2img: Tensor, camera_shape: tuple[int, int, int]
) -> None:
    batch, views = len(reference_points), camera_shape[0]
    if reference_points.dim() != 3 or reference_points.shape[-1] != 3:
        raise ValueError(
            f"`reference_points` must be [B, Q, 3], but got {list(reference_points.shape)}."
        )
    if lidar2img.shape != (batch, views, 4, 4):
        raise ValueError(
            f"`lidar2img` must be [B, V, 4, 4] = {[batch, views, 4, 4]}, one matrix for each view"
            f" of `camera_shape`, but got {list(lidar2img.shape)}."
        )
