import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from aqr_twins import (
    BEV_SHAPE,
    CAMERA_SHAPE,
    GRID,
    IMAGE_SHAPE,
    project,
    ring_of_cameras,
    with_second_values,
)

import aqr_model
from aqr_model.aqr import BevGrid, project_queries, project_to_bev, project_to_cameras
from aqr_model.aqr.projection import to_metres


def test_bev_cells_follow_cell_size_per_axis():
    grid = BevGrid(
        point_cloud_range=(-54.0, -27.0, -5.0, 54.0, 27.0, 3.0), voxel_size=(0.1, 0.2), stride=8
    )
    points = torch.tensor([[[-54.0, -27.0, 0.0], [0.05, 13.7, 0.0], [-53.6, -26.2, 0.0]]])
    cells, valid = project_to_bev(points, grid=grid, shape=(34, 128))
    # column = (x + 54) / 0.8, row = (y + 27) / 1.6, less half a cell.
    expected = torch.tensor([[[-0.5, -0.5], [40.7 / 1.6 - 0.5, 54.05 / 0.8 - 0.5], [0.0, 0.0]]])
    torch.testing.assert_close(cells, expected, rtol=1e-5, atol=1e-4)
    assert valid.all()


def test_grid_may_end_before_the_range():
    """The public R50 grid: 128 cells of 0.8 m end at 48.4 m of a range of 54 m."""
    grid = BevGrid(
        point_cloud_range=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
        voxel_size=(0.1, 0.1, 0.2),
        stride=8,
    )
    points = torch.tensor([[[48.3, 0.0, 0.0], [48.5, 0.0, 0.0], [0.0, 48.5, 0.0]]])
    _, valid = project_to_bev(points, grid=grid, shape=(128, 128))
    assert valid.tolist() == [[True, False, False]]


def test_camera_cells_equal_a_scalar_projection():
    matrices = ring_of_cameras()
    points = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0)) * 5
    cells, visible = project_to_cameras(
        points, matrices, image_shape=IMAGE_SHAPE, shape=CAMERA_SHAPE[1:]
    )
    for sample in range(2):
        for view in range(3):
            for query in range(20):
                homogeneous = [*points[sample, query].tolist(), 1.0]
                x, y, depth, _ = (
                    sum(a * b for a, b in zip(row, homogeneous, strict=True))
                    for row in matrices[sample, view].tolist()
                )
                seen = depth > 1e-5 and 0 <= x / depth < 128 and 0 <= y / depth < 80
                assert bool(visible[sample, view, query]) == seen
                if seen:
                    expected = torch.tensor([y / depth * 5 / 80, x / depth * 8 / 128])
                    torch.testing.assert_close(
                        cells[sample, view, query], expected, rtol=1e-4, atol=1e-4
                    )


def test_axes_scale_by_themselves():
    point = torch.tensor([[[4.0, 1.0, 0.5]]])
    matrices = ring_of_cameras(batch=1)
    square, _ = project_to_cameras(point, matrices, image_shape=(80, 128), shape=(5, 8))
    wide, _ = project_to_cameras(point, matrices, image_shape=(80, 128), shape=(5, 16))
    torch.testing.assert_close(wide[..., 0], square[..., 0])
    torch.testing.assert_close(wide[..., 1], square[..., 1] * 2)


def test_point_behind_all_cameras_is_seen_by_none_and_stays_finite():
    up_high = torch.tensor([[[0.5, 0.5, 1.0]]])
    projection = project(up_high)
    assert not projection.camera_visible.any()
    assert projection.camera_cells.isfinite().all()


def test_point_in_an_overlap_is_seen_by_both():
    # Two of three cameras of 140 degrees, every 120, look at 60 degrees.
    matrices = ring_of_cameras(batch=1, field_deg=140)
    point = torch.tensor([[[math.cos(math.pi / 3), math.sin(math.pi / 3), 0.0]]]) * 6
    _, visible = project_to_cameras(
        point, matrices, image_shape=IMAGE_SHAPE, shape=CAMERA_SHAPE[1:]
    )
    assert visible[0, :, 0].tolist() == [True, True, False]


@pytest.mark.parametrize("fraction", [-0.5, 0.0, 1.0, 1.5])
def test_reference_points_are_clamped_into_the_range(fraction):
    projection = project(torch.full((1, 1, 3), fraction))
    assert projection.bev_valid.all()


def test_locations_are_constants_of_autograd():
    points = torch.rand(1, 4, 3, requires_grad=True)
    projection = project(points)
    assert not projection.bev_cells.requires_grad
    assert not projection.camera_cells.requires_grad


