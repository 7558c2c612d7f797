from dataclasses import replace

import pytest
import torch
from aqr_twins import (
    BEV_SHAPE,
    GRID,
    assert_same_gradients,
    busy_generator,
    generator_twin,
    project,
    random_inputs,
    ring_of_cameras,
)

from aqr_model.aqr import (
    AQRWeightGenerator,
    FeatureModulator,
    WeightRenderer,
    project_queries,
)


def hide(projection, query):
    """The projection with one query that neither the grid nor a camera sees."""
    index = torch.tensor([query])
    return replace(
        projection,
        bev_valid=projection.bev_valid.index_fill(1, index, False),
        camera_visible=projection.camera_visible.index_fill(2, index, False),
    )


def encoder_config(**layer):
    """The users' dictionary, with keys of the layer replaced."""
    return {
        "type": "PETRTransformerDecoder",
        "return_intermediate": True,
        "num_layers": 1,
        "transformerlayers": {
            "type": "PETRTransformerDecoderLayer",
            "with_cp": False,
            "attn_cfgs": [
                {"type": "MultiheadAttention", "embed_dims": 16, "num_heads": 2, "dropout": 0.1}
            ],
            "ffn_cfgs": {
                "type": "FFN",
                "embed_dims": 16,
                "feedforward_channels": 24,
                "num_fcs": 2,
                "ffn_drop": 0.0,
                "act_cfg": {"type": "ReLU", "inplace": True},
            },
            "feedforward_channels": 24,
            "operation_order": ("cross_attn", "norm", "ffn", "norm"),
        }
        | layer,
    }


@pytest.mark.parametrize("window_sizes", [(3, 5), (1, 1), (9, 3)])
def test_equals_attention_over_each_query_s_own_tokens(window_sizes):
    points, query_pos, memory, memory_pos = random_inputs()
    generator = busy_generator(window_sizes=window_sizes)
    projection = hide(project(points), query=4)
    assert projection.camera_visible.sum(1).max() == 1
    weights = torch.stack(generator(query_pos, memory, memory_pos, projection), dim=-1)
    twin = generator_twin(generator, query_pos, memory, memory_pos, projection)
    inputs = [query_pos, memory, memory_pos, *generator.parameters()]
    assert_same_gradients(weights, twin, inputs)


def test_reads_every_view_that_sees_the_query():
    points, query_pos, memory, memory_pos = random_inputs()
    generator = busy_generator()
    projection = project_queries(
        points,
        ring_of_cameras(field_deg=160),
        grid=GRID,
        image_shape=(80, 128),
        bev_shape=BEV_SHAPE,
        camera_shape=(3, 5, 8),
    )
    counts = projection.camera_visible.sum(1)
    assert {1, 2} <= set(counts.flatten().tolist())
    weights = torch.stack(generator(query_pos, memory, memory_pos, projection), dim=-1)
    twin = generator_twin(generator, query_pos, memory, memory_pos, projection)
    assert_same_gradients(weights, twin, [query_pos, memory, memory_pos, *generator.parameters()])


def test_one_position_embedding_serves_all_samples():
    points, query_pos, memory, memory_pos = random_inputs()
    generator = busy_generator()
    shared = memory_pos[:1].detach()
    one = generator(query_pos, memory, shared, project(points))
    each = generator(query_pos, memory, shared.expand(2, -1, -1), project(points))
    torch.testing.assert_close(one, each)


def test_query_without_any_window_is_finite_in_value_and_gradient():
    points, query_pos, memory, memory_pos = random_inputs(queries=1)
    generator = busy_generator()
    weights = generator(query_pos, memory, memory_pos, hide(project(points), query=0))
    gradients = torch.autograd.grad(
        sum(part.sum() for part in weights), [query_pos, memory, *generator.parameters()]
    )
    assert all(part.isfinite().all() for part in (*weights, *gradients))
    assert gradients[0].eq(0).all()
    assert gradients[1].eq(0).all()
    assert weights.lidar.unique().numel() == 1


