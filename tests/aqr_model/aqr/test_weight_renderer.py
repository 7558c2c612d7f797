import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import renderer_cases
import torch
from aqr_twins import (
    BEV_SHAPE,
    CAMERA_SHAPE,
    assert_same_gradients,
    drawn_twin,
    map_twin,
    project,
    random_scene,
    with_second_values,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from aqr_model.aqr import AqrSemantics, QueryWeights, WeightRenderer
from aqr_model.aqr.semantics import CHOICES

GOLDEN = Path(__file__).parents[2] / "data" / "weight_renderer.npz"
METHODS = ("gaussian", "bilinear", "direct", "distance_weighted")
FIELDS = st.sets(st.sampled_from(sorted(CHOICES)))
SETTINGS = settings(max_examples=25, deadline=None)
SEEDS = st.integers(min_value=0, max_value=2**31 - 1)


def at(projection, row, col):
    """The projection of one query that lies at this BEV cell."""
    cells = torch.tensor([[[row, col]]])
    return replace(projection, bev_cells=cells, bev_valid=torch.tensor([[True]]))


@pytest.mark.parametrize(("sigma", "clamp"), [(1.0, 1.5), (0.6, 2.5), (2.0, 1.1)])
def test_equals_the_loop_over_pixels_and_queries(sigma, clamp):
    weights, projection = random_scene(seed=2, queries=12)
    assert projection.camera_visible[0].any(dim=1).all()
    maps = WeightRenderer(gaussian_sigma=sigma, max_weight_clamp=clamp)(weights, projection)
    rule = {"sigma": sigma, "clamp": clamp}
    for sample in range(2):
        twin = map_twin(
            weights.lidar[sample],
            projection.bev_cells[sample],
            projection.bev_valid[sample],
            BEV_SHAPE,
            **rule,
        )
        assert_same_gradients(maps.bev[sample], twin, [weights.lidar])
    for view in range(CAMERA_SHAPE[0]):
        twin = map_twin(
            weights.camera[0],
            projection.camera_cells[0, view],
            projection.camera_visible[0, view],
            CAMERA_SHAPE[1:],
            **rule,
        )
        assert_same_gradients(maps.camera[0, view], twin, [weights.camera])


@SETTINGS
@given(seed=SEEDS, clamp=st.floats(1.0, 4.0), method=st.sampled_from(METHODS))
def test_maps_stay_between_zero_and_the_clamp(seed, clamp, method):
    renderer = WeightRenderer(render_method=method, max_weight_clamp=clamp)
    limit = torch.tensor(clamp, dtype=torch.float32)
    for weight_map in renderer(*random_scene(seed, queries=30)):
        assert weight_map.min() >= 0
        assert weight_map.max() <= limit


@SETTINGS
@given(seed=SEEDS, method=st.sampled_from(METHODS), fields=FIELDS)
def test_order_of_queries_does_not_matter(seed, method, fields):
    weights, projection = random_scene(seed)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    shuffled = replace(
        projection,
        bev_cells=projection.bev_cells[:, order],
        bev_valid=projection.bev_valid[:, order],
        camera_cells=projection.camera_cells[:, :, order],
        camera_visible=projection.camera_visible[:, :, order],
    )
    renderer = WeightRenderer(render_method=method, semantics=with_second_values(fields))
    there = renderer(QueryWeights(*(part[:, order] for part in weights)), shuffled)
    torch.testing.assert_close(renderer(weights, projection), there)


@SETTINGS
@given(
    seed=SEEDS,
    place=st.sampled_from([0.0, -40.0, 1e30, float("inf"), float("nan")]),
    method=st.sampled_from(METHODS),
    zero=st.booleans(),
)
def test_unseen_query_adds_exactly_nothing(seed, place, method, zero):
    weights, projection = random_scene(seed)
    unseen = torch.tensor([2, 5])
    valid = projection.bev_valid.index_fill(1, unseen, False)
    visible = projection.camera_visible.index_fill(2, unseen, False)
    hidden = replace(
        projection,
        bev_cells=projection.bev_cells.index_fill(1, unseen, place),
        camera_cells=projection.camera_cells.index_fill(2, unseen, place),
        bev_valid=valid,
        camera_visible=visible,
    )
    semantics = with_second_values({"background"} if zero else set())
    renderer = WeightRenderer(render_method=method, semantics=semantics)
    maps = renderer(weights, hidden)
    nothing = 0.0 if zero else 0.5
    silent = QueryWeights(*(part.index_fill(1, unseen, nothing) for part in weights))
    neutral = renderer(silent, replace(projection, bev_valid=valid, camera_visible=visible))
    assert torch.equal(maps.bev, neutral.bev)
    assert torch.equal(maps.camera, neutral.camera)
    gradients = torch.autograd.grad(maps.bev.sum() + maps.camera.sum(), list(weights))
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert gradient[:, unseen].eq(0).all()


@SETTINGS
@given(
    seed=SEEDS,
    clamp=st.floats(1.0, 4.0),
    quantile=st.sampled_from([1.0, 0.5]),
    method=st.sampled_from(METHODS),
    fields=st.sets(st.sampled_from(sorted(set(CHOICES) - {"background"}))),
)
def test_half_weights_draw_exactly_one(seed, clamp, quantile, method, fields):
    _, projection = random_scene(seed)
    half = torch.full((2, 7), 0.5)
    renderer = WeightRenderer(
        render_method=method,
        max_weight_clamp=clamp,
        clamp_quantile=quantile,
        semantics=with_second_values(fields),
    )
    for weight_map in renderer(QueryWeights(lidar=half, camera=half), projection):
        assert weight_map.eq(1).all()


def test_no_query_draws_exactly_one():
    projection = project(torch.rand(2, 0, 3))
    none = torch.zeros(2, 0)
    for weight_map in WeightRenderer()(QueryWeights(lidar=none, camera=none), projection):
        assert weight_map.eq(1).all()


@pytest.mark.parametrize("method", METHODS)
def test_query_on_a_token_has_its_full_weight_there(method):
    weights, projection = random_scene(batch=1, queries=1)
    centred = at(projection, 4.0, 7.0)
    loud = QueryWeights(lidar=torch.tensor([[0.7]]), camera=weights.camera)
    for sigma in (0.5, 1.0, 3.0) if method == "gaussian" else (1.0,):
        bev = WeightRenderer(render_method=method, gaussian_sigma=sigma)(loud, centred).bev
        assert bev[0].argmax().item() == 4 * 16 + 7
        assert bev[0, 4, 7].item() == pytest.approx(1.4)


def test_gradient_passes_on_the_clamp_itself_and_not_beyond():
    _, projection = random_scene(batch=1, queries=1)
    centred = at(projection, 4.0, 7.0)

    def gradient_at_the_centre(weight, clamp):
        lidar = torch.tensor([[weight]], requires_grad=True)
        maps = WeightRenderer(max_weight_clamp=clamp)(
            QueryWeights(lidar=lidar, camera=lidar.detach()), centred
        )
        (gradient,) = torch.autograd.grad(maps.bev[0, 4, 7], lidar)
        return gradient.item()

    assert gradient_at_the_centre(0.5, 1.0) == pytest.approx(2.0)
    assert gradient_at_the_centre(0.6, 1.0) == 0.0


def test_settings_may_change_during_training():
    weights, projection = random_scene()
    changed = WeightRenderer()
    changed.max_weight_clamp, changed.gaussian_sigma = 2.5, 0.7
    fresh = WeightRenderer(max_weight_clamp=2.5, gaussian_sigma=0.7)
    torch.testing.assert_close(changed(weights, projection), fresh(weights, projection))


def test_draws_in_float32_under_autocast():
    weights, projection = random_scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = WeightRenderer()(weights, projection)
    assert maps.bev.dtype == maps.camera.dtype == torch.float32
    torch.testing.assert_close(maps, WeightRenderer()(weights, projection))


def test_a_checkpoint_holds_nothing_of_it():
    assert not WeightRenderer().state_dict()


def test_reads_the_users_config():
    users = WeightRenderer(
        render_method="gaussian",
        gaussian_sigma=0.8,
        bilinear_radius=1.5,
        distance_decay=0.8,
        min_weight_threshold=0.01,
        bev_feature_shape=(12, 16),
        pers_feature_shape=(3, 5, 8),
        normalize_weights=True,
        max_weight_clamp=1.2,
    )
    weights, projection = random_scene(seed=2, queries=12)
    bev = map_twin(
        weights.lidar[0],
        projection.bev_cells[0],
        projection.bev_valid[0],
        BEV_SHAPE,
        sigma=0.8,
        clamp=1.2,
    )
    torch.testing.assert_close(users(weights, projection).bev[0], bev)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"render_method": "splat"}, "one of 'gaussian', 'bilinear', 'direct'.*but got 'splat'"),
        ({"gaussian_sigma": 0.0}, "`gaussian_sigma > 0` must hold, but got 0.0"),
        ({"gaussian_sigma": float("nan")}, "`gaussian_sigma > 0` must hold"),
        ({"max_weight_clamp": 0.9}, "`max_weight_clamp >= 1` must hold.*got 0.9"),
        ({"normalize_weights": False}, "`normalize_weights` has no effect"),
        ({"min_weight_threshold": 0.2}, "`min_weight_threshold` has no effect"),
        ({"render_method": "bilinear", "bilinear_radius": 0.9}, "`bilinear_radius >= 1` must hold"),
        ({"render_method": "distance_weighted", "distance_decay": 1.0}, "distance_decay < 1.0` mu"),
        ({"clamp_quantile": 0.0}, "`0 < clamp_quantile <= 1` must hold"),
        ({"clamp_schedule": {"type": "constant", "value": 0.5}}, "`max_weight_clamp >= 1`.*0.5"),
        (
            {"clamp_schedule": {"type": "constant", "value": 2.0}, "max_weight_clamp": 1.5},
            r"\(1.5\) must be where `clamp_schedule` starts \(2.0\)",
        ),
        (
            {"normalize_weights": False, "clamp_quantile": 0.9, "semantics": "legacy"},
            "needs `normalize_weights=True`",
        ),
        ({"semantics": {"kernel": "max"}}, "`semantics.kernel` must be one of 'peak', 'sum'"),
    ],
)
def test_bad_configs(keywords, message):
    with pytest.raises(ValueError, match=message):
        WeightRenderer(**keywords)