def test_half_precision_points_project_in_float32():
    assert project(torch.rand(1, 4, 3).half()).bev_cells.dtype == torch.float32


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"point_cloud_range": (0, 0, 0, 1, 1)}, "must be .x_min"),
        ({"point_cloud_range": (0, 0, 0, 1, -1, 1)}, "each minimum below its maximum"),
        ({"voxel_size": (0.1, 0.0)}, "positive lengths"),
        ({"stride": 0}, "`stride` at least 1"),
    ],
)
def test_bad_grids(keywords, message):
    good = {"point_cloud_range": (0, 0, 0, 1, 1, 1), "voxel_size": (0.1, 0.1), "stride": 8}
    with pytest.raises(ValueError, match=message):
        BevGrid(**good | keywords)


@pytest.mark.parametrize(
    ("points", "matrices", "message"),
    [
        (torch.rand(2, 4), ring_of_cameras(2), "`reference_points` must be"),
        (torch.rand(1, 4, 3), ring_of_cameras(2), "`lidar2img` must be"),
        (torch.rand(2, 4, 3), ring_of_cameras(2, views=2), "one matrix for each view"),
    ],
)
def test_bad_shapes(points, matrices, message):
    with pytest.raises(ValueError, match=message):
        project_queries(
            points,
            matrices,
            grid=GRID,
            image_shape=IMAGE_SHAPE,
            bev_shape=(12, 16),
            camera_shape=CAMERA_SHAPE,
        )


def test_fixed_grid_is_108_m_in_as_many_cells_as_rows():
    points = torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(0))
    metres = to_metres(points, GRID.point_cloud_range)
    projection = project(points, semantics=with_second_values({"bev_grid", "cells"}))
    want = ((metres[..., [1, 0]] + 54) * BEV_SHAPE[0] / 108).floor()
    assert torch.equal(projection.bev_cells, want)
    assert torch.equal(projection.bev_valid, (want < torch.tensor(BEV_SHAPE)).all(-1))


def test_floored_cells_are_the_tokens_around_the_exact_ones():
    points = torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(0))
    exact = project(points)
    floored = project(points, semantics=with_second_values({"cells"}))
    assert torch.equal(floored.bev_cells, (exact.bev_cells + 0.5).floor())
    assert torch.equal(floored.camera_cells, exact.camera_cells.floor())
    assert torch.equal(floored.camera_visible, exact.camera_visible)


@pytest.mark.parametrize("fields", [{"views"}, {"views", "unseen"}, {"unseen"}])
def test_views_and_unseen_queries_query_by_query(fields):
    points = torch.rand(2, 60, 3, generator=torch.Generator().manual_seed(0))
    points[:, :5, 2] = 1.0 + points[:, :5, 2]  # high up, above most cameras
    points[:, :5, :2] = 0.45 + 0.1 * points[:, :5, :2]
    geometry = {
        "grid": GRID,
        "image_shape": IMAGE_SHAPE,
        "bev_shape": BEV_SHAPE,
        "camera_shape": CAMERA_SHAPE,
    }
    cameras = ring_of_cameras(field_deg=160)
    right = project_queries(points, cameras, **geometry)
    found = project_queries(points, cameras, **geometry, semantics=with_second_values(fields))
    assert {0, 1, 2} <= set(right.camera_visible.sum(1).flatten().tolist())
    for sample in range(2):
        for query in range(60):
            seeing = right.camera_visible[sample, :, query].nonzero().flatten().tolist()
            if "views" in fields:
                seeing = seeing[:1]
            if not seeing and "unseen" in fields:
                seeing = [0]
                assert found.camera_cells[sample, 0, query].tolist() == [0.0, 0.0]
            else:
                for view in seeing:
                    there = right.camera_cells[sample, view, query]
                    assert torch.equal(found.camera_cells[sample, view, query], there)
            assert found.camera_visible[sample, :, query].nonzero().flatten().tolist() == seeing


def test_rows_ratio_scales_columns_too_and_loses_what_falls_off():
    points = torch.rand(1, 60, 3, generator=torch.Generator().manual_seed(0))
    metres = to_metres(points, GRID.point_cloud_range)
    matrices = ring_of_cameras(batch=1)
    # 8 columns of 128 pixels and 5 rows of 40: a row's 8 pixels would need 16 columns.
    wide = {"image_shape": (40, 128), "shape": (5, 8)}
    own, seen = project_to_cameras(metres, matrices, **wide)
    rows, kept = project_to_cameras(metres, matrices, **wide, one_scale=True)
    torch.testing.assert_close(rows[..., 0], own[..., 0])
    torch.testing.assert_close(rows[..., 1], own[..., 1] * 2)
    assert torch.equal(kept, seen & (own[..., 1] < 4))
    assert 0 < kept.sum() < seen.sum()


def test_needs_torch_alone(tmp_path):
    code = (
        "import sys\n"
        "for name in ('mmcv', 'mmdet', 'mmdet3d', 'mmseg', 'spconv', 'aqr_model'):\n"
        "    sys.modules[name] = None\n"
        "import aqr\n"
        "aqr.AQRWeightGenerator(embed_dims=8), aqr.WeightRenderer(), aqr.FeatureModulator()\n"
    )
    folder = Path(aqr_model.__file__).parent
    environment = os.environ | {"PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=tmp_path)
