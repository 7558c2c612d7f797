import math
from dataclasses import replace

import pytest
import torch
from aqr_twins import BEV_SHAPE, GRID, busy_generator, project, random_inputs

from aqr_model.aqr import (
    FeatureModulator,
    QueryWeights,
    WeightMaps,
    WeightRenderer,
    aqr_statistics,
    bev_box_mask,
    gradient_norms,
    histograms,
)
from aqr_model.aqr.observed import join, observe, to_host
from aqr_model.aqr.statistics import describe, histograms_of

MOMENTS = ("mean", "std", "min", "max", "q01", "q05", "q25", "q50", "q75", "q95", "q99")


@pytest.fixture
def forward():
    """The keywords of `aqr_statistics` from one forward with boxes."""
    points, query_pos, memory, memory_pos = random_inputs()
    projection = project(points)
    with torch.no_grad():
        weights = busy_generator()(query_pos, memory, memory_pos, projection)
    renderer, modulator = WeightRenderer(), FeatureModulator()
    maps = renderer(weights, projection)
    bev, camera = torch.randn(2, 4, 12, 16), torch.randn(6, 4, 5, 8)
    bev_out, camera_out = modulator(bev, camera, maps)
    boxes = [torch.tensor([[0.0, 0.0, 0.0, 9.0, 8.0, 2.0, 0.3, 1.0, 0.0]]), torch.zeros(0, 9)]
    return {
        "weights": weights,
        "maps": maps,
        "projection": projection,
        "bev": (bev, bev_out),
        "camera": (camera, camera_out),
        "renderer": renderer,
        "modulator": modulator,
        "gt_boxes": boxes,
        "grid": GRID,
    }


def expect(values, group, tensor):
    """Compare all moments of a group with torch's own on what counts."""
    for name in MOMENTS:
        if name.startswith("q"):
            wanted = torch.quantile(tensor, int(name[1:]) / 100)
        elif name == "std":
            wanted = tensor.std(correction=0)
        else:
            wanted = getattr(tensor, name)()
        assert values[f"aqr/{group}/{name}"] == pytest.approx(wanted.item(), abs=1e-5), name


def test_distributions_count_what_is_seen(forward):
    projection = forward["projection"]
    seen = projection.camera_visible.any(1)
    assert not seen.all()
    values = aqr_statistics(**forward)
    expect(values, "lidar_weights_stats", forward["weights"].lidar[projection.bev_valid])
    expect(values, "camera_weights_stats", forward["weights"].camera[seen])
    expect(values, "weight_map_bev_stats", forward["maps"].bev.flatten())
    expect(values, "weight_map_pers_stats", forward["maps"].camera.flatten())
    assert values["aqr/camera_weights_stats/share_seen"] == pytest.approx(seen.float().mean())
    assert all(type(value) is float for value in values.values())


def test_shares(forward):
    lidar = torch.linspace(0.05, 0.95, 10).expand(2, 10)[:, :9]
    weights = QueryWeights(lidar=lidar, camera=forward["weights"].camera)
    maps = WeightMaps(
        bev=torch.tensor([1.5, 1.5, 1.4, 1.0]).expand(2, 1, 4), camera=forward["maps"].camera
    )
    values = aqr_statistics(**forward | {"weights": weights, "maps": maps, "gt_boxes": None})
    assert values["aqr/lidar_weights_stats/share_low"] == pytest.approx(2 / 9)
    assert values["aqr/lidar_weights_stats/share_high"] == pytest.approx(1 / 9)
    assert values["aqr/weight_map_bev_stats/share_saturated"] == pytest.approx(0.5)
    assert values["aqr/weight_map_bev_stats/share_low"] == 0.0
    assert values["aqr/weight_map_bev_stats/share_high"] == 1.0
    assert not any("boxes" in name for name in values)


def test_modulation_effect_is_the_users_definition(forward):
    before, after = forward["camera"]
    values = aqr_statistics(**forward)
    change = after - before
    wanted = {
        "mean_change": change.mean(),
        "std_change": change.std(correction=0),
        "max_change": change.abs().max(),
        "relative_change": (change.abs() / (before.abs() + 1e-8)).mean(),
    }
    for name, value in wanted.items():
        assert values[f"aqr/modulation_effect_pers/{name}"] == pytest.approx(value.item(), rel=1e-4)