def test_declared_feature_shapes_are_checked():
    renderer = WeightRenderer(pers_feature_shape=(6, 40, 100))
    with pytest.raises(ValueError, match=r"is \(6, 40, 100\).*features are \(3, 5, 8\)"):
        renderer(*random_scene())


def twins(renderer, weights, projection):
    """Both maps of the first sample, by the loop."""
    semantics = renderer.semantics
    clamped = renderer.normalize_weights
    bev = drawn_twin(
        renderer,
        weights.lidar[0],
        projection.bev_cells[0],
        projection.bev_valid[0],
        BEV_SHAPE,
        clamped=clamped,
    )
    cameras = [
        drawn_twin(
            renderer,
            weights.camera[0],
            projection.camera_cells[0, view],
            projection.camera_visible[0, view],
            CAMERA_SHAPE[1:],
            clamped=clamped and semantics.clamped == "both",
        )
        for view in range(CAMERA_SHAPE[0])
    ]
    return bev, torch.stack(cameras)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "fields",
    [
        (),
        ("kernel",),
        ("background",),
        ("cells",),
        ("kernel", "background"),
        ("kernel", "cells"),
        ("kernel", "background", "cells", "clamped", "unseen", "views", "bev_grid"),
    ],
    ids="-".join,
)
def test_every_method_equals_its_loop_under_every_meaning(method, fields):
    semantics = with_second_values(fields)
    numbers = {"gaussian_sigma": 0.8, "bilinear_radius": 2.2, "distance_decay": 0.6}
    renderer = WeightRenderer(
        render_method=method, max_weight_clamp=1.4, semantics=semantics, **numbers
    )
    weights, projection = random_scene(seed=2, batch=1, queries=12, semantics=semantics)
    maps = renderer(weights, projection)
    bev, cameras = twins(renderer, weights, projection)
    assert_same_gradients(maps.bev[0], bev, [weights.lidar])
    assert_same_gradients(maps.camera[0], cameras, [weights.camera])