def test_reads_nothing_outside_the_windows():
    points, query_pos, memory, memory_pos = random_inputs(batch=1, queries=1)
    generator = busy_generator(window_sizes=(3, 3))
    projection = project(points)
    weights = generator(query_pos, memory, memory_pos, projection)
    (gradient,) = torch.autograd.grad(weights.lidar.sum(), memory)
    read = gradient.abs().sum(-1)[0].nonzero().numel()
    assert 0 < read <= 18


def test_starts_neutral_and_learns_from_the_second_step():
    points, query_pos, memory, memory_pos = random_inputs()
    torch.manual_seed(0)
    generator = AQRWeightGenerator(embed_dims=16, window_sizes=(3, 5))
    renderer, modulator = WeightRenderer(), FeatureModulator()
    projection = project(points)
    bev, camera = torch.randn(2, 4, 12, 16), torch.randn(6, 4, 5, 8)
    optimizer = torch.optim.SGD(generator.parameters(), lr=1e-2)

    def step():
        weights = generator(query_pos.detach(), memory.detach(), memory_pos.detach(), projection)
        out = modulator(bev, camera, renderer(weights, projection))
        optimizer.zero_grad()
        sum(part.square().sum() for part in out).backward()
        return weights, out

    weights, (bev_out, camera_out) = step()
    assert weights.lidar.eq(0.5).all()
    assert weights.camera.eq(0.5).all()
    assert torch.equal(bev_out, bev)
    assert torch.equal(camera_out, camera)
    predictor = generator.weight_predictor
    assert predictor.weight.grad.abs().sum(dim=1).min() > 0
    assert predictor.bias.grad.abs().min() > 0
    assert all(p.grad.abs().max() == 0 for p in generator.encoder.parameters())
    optimizer.step()
    step()
    for name, parameter in generator.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_state_dict_has_the_users_names():
    generator = AQRWeightGenerator(embed_dims=256, encoder_config=None)
    shapes = {name: list(value.shape) for name, value in generator.state_dict().items()}
    layer = "encoder.layers.0."
    assert shapes == {
        layer + "attentions.0.attn.in_proj_weight": [768, 256],
        layer + "attentions.0.attn.in_proj_bias": [768],
        layer + "attentions.0.attn.out_proj.weight": [256, 256],
        layer + "attentions.0.attn.out_proj.bias": [256],
        layer + "ffns.0.layers.0.0.weight": [1024, 256],
        layer + "ffns.0.layers.0.0.bias": [1024],
        layer + "ffns.0.layers.1.weight": [256, 1024],
        layer + "ffns.0.layers.1.bias": [256],
        layer + "norms.0.weight": [256],
        layer + "norms.0.bias": [256],
        layer + "norms.1.weight": [256],
        layer + "norms.1.bias": [256],
        "encoder.post_norm.weight": [256],
        "encoder.post_norm.bias": [256],
        "weight_predictor.weight": [2, 256],
        "weight_predictor.bias": [2],
    }


def test_reads_the_users_encoder_config():
    generator = AQRWeightGenerator(
        embed_dims=16,
        window_sizes=[9, 5],
        use_type_embed=True,
        bev_feature_shape=(12, 16),
        pers_feature_shape=(3, 5, 8),
        encoder_config=encoder_config(),
    )
    layer = generator.encoder.layers[0]
    assert layer.attentions[0].num_heads == 2
    assert layer.attentions[0].attn_drop.p == 0.1
    assert layer.ffns[0].layers[0][0].out_features == 24
    points, *inputs = random_inputs()
    generator(*inputs, project(points))


def test_dropout_acts_in_training_only():
    points, *inputs = random_inputs()
    generator = busy_generator(num_heads=None, encoder_config=encoder_config())
    projection = project(points)
    generator.eval()
    torch.testing.assert_close(generator(*inputs, projection), generator(*inputs, projection))
    generator.train()
    first, second = generator(*inputs, projection), generator(*inputs, projection)
    assert not torch.equal(first.lidar, second.lidar)


def test_predictor_bias_is_the_first_weight():
    points, *inputs = random_inputs()
    generator = AQRWeightGenerator(embed_dims=16, predictor_bias=1.5)
    weights = generator(*inputs, project(points))
    torch.testing.assert_close(weights.camera, torch.full_like(weights.camera, 1.5).sigmoid())