def test_each_camera(forward):
    values = aqr_statistics(**forward)
    for view in range(3):
        of_view = forward["maps"].camera[:, view]
        seen = forward["projection"].camera_visible[:, view]
        group = "aqr/weight_map_pers_stats"
        assert values[f"{group}/mean_cam{view}"] == pytest.approx(of_view.mean().item())
        assert values[f"{group}/max_cam{view}"] == pytest.approx(of_view.max().item())
        mean = forward["weights"].camera[seen].mean().item()
        assert values[f"aqr/camera_weights_stats/mean_cam{view}"] == pytest.approx(mean)
        before, after = (part.view(2, 3, 4, 5, 8)[:, view] for part in forward["camera"])
        relative = ((after - before).abs() / (before.abs() + 1e-8)).mean().item()
        name = f"aqr/modulation_effect_pers/relative_change_cam{view}"
        assert values[name] == pytest.approx(relative, rel=1e-4)


def test_weights_in_and_outside_boxes(forward):
    mask = bev_box_mask(forward["gt_boxes"][0], grid=GRID, bev_shape=BEV_SHAPE)
    values = aqr_statistics(**forward)
    bev = forward["maps"].bev
    outside = torch.cat([bev[0][~mask], bev[1].flatten()]).mean().item()
    assert values["aqr/weight_map_bev_stats/mean_in_boxes"] == pytest.approx(
        bev[0][mask].mean().item()
    )
    assert values["aqr/weight_map_bev_stats/mean_outside_boxes"] == pytest.approx(outside)
    inside, elsewhere = [], []
    for sample in range(2):
        for query in range(9):
            row, col = forward["projection"].bev_cells[sample, query].tolist()
            hit = sample == 0 and mask[math.floor(row + 0.5), math.floor(col + 0.5)]
            (inside if hit else elsewhere).append(forward["weights"].lidar[sample, query].item())
    group = "aqr/lidar_weights_stats"
    assert values[f"{group}/mean_in_boxes"] == pytest.approx(sum(inside) / len(inside))
    assert values[f"{group}/mean_outside_boxes"] == pytest.approx(sum(elsewhere) / len(elsewhere))


def test_effective_values_are_todays(forward):
    forward["renderer"].max_weight_clamp = 2.0
    forward["modulator"].residual_weight = 0.6
    values = aqr_statistics(**forward)
    assert values["aqr/effective/max_weight_clamp"] == 2.0
    assert values["aqr/effective/residual_weight"] == 0.6
    assert values["aqr/effective/gaussian_sigma"] == 1.0
    assert values["aqr/effective/amplification"] == pytest.approx(1.4)


def test_what_has_nothing_to_count_is_left_out(forward):
    nobody = torch.zeros_like(forward["projection"].camera_visible)
    projection = replace(forward["projection"], camera_visible=nobody)
    no_boxes = [torch.zeros(0, 7)] * 2
    values = aqr_statistics(**forward | {"projection": projection, "gt_boxes": no_boxes})
    assert "aqr/camera_weights_stats/mean" not in values
    assert "aqr/camera_weights_stats/q50" not in values
    assert "aqr/weight_map_bev_stats/mean_in_boxes" not in values
    assert values["aqr/camera_weights_stats/share_seen"] == 0.0
    assert all(math.isfinite(value) for value in values.values())


@pytest.mark.parametrize("broken", ["weights", "maps", "bev"])
def test_not_a_number_is_reported(forward, broken):
    parts = [part.clone() for part in forward[broken]]
    parts[0].view(-1)[0] = torch.nan
    kind = tuple if broken == "bev" else type(forward[broken])._make
    with pytest.raises(FloatingPointError, match="must be finite, but got nan"):
        aqr_statistics(**forward | {broken: kind(parts)})


@pytest.mark.parametrize("keywords", [{"grid": None}, {"gt_boxes": [torch.zeros(0, 7)]}])
def test_bad_boxes(forward, keywords):
    with pytest.raises(ValueError, match="boxes of each sample and come with `grid`"):
        aqr_statistics(**forward | keywords)


def test_box_mask_equals_corners_turned_by_hand():
    box = torch.tensor([[1.0, -1.0, 0.0, 6.0, 2.0, 1.5, 0.5, 0.0, 0.0]])
    mask = bev_box_mask(box, grid=GRID, bev_shape=BEV_SHAPE)
    for row in range(12):
        for col in range(16):
            x, y = -8 + col + 0.5 - 1.0, -6 + row + 0.5 + 1.0
            along = x * math.cos(0.5) + y * math.sin(0.5)
            across = -x * math.sin(0.5) + y * math.cos(0.5)
            assert bool(mask[row, col]) == (abs(along) <= 3 and abs(across) <= 1)
    assert mask.any()