def test_distance_kernels_in_several_chunks_equal_the_loop(monkeypatch):
    monkeypatch.setattr("aqr_model.aqr.kernels._CHUNK", 5 * 12 * 16)
    weights, projection = random_scene(seed=2, batch=1, queries=12)
    renderer = WeightRenderer(render_method="distance_weighted")
    bev, _ = twins(renderer, weights, projection)
    assert_same_gradients(renderer(weights, projection).bev[0], bev, [weights.lidar])


@SETTINGS
@given(
    seed=SEEDS,
    method=st.sampled_from(METHODS),
    fields=FIELDS,
    quantile=st.sampled_from([1.0, 0.8]),
    queries=st.sampled_from([0, 1, 20]),
)
def test_every_mix_of_meanings_draws_finite_maps(seed, method, fields, quantile, queries):
    semantics = with_second_values(fields)
    weights, projection = random_scene(seed, queries=queries, semantics=semantics)
    renderer = WeightRenderer(render_method=method, clamp_quantile=quantile, semantics=semantics)
    maps = renderer(weights, projection)
    assert maps.bev.shape == (2, *BEV_SHAPE)
    assert maps.camera.shape == (2, *CAMERA_SHAPE)
    for weight_map in maps:
        assert weight_map.isfinite().all()
        assert weight_map.min() >= 0
        assert weight_map.requires_grad == (semantics.gradient == "flows")
    assert maps.bev.max() <= 1.5
    if semantics.clamped == "both":
        assert maps.camera.max() <= 1.5
    if semantics.gradient == "flows":
        gradients = torch.autograd.grad(maps.bev.sum() + maps.camera.sum(), list(weights))
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("method", METHODS)
def test_legacy_draws_the_users_maps(method):
    with np.load(GOLDEN) as file:
        golden = {name: torch.from_numpy(value) for name, value in file.items() if value.ndim}
    renderer = WeightRenderer(
        render_method=method,
        gaussian_sigma=1.0,
        max_weight_clamp=1.5,
        min_weight_threshold=0.01,
        bev_feature_shape=(32, 32),
        pers_feature_shape=(6, 10, 25),
        semantics="legacy",
    )
    bev = renderer.render_bev_weights(golden["lidar_weights"], golden["pts_bev"])
    torch.testing.assert_close(bev, golden[f"bev_{method}"], rtol=0, atol=1e-6)
    if f"pers_{method}" in golden:
        maps = renderer.render_perspective_weights(golden["camera_weights"], golden["pts_pers"])
        torch.testing.assert_close(maps, golden[f"pers_{method}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_legacy_draws_the_users_maps_at_and_beyond_the_borders(method):
    renderer = WeightRenderer(**renderer_cases.settings(method), semantics="legacy")
    with np.load(GOLDEN.parent / "parity" / "renderer.npz") as golden:
        for name, drawn in renderer_cases.draw(renderer).items():
            np.testing.assert_allclose(drawn, golden[f"{name}_{method}"], rtol=0, atol=1e-6)


def test_places_that_are_not_finite_are_left_out():
    renderer = WeightRenderer(bev_feature_shape=(6, 8), pers_feature_shape=(2, 6, 8))
    weights = torch.tensor([[0.9, 0.9]])
    places = torch.tensor([[[torch.nan, 2.0], [3.0, 4.0]]])
    alone = renderer.render_bev_weights(weights[:, 1:], places[:, 1:])
    assert torch.equal(renderer.render_bev_weights(weights, places), alone)
    views = torch.cat([torch.ones(1, 2, 1), places], dim=-1)
    cameras = renderer.render_perspective_weights(weights, views)
    assert cameras[0, 0].eq(1).all()
    torch.testing.assert_close(cameras[0, 1], alone[0])


def test_drawing_without_features_needs_their_shape():
    with pytest.raises(ValueError, match="`bev_feature_shape` must be given"):
        WeightRenderer().render_bev_weights(torch.rand(1, 2), torch.rand(1, 2, 2))


def test_blocked_weights_get_no_gradient():
    weights, projection = random_scene()
    for weight_map in WeightRenderer(semantics={"gradient": "blocked"})(weights, projection):
        assert not weight_map.requires_grad


def test_one_kernel_is_a_factor_a_cell():
    _, projection = random_scene(batch=1, queries=1)
    loud = QueryWeights(lidar=torch.tensor([[0.7]]), camera=torch.tensor([[0.5]]))
    decay = WeightRenderer(render_method="distance_weighted", distance_decay=0.5)
    row = decay(loud, at(projection, 4.0, 7.0)).bev[0, 4] - 1
    torch.testing.assert_close(row[8:12], row[7:11] * 0.5)
    hat = WeightRenderer(render_method="bilinear", bilinear_radius=2.0)
    row = hat(loud, at(projection, 4.0, 7.0)).bev[0, 4] - 1
    torch.testing.assert_close(row[6:11], 0.4 * torch.tensor([0.5, 1.0, 0.5, 0.0, 0.0]))


def test_adaptive_clamp_cuts_the_share_it_is_told():
    weights, projection = random_scene(seed=4, queries=60)
    free = WeightRenderer(max_weight_clamp=10.0)(weights, projection)
    cut = WeightRenderer(max_weight_clamp=10.0, clamp_quantile=0.75)(weights, projection)
    for before, after in zip(free, cut, strict=True):
        for one, other in zip(before, after, strict=True):
            raised = one[one > 1]
            bound = raised.quantile(0.75)
            torch.testing.assert_close(other, one.clamp(max=bound))
            assert 0.2 < (other == other.max()).sum() / len(raised) < 0.3


def test_adaptive_clamp_looks_at_each_sample_alone():
    weights, projection = random_scene(seed=4, queries=60)
    renderer = WeightRenderer(clamp_quantile=0.75)
    both = renderer(weights, projection).bev[:1]
    quiet = QueryWeights(*(torch.cat([part[:1], part[1:] * 0]) for part in weights))
    assert torch.equal(renderer(quiet, projection).bev[:1], both)


def test_clamp_may_follow_the_training():
    schedule = {"type": "staged", "stages": [[0, 3.0], [9, 2.0], [17, 1.5]]}
    renderer = WeightRenderer(clamp_schedule=schedule)
    assert renderer.max_weight_clamp == 3.0
    renderer.set_epoch(10.5, 24)
    assert renderer.max_weight_clamp == 2.0
    constant = WeightRenderer(max_weight_clamp=2.5)
    constant.set_epoch(10.5, 24)
    assert constant.max_weight_clamp == 2.5


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"bilinear_radius": 3.0}, "bilinear_radius"),
        ({"distance_decay": 0.5}, "distance_decay"),
        ({"render_method": "direct", "gaussian_sigma": 2.0}, "gaussian_sigma"),
        (
            {"render_method": "bilinear", "bilinear_radius": 2.0, "semantics": "legacy"},
            "bilinear_radius",
        ),
    ],
)
def test_numbers_of_another_method_are_named(keywords, named, caplog):
    with caplog.at_level(logging.WARNING):
        WeightRenderer(**keywords)
    assert f"`{named}`" in caplog.text
    assert "has no effect" in caplog.text


def test_zero_background_reads_the_users_threshold_and_clamp_switch():
    _, projection = random_scene(batch=1, queries=1)
    quiet = QueryWeights(lidar=torch.tensor([[0.2]]), camera=torch.tensor([[0.2]]))
    centred = at(projection, 4.0, 7.0)
    zero = AqrSemantics(background="zero")
    assert WeightRenderer(semantics=zero)(quiet, centred).bev.max().item() == pytest.approx(0.2)
    strict = WeightRenderer(min_weight_threshold=0.3, semantics=zero)
    assert strict(quiet, centred).bev.eq(0).all()
    free = WeightRenderer(normalize_weights=False, semantics=zero)
    assert 0 < free(quiet, centred).bev[0, 4, 10].item() < 0.01  # neither cut below
    assert free(*random_scene(seed=1, queries=200)).bev.max() > 1.5  # nor above