@pytest.mark.parametrize(
    ("given", "read"), [([8, 5], (9, 5)), ([15, 4], (15, 5)), ([2, 2], (3, 3))]
)
def test_even_windows_are_read_as_past_runs_read_them(given, read, caplog):
    generator = AQRWeightGenerator(embed_dims=16, window_sizes=given)
    assert (generator.camera_window, generator.bev_window) == read
    assert f"`window_sizes` {given} are read as {list(read)}" in caplog.text


def test_odd_windows_are_not_worth_a_warning(caplog):
    AQRWeightGenerator(embed_dims=16, window_sizes=(9, 5))
    assert not caplog.text


def test_random_predictor_has_the_spread_of_past_runs():
    """Content of width 256 behind a LayerNorm: logits of mean 1.5 and standard deviation 1.41."""
    torch.manual_seed(0)
    generator = AQRWeightGenerator(embed_dims=256, semantics={"predictor": "random"})
    assert generator.predictor_bias == 1.5
    content = torch.nn.functional.layer_norm(torch.randn(4000, 256), (256,))
    weights = generator.weight_predictor(content).sigmoid()
    assert weights.mean().item() == pytest.approx(0.754, abs=0.02)
    assert weights.std().item() == pytest.approx(0.19, abs=0.02)
    chosen = AQRWeightGenerator(embed_dims=16, predictor_bias=0.5, semantics="legacy")
    assert chosen.weight_predictor.bias.eq(0.5).all()
    assert chosen.weight_predictor.weight.abs().min() > 0


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"window_sizes": [5]}, "two sizes >= 1"),
        ({"window_sizes": [0, 5]}, r"two sizes >= 1.*got \[0, 5\]"),
        ({"semantics": "old"}, "`semantics.preset` must be one of"),
        ({"num_heads": 3}, r"must divide `embed_dims` \(16\), but got 3"),
        ({"encoder_config": {"num_layers": 2}}, "num_layers` must be 1, but got 2"),
        ({"encoder_config": {"post_norm_cfg": {"type": "BN"}}}, "must be 'LN', but got 'BN'"),
        ({"encoder_config": {"layers": 1}}, "knows the keys type, .*but got layers"),
        ({"encoder_config": encoder_config(operation_order=("self_attn",))}, "operation_order"),
        ({"encoder_config": encoder_config(attn_cfgs=[{}, {}])}, "one attention"),
        ({"encoder_config": encoder_config(attn_cfgs={"heads": 2})}, "but got heads"),
        ({"encoder_config": encoder_config(attn_cfgs={"embed_dims": 32})}, "must be 16"),
        ({"encoder_config": encoder_config(attn_cfgs={"dropout": 1.0})}, r"in \[0, 1\)"),
        (
            {"encoder_config": encoder_config(ffn_cfgs={"act_cfg": {"type": "GELU"}})},
            "must be 'ReLU', but got 'GELU'",
        ),
        ({"encoder_config": encoder_config(), "num_heads": 2}, "either in `encoder_config`"),
    ],
)
def test_bad_configs(keywords, message):
    with pytest.raises(ValueError, match=message):
        AQRWeightGenerator(**{"embed_dims": 16} | keywords)


def test_unknown_key_is_refused():
    with pytest.raises(TypeError, match="window_size"):
        AQRWeightGenerator(window_size=3)


@pytest.mark.parametrize("broken", ["query_pos", "memory", "memory_pos", "samples"])
def test_bad_inputs(broken):
    points, query_pos, memory, memory_pos = random_inputs(batch=3)
    inputs = {"query_pos": query_pos, "memory": memory, "memory_pos": memory_pos}
    if broken == "samples":
        inputs["memory_pos"] = memory_pos[:2]
    else:
        inputs[broken] = inputs[broken][:, :-1]
    with pytest.raises(ValueError, match="memory_pos" if broken == "samples" else broken):
        busy_generator()(*inputs.values(), project(points))


def test_declared_feature_shapes_are_checked():
    points, *inputs = random_inputs()
    generator = busy_generator(bev_feature_shape=(180, 180))
    with pytest.raises(ValueError, match=r"is \(180, 180\).*features are \(12, 16\)"):
        generator(*inputs, project(points))
