import pytest
import torch
from aqr_twins import assert_same_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from aqr_model.aqr import FeatureModulator, WeightMaps


def scene(seed=0):
    """Features and maps of 2 samples and 3 views."""
    draw = torch.Generator().manual_seed(seed)
    bev = torch.randn(2, 4, 5, 6, generator=draw).requires_grad_()
    camera = torch.randn(6, 4, 3, 7, generator=draw).requires_grad_()
    maps = WeightMaps(
        bev=(1.5 * torch.rand(2, 5, 6, generator=draw)).requires_grad_(),
        camera=(1.5 * torch.rand(2, 3, 3, 7, generator=draw)).requires_grad_(),
    )
    return bev, camera, maps


def twin(features, weight_map, residual):
    """f ((1 − r) M + r), channel by channel."""
    gain = (1 - residual) * weight_map + residual
    return torch.stack([features[:, c] * gain for c in range(features.shape[1])], dim=1)


@pytest.mark.parametrize("residual", [0.0, 0.4, 0.7])
def test_equals_the_convex_form(residual):
    bev, camera, maps = scene()
    bev_out, camera_out = FeatureModulator(residual_weight=residual)(bev, camera, maps)
    assert_same_gradients(bev_out, twin(bev, maps.bev, residual), [bev, maps.bev])
    of_cameras = twin(camera, maps.camera.reshape(6, 3, 7), residual)
    assert_same_gradients(camera_out, of_cameras, [camera, maps.camera])


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
    residual=st.floats(0.0, 1.0),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_neutral_map_returns_the_features_bit_for_bit(values, residual, dtype):
    features = torch.tensor(values).to(dtype).view(1, -1, 1, 1)
    features = features.where(features.isfinite(), 0.0)
    maps = WeightMaps(bev=torch.ones(1, 1, 1), camera=torch.ones(1, 1, 1, 1))
    for out in FeatureModulator(residual_weight=residual)(features, features, maps):
        assert torch.equal(out.signbit(), features.signbit())
        assert torch.equal(out, features)
        assert out.dtype == dtype


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_full_residual_returns_the_features_bit_for_bit(seed):
    bev, camera, maps = scene(seed)
    bev_out, camera_out = FeatureModulator(residual_weight=1.0)(bev, camera, maps)
    assert torch.equal(bev_out, bev)
    assert torch.equal(camera_out, camera)


def test_largest_gain():
    modulator = FeatureModulator(residual_weight=0.7)
    ones, maps = torch.ones(1, 2, 3, 3), torch.full((1, 3, 3), 1.5)
    out, _ = modulator(ones, ones, WeightMaps(bev=maps, camera=maps[:, None]))
    assert modulator.max_gain(1.5) == pytest.approx(1.15)
    assert out.max().item() == pytest.approx(modulator.max_gain(1.5))


def test_residual_may_change_during_training():
    bev, camera, maps = scene()
    changed = FeatureModulator()
    changed.residual_weight = 0.4
    fresh = FeatureModulator(residual_weight=0.4)
    torch.testing.assert_close(changed(bev, camera, maps), fresh(bev, camera, maps))


def test_reads_the_users_config():
    FeatureModulator(
        modulation_type="element_wise",
        normalize_weights=False,
        residual_connection=True,
        residual_weight=0.7,
        learnable_modulation=False,
        activation="none",
    )


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"modulation_type": "channel_wise"},
            "`modulation_type` must be 'element_wise'.*not built",
        ),
        ({"activation": "relu"}, "`activation` must be 'none', but got 'relu'"),
        ({"learnable_modulation": True}, "`learnable_modulation` must be False"),
        ({"normalize_weights": True}, "`normalize_weights` must be False"),
        ({"residual_connection": False}, "set `residual_weight=0`"),
        ({"residual_weight": 1.1}, "`0 <= residual_weight <= 1` must hold, but got 1.1"),
        ({"residual_weight": float("nan")}, "residual_weight <= 1` must hold, but got nan"),
    ],
)
def test_bad_configs(keywords, message):
    with pytest.raises(ValueError, match=message):
        FeatureModulator(**keywords)


def test_bad_shapes():
    bev, camera, maps = scene()
    with pytest.raises(ValueError, match=r"Features must be \[N, C, H, W\] over a map"):
        FeatureModulator()(bev[:, :, 1:], camera, maps)