def test_histograms(forward):
    keywords = {name: forward[name] for name in ("weights", "maps", "projection")}
    shares = histograms(**keywords, max_weight_clamp=1.5)
    assert {len(row) for row in shares.values()} == {20}
    assert all(sum(row) == pytest.approx(1.0) for row in shares.values())
    lidar = forward["weights"].lidar[forward["projection"].bev_valid]
    wanted = torch.histc(lidar, bins=20, min=0, max=1) / lidar.numel()
    assert shares["aqr/lidar_weights_stats/histogram"] == pytest.approx(wanted.tolist())
    nobody = torch.zeros_like(forward["projection"].camera_visible)
    keywords["projection"] = replace(forward["projection"], camera_visible=nobody)
    empty = histograms(**keywords, max_weight_clamp=1.5)
    assert sum(empty["aqr/camera_weights_stats/histogram"]) == 0


def test_gradient_norms():
    generator = busy_generator()
    head = torch.nn.ModuleDict({"aqr_weight_generator": generator, "other": torch.nn.Linear(2, 2)})
    assert gradient_norms(head.named_parameters()) == {}
    for parameter in head.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    norms = gradient_norms(head.named_parameters())
    count = sum(parameter.numel() for parameter in generator.encoder.parameters())
    assert norms == {
        "aqr/grad_norm/aqr_weight_generator.encoder": pytest.approx(2 * math.sqrt(count)),
        "aqr/grad_norm/aqr_weight_generator.weight_predictor": pytest.approx(2 * math.sqrt(34)),
    }


def observed_part(forward, samples):
    """What one process sees that holds only some of the samples."""
    projection = forward["projection"]
    keys = ("bev_cells", "bev_valid", "camera_cells", "camera_visible")
    parts = {name: getattr(projection, name)[samples] for name in keys}
    views = slice(3 * samples.start, 3 * samples.stop)
    return observe(
        weights=QueryWeights._make(part[samples] for part in forward["weights"]),
        maps=WeightMaps._make(part[samples] for part in forward["maps"]),
        projection=replace(projection, **parts),
        bev=tuple(part[samples] for part in forward["bev"]),
        camera=tuple(part[views] for part in forward["camera"]),
        gt_boxes=forward["gt_boxes"][samples],
        grid=GRID,
    )


def test_joined_parts_are_described_as_the_whole(forward):
    parts = {name: forward[name] for name in ("renderer", "modulator")}
    joined = join([to_host(observed_part(forward, slice(i, i + 1))) for i in range(2)])
    assert describe(joined, **parts) == pytest.approx(aqr_statistics(**forward), rel=1e-5)
    whole = {name: forward[name] for name in ("weights", "maps", "projection")}
    shares = histograms(**whole, max_weight_clamp=1.5)
    assert histograms_of(joined, max_weight_clamp=1.5) == {
        name: pytest.approx(row) for name, row in shares.items()
    }


def test_parts_may_differ_in_their_number_of_queries(forward):
    """Denoising queries, which route under one of the semantics, differ between processes."""
    first, second = (observed_part(forward, slice(i, i + 1)) for i in range(2))
    fewer = replace(
        second,
        lidar=second.lidar[:, :4],
        camera=second.camera[:, :4],
        on_grid=second.on_grid[:, :4],
        visible=second.visible[..., :4],
        in_box=second.in_box[:, :4],
    )
    joined = join([first, fewer])
    assert joined.lidar.shape == (2, 9)
    seen = torch.cat([first.lidar[first.on_grid], fewer.lidar[fewer.on_grid]])
    values = describe(joined, renderer=forward["renderer"], modulator=forward["modulator"])
    expect(values, "lidar_weights_stats", seen)


def test_boxes_are_left_out_where_one_process_has_none(forward):
    first, second = (observed_part(forward, slice(i, i + 1)) for i in range(2))
    joined = join([first, replace(second, boxes=None, in_box=None)])
    values = describe(joined, renderer=forward["renderer"], modulator=forward["modulator"])
    assert not any("boxes" in name for name in values)


def test_an_adapting_clamp_saturates_at_each_sample_s_own_bound(forward):
    renderer = WeightRenderer(clamp_quantile=0.9, max_weight_clamp=3.0)
    bev = torch.ones(2, 2, 5)
    bev[0, 0, :3] = 1.4  # the bound of this sample
    maps = WeightMaps(bev=bev, camera=forward["maps"].camera)
    values = aqr_statistics(**forward | {"maps": maps, "renderer": renderer, "gt_boxes": None})
    # In the other sample nothing rises, so nothing is cut.
    assert values["aqr/weight_map_bev_stats/share_saturated"] == pytest.approx(3 / 20)
