import math

import numpy as np
import pytest
import torch
from cmt_cases import PC_RANGE, golden

from aqr_model.cmt.position import (
    Cameras,
    PointRange,
    grid_encoding,
    pixel_rays,
    point_encoding,
    project,
    ray_depths,
    ray_points,
    sine_encoding,
)

RANGE = PointRange.from_list(PC_RANGE)


def cameras():
    metas = [
        {"lidar2img": list(m), "pad_shape": [(160, 400, 3)] * 6} for m in golden()["lidar2img"]
    ]
    return Cameras.from_metas(metas, torch.device("cpu"))


def test_sine_encoding_equals_a_loop():
    values = torch.rand(4)
    want = torch.empty(4, 8)
    for n, value in enumerate(values):
        for i in range(8):
            angle = value * 2 * math.pi / (2 * (i // 2) / 8 + 1)
            want[n, i] = angle.cos() if i % 2 else angle.sin()
    torch.testing.assert_close(sine_encoding(values, 8), want)


def test_grid_encoding_equals_point_encoding_of_cell_centres():
    height, width = 3, 5
    centres = torch.tensor(
        [[(x + 0.5) / width, (y + 0.5) / height] for y in range(height) for x in range(width)]
    )
    got = grid_encoding(height, width, 8, torch.device("cpu"))
    torch.testing.assert_close(got, point_encoding(centres, 8))


def test_point_encoding_has_y_first():
    point = torch.tensor([0.2, 0.7])
    got = point_encoding(point, 8)
    torch.testing.assert_close(got[:8], sine_encoding(point[1], 8))
    torch.testing.assert_close(got[8:], sine_encoding(point[0], 8))


def test_point_range_is_its_own_inverse():
    points = torch.tensor([[-54.0, 54.0, -1.0]])
    fractions = RANGE.normalise(points)
    torch.testing.assert_close(fractions, torch.tensor([[0.0, 1.0, 0.5]]))
    torch.testing.assert_close(RANGE.denormalise(fractions), points)


@pytest.mark.parametrize("values", [[0.0] * 5, [0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]])
def test_bad_ranges(values):
    with pytest.raises(ValueError, match="`pc_range` must be"):
        PointRange.from_list(values)


def test_depths_are_linear_from_one_metre():
    depths = ray_depths(64, 54.0, torch.device("cpu"))
    want = torch.tensor([1.0, 1 + 53 / 64, 1 + 63 * 53 / 64])
    torch.testing.assert_close(depths[[0, 1, 63]], want)


def test_projection_equals_a_loop():
    view = cameras()
    points = torch.rand(2, 40, 3) * torch.tensor([100.0, 100.0, 6.0]) - torch.tensor(
        [50.0, 50.0, 4.0]
    )
    pixels, visible = project(points, view)
    for b in range(2):
        for v in range(6):
            for q in range(40):
                matrix = golden()["lidar2img"][b, v]
                x, y, depth, _ = matrix @ np.append(points[b, q].double().numpy(), 1.0)
                seen = depth > 0 and 0 <= x / depth < 400 and 0 <= y / depth < 160
                assert bool(visible[b, v, q]) == seen
                if seen:
                    want = torch.tensor([x / depth, y / depth, 1.0]).float()
                    torch.testing.assert_close(pixels[b, v, q], want, rtol=1e-3, atol=1e-2)
    assert 0 < visible.float().mean() < 0.5


def test_a_ray_passes_through_the_point_that_was_projected():
    view = cameras()
    points = torch.rand(2, 60, 3) * 60 - 30
    points[..., 2] = -1
    pixels, visible = project(points, view)
    b, v, q = visible.nonzero(as_tuple=True)
    homogeneous = torch.cat([points, torch.ones(2, 60, 1)], dim=-1)
    depth = torch.einsum("nd,nd->n", homogeneous[b, q], view.lidar2img[b, v, 2])
    for i in range(len(b)):
        ray = ray_points(
            pixels[b[i], v[i], q[i]], view.img2lidar[b[i], v[i]], depth[i : i + 1], RANGE
        )
        torch.testing.assert_close(RANGE.denormalise(ray), points[b[i], q[i]], rtol=1e-3, atol=1e-2)


def test_pixel_rays_start_at_upper_left_corners():
    view, depths = cameras(), torch.tensor([1.0, 7.0])
    rays = pixel_rays((10, 25), view, depths, RANGE)
    assert rays.shape == (12, 10, 25, 6)
    b, v, row, column = 1, 2, 3, 4
    pixel = np.array([column * 16 * 7.0, row * 16 * 7.0, 7.0, 1.0])
    point = np.linalg.inv(golden()["lidar2img"][b, v]) @ pixel
    got = RANGE.denormalise(rays[b * 6 + v, row, column].reshape(2, 3)[1])
    torch.testing.assert_close(got, torch.from_numpy(point[:3]).float(), rtol=1e-4, atol=1e-3)


def test_gradients_reach_points_through_the_pixel_only():
    """The depth of the division is detached: moving along the ray changes nothing but depth."""
    view = cameras()
    points = torch.tensor([[[20.0, 1.0, -1.0]], [[20.0, 1.0, -1.0]]], requires_grad=True)
    pixels, visible = project(points, view)
    pixels[visible][:, 2].sum().backward()
    assert points.grad is not None
    assert points.grad.abs().sum() > 0


def test_views_of_different_size_are_an_error():
    metas = [{"lidar2img": [np.eye(4)] * 2, "pad_shape": [(32, 64, 3), (32, 96, 3)]}]
    with pytest.raises(ValueError, match=r"must be the same .* got \[\(32, 64\), \(32, 96\)\]"):
        Cameras.from_metas(metas, torch.device("cpu"))
