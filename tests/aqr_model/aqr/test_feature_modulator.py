import pytest
import torch
from aqr_twins import assert_same_gradients, with_second_values
from hypothesis import given, settings
from hypothesis import strategies as st

from aqr_model.aqr import FeatureModulator, WeightMaps

TYPES = ("element_wise", "channel_wise", "adaptive")
ACTIVATIONS = ("none", "sigmoid", "tanh", "relu")


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


def full_twin(modulator, features, weight_map):
    """Any variant, one map and one channel at a time, from the formulas of docs/aqr.md."""
    zero = modulator.semantics.background == "zero"
    residual = modulator.residual_weight
    scaled = []
    for one, of_map in zip(features, weight_map, strict=True):
        if modulator.normalize_weights:
            low, high = of_map.min(), of_map.max()
            of_map = (of_map - low) / (high - low) if high > low else of_map * 0 + 0.5
        value = of_map if zero else of_map - 1
        if modulator.modulation_scale is not None:
            value = modulator.modulation_scale * value + modulator.modulation_bias
        value = {
            "none": lambda x: x,
            "tanh": torch.tanh,
            "relu": torch.relu,
            "sigmoid": lambda x: 1 / (1 + torch.exp(-x)) * (1 if zero else 2) - (0 if zero else 1),
        }[modulator.activation](value)
        level = value if zero else 1 + value
        mean = level.sum() / level.numel()
        level = {
            "element_wise": level,
            "channel_wise": mean.expand_as(level),
            "adaptive": 0.7 * level + 0.3 * mean,
        }[modulator.modulation_type]
        if modulator.semantics.residual == "additive":
            gain = level + residual
        else:
            gain = (1 - residual) * level + residual
        scaled.append(torch.stack([channel * gain for channel in one]))
    return torch.stack(scaled)


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
    kind=st.sampled_from(TYPES),
    activation=st.sampled_from(ACTIVATIONS),
    learnable=st.booleans(),
)
def test_neutral_map_returns_the_features_bit_for_bit(
    values, residual, dtype, kind, activation, learnable
):
    features = torch.tensor(values).to(dtype).view(1, -1, 1, 1)
    features = features.where(features.isfinite(), 0.0)
    maps = WeightMaps(bev=torch.ones(1, 1, 1), camera=torch.ones(1, 1, 1, 1))
    modulator = FeatureModulator(
        residual_weight=residual,
        modulation_type=kind,
        activation=activation,
        learnable_modulation=learnable,
    )
    for out in modulator(features, features, maps):
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
    users = FeatureModulator(
        modulation_type="element_wise",
        normalize_weights=False,
        residual_connection=True,
        residual_weight=0.6,
        learnable_modulation=False,
        activation="none",
    )
    bev, camera, maps = scene()
    for out, features, drawn in zip(
        users(bev, camera, maps), (bev, camera), (maps.bev, maps.camera.flatten(0, 1)), strict=True
    ):
        torch.testing.assert_close(out, twin(features, drawn, 0.6))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"modulation_type": "pixel"}, "`modulation_type` must be one of 'element_wise'.*'pixel'"),
        ({"activation": "gelu"}, "`activation` must be one of 'none'.*'gelu'"),
        ({"normalize_weights": True}, "`normalize_weights` must be False.*neutral"),
        (
            {"residual_schedule": {"type": "constant", "value": 0.5}, "residual_weight": 0.7},
            r"\(0.7\) must be where `residual_schedule` starts \(0.5\)",
        ),
        (
            {"residual_schedule": {"type": "cosine", "start_value": 0.5, "end_value": -0.1}},
            "residual_weight <= 1` must hold, but got -0.1",
        ),
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


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "fields", [(), ("background",), ("residual",), ("background", "residual")], ids="-".join
)
@pytest.mark.parametrize("learned", [False, True])
def test_every_variant_equals_its_loop(kind, activation, fields, learned):
    modulator = FeatureModulator(
        modulation_type=kind,
        activation=activation,
        residual_weight=0.4,
        learnable_modulation=learned,
        normalize_weights="background" in fields and learned,
        semantics=with_second_values(fields),
    )
    bev, camera, maps = scene()
    inputs = [bev, maps.bev]
    if learned:
        with torch.no_grad():
            modulator.modulation_scale.fill_(1.7)
            modulator.modulation_bias.fill_(0.2)
        inputs += [modulator.modulation_scale, modulator.modulation_bias]
    bev_out, camera_out = modulator(bev, camera, maps)
    assert_same_gradients(bev_out, full_twin(modulator, bev, maps.bev), inputs)
    of_cameras = full_twin(modulator, camera, maps.camera.reshape(6, 3, 7))
    assert_same_gradients(camera_out, of_cameras, [camera, maps.camera])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fields", [(), ("residual",), ("background", "residual")], ids="-".join)
@pytest.mark.parametrize("normalize", [False, True])
def test_largest_gain_of_every_variant(activation, fields, normalize):
    normalize = normalize and "background" in fields
    modulator = FeatureModulator(
        activation=activation,
        learnable_modulation=True,
        normalize_weights=normalize,
        semantics=with_second_values(fields),
    )
    torch.nn.init.constant_(modulator.modulation_scale, 1.3)
    ones, full = torch.ones(1, 2, 3, 3), torch.full((1, 3, 3), 1.5)
    full[0, 0, 0] = 0.0
    out, _ = modulator(ones, ones, WeightMaps(bev=full, camera=full[:, None]))
    assert out.max().item() == pytest.approx(modulator.max_gain(1.5))


def test_constant_maps_stretch_to_one_half():
    modulator = FeatureModulator(residual_weight=0.0, normalize_weights=True, semantics="legacy")
    ones, flat = torch.ones(1, 1, 2, 2), torch.full((1, 2, 2), 1.2)
    for out in modulator(ones, ones, WeightMaps(bev=flat, camera=flat[:, None])):
        torch.testing.assert_close(out, torch.full_like(ones, 0.5))


def test_learned_numbers_have_the_users_names_and_learn_from_the_start():
    modulator = FeatureModulator(learnable_modulation=True)
    assert {name: list(value.shape) for name, value in modulator.state_dict().items()} == {
        "modulation_scale": [1],
        "modulation_bias": [1],
    }
    bev, camera, maps = scene()
    sum(out.square().sum() for out in modulator(bev, camera, maps)).backward()
    assert modulator.modulation_scale.grad.abs() > 0
    assert modulator.modulation_bias.grad.abs() > 0
    assert not FeatureModulator().state_dict()


def test_residual_may_follow_the_training():
    schedule = {"type": "cosine", "start_value": 0.7, "end_value": 0.4, "warmup_epochs": 5}
    modulator = FeatureModulator(residual_weight=0.7, residual_schedule=schedule)
    modulator.set_epoch(14.5, 24)
    assert modulator.residual_weight == pytest.approx(0.55)
    modulator.set_epoch(24, 24)
    assert modulator.residual_weight == 0.4
