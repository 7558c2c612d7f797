from dataclasses import replace

import pytest
import torch
from aqr_twins import BEV_SHAPE, CAMERA_SHAPE, assert_same_gradients, map_twin, project
from hypothesis import given, settings
from hypothesis import strategies as st

from aqr_model.aqr import QueryWeights, WeightRenderer

SETTINGS = settings(max_examples=25, deadline=None)
SEEDS = st.integers(min_value=0, max_value=2**31 - 1)


def scene(seed=0, batch=2, queries=7):
    """Random weights and projection."""
    draw = torch.Generator().manual_seed(seed)
    lidar, camera = torch.rand(2, batch, queries, generator=draw).unbind()
    weights = QueryWeights(lidar=lidar.requires_grad_(), camera=camera.requires_grad_())
    return weights, project(torch.rand(batch, queries, 3, generator=draw))


@pytest.mark.parametrize(("sigma", "clamp"), [(1.0, 1.5), (0.6, 2.5), (2.0, 1.1)])
def test_equals_the_loop_over_pixels_and_queries(sigma, clamp):
    weights, projection = scene(seed=2, queries=12)
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
@given(seed=SEEDS, clamp=st.floats(1.0, 4.0), sigma=st.floats(0.3, 4.0))
def test_maps_stay_between_zero_and_the_clamp(seed, clamp, sigma):
    renderer = WeightRenderer(gaussian_sigma=sigma, max_weight_clamp=clamp)
    limit = torch.tensor(clamp, dtype=torch.float32)
    for weight_map in renderer(*scene(seed, queries=30)):
        assert weight_map.min() >= 0
        assert weight_map.max() <= limit


@SETTINGS
@given(seed=SEEDS)
def test_order_of_queries_does_not_matter(seed):
    weights, projection = scene(seed)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    shuffled = replace(
        projection,
        bev_cells=projection.bev_cells[:, order],
        bev_valid=projection.bev_valid[:, order],
        camera_cells=projection.camera_cells[:, :, order],
        camera_visible=projection.camera_visible[:, :, order],
    )
    renderer = WeightRenderer()
    there = renderer(QueryWeights(*(part[:, order] for part in weights)), shuffled)
    torch.testing.assert_close(renderer(weights, projection), there)


@SETTINGS
@given(seed=SEEDS, place=st.sampled_from([0.0, -40.0, 1e30, float("inf"), float("nan")]))
def test_unseen_query_adds_exactly_nothing(seed, place):
    weights, projection = scene(seed)
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
    renderer = WeightRenderer()
    maps = renderer(weights, hidden)
    silent = QueryWeights(*(part.index_fill(1, unseen, 0.5) for part in weights))
    neutral = renderer(silent, replace(projection, bev_valid=valid, camera_visible=visible))
    assert torch.equal(maps.bev, neutral.bev)
    assert torch.equal(maps.camera, neutral.camera)
    gradients = torch.autograd.grad(maps.bev.sum() + maps.camera.sum(), list(weights))
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert gradient[:, unseen].eq(0).all()


@SETTINGS
@given(seed=SEEDS, clamp=st.floats(1.0, 4.0), sigma=st.floats(0.3, 4.0))
def test_half_weights_draw_exactly_one(seed, clamp, sigma):
    _, projection = scene(seed)
    half = torch.full((2, 7), 0.5)
    renderer = WeightRenderer(gaussian_sigma=sigma, max_weight_clamp=clamp)
    for weight_map in renderer(QueryWeights(lidar=half, camera=half), projection):
        assert weight_map.eq(1).all()


def test_no_query_draws_exactly_one():
    projection = project(torch.rand(2, 0, 3))
    none = torch.zeros(2, 0)
    for weight_map in WeightRenderer()(QueryWeights(lidar=none, camera=none), projection):
        assert weight_map.eq(1).all()


def test_query_on_a_token_has_its_full_weight_there():
    weights, projection = scene(batch=1, queries=1)
    cells = torch.tensor([[[4.0, 7.0]]])
    centred = replace(projection, bev_cells=cells, bev_valid=torch.tensor([[True]]))
    loud = QueryWeights(lidar=torch.tensor([[0.7]]), camera=weights.camera)
    for sigma in (0.5, 1.0, 3.0):
        bev = WeightRenderer(gaussian_sigma=sigma)(loud, centred).bev
        assert bev[0].argmax().item() == 4 * 16 + 7
        assert bev[0, 4, 7].item() == pytest.approx(1.4)


def test_gradient_passes_on_the_clamp_itself_and_not_beyond():
    _, projection = scene(batch=1, queries=1)
    cells = torch.tensor([[[4.0, 7.0]]])
    centred = replace(projection, bev_cells=cells, bev_valid=torch.tensor([[True]]))

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
    weights, projection = scene()
    changed = WeightRenderer()
    changed.max_weight_clamp, changed.gaussian_sigma = 2.5, 0.7
    fresh = WeightRenderer(max_weight_clamp=2.5, gaussian_sigma=0.7)
    torch.testing.assert_close(changed(weights, projection), fresh(weights, projection))


def test_draws_in_float32_under_autocast():
    weights, projection = scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = WeightRenderer()(weights, projection)
    assert maps.bev.dtype == maps.camera.dtype == torch.float32
    torch.testing.assert_close(maps, WeightRenderer()(weights, projection))


def test_a_checkpoint_holds_nothing_of_it():
    assert not WeightRenderer().state_dict()


def test_reads_the_users_config():
    renderer = WeightRenderer(
        render_method="gaussian",
        gaussian_sigma=1.0,
        bilinear_radius=1.5,
        distance_decay=0.8,
        min_weight_threshold=0.01,
        bev_feature_shape=(12, 16),
        pers_feature_shape=(3, 5, 8),
        normalize_weights=True,
    )
    renderer(*scene())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"render_method": "splat"}, "one of 'gaussian', but got 'splat'"),
        ({"gaussian_sigma": 0.0}, "`gaussian_sigma > 0` must hold, but got 0.0"),
        ({"gaussian_sigma": float("nan")}, "`gaussian_sigma > 0` must hold"),
        ({"max_weight_clamp": 0.9}, "`max_weight_clamp >= 1` must hold.*got 0.9"),
        ({"normalize_weights": False}, "`normalize_weights` has no effect"),
        ({"min_weight_threshold": 0.2}, "`min_weight_threshold` has no effect"),
        ({"bilinear_radius": 3.0}, "`bilinear_radius` has no effect"),
        ({"distance_decay": 0.5}, "`distance_decay` has no effect"),
    ],
)
def test_bad_configs(keywords, message):
    with pytest.raises(ValueError, match=message):
        WeightRenderer(**keywords)


def test_declared_feature_shapes_are_checked():
    renderer = WeightRenderer(pers_feature_shape=(6, 40, 100))
    with pytest.raises(ValueError, match=r"is \(6, 40, 100\).*features are \(3, 5, 8\)"):
        renderer(*scene())
