import pytest
import torch
from cmt_cases import head_config
from mmcv.cnn.bricks.transformer import build_transformer_layer
from mmdet.models.utils import build_transformer

from aqr_model.cmt.decoder.transformer import memory_tokens


def layer_config(**changes):
    decoder = head_config()["transformer"]["decoder"]
    return decoder["transformerlayers"] | changes


def inputs(num_queries=5, num_tokens=11, batch=2, dims=16):
    draw = torch.Generator().manual_seed(0)
    shapes = [num_queries, num_tokens, num_queries, num_tokens]
    return [torch.randn(n, batch, dims, generator=draw) for n in shapes]


def test_layer_equals_its_parts():
    layer = build_transformer_layer(layer_config())
    query, memory, query_pos, memory_pos = inputs()
    x = layer.attentions[0](query, query, query, query_pos=query_pos, key_pos=query_pos)
    x = layer.norms[0](x)
    x = layer.norms[1](layer.attentions[1](x, memory, query_pos=query_pos, key_pos=memory_pos))
    x = layer.norms[2](x + layer.ffns[0].layers(x))
    torch.testing.assert_close(layer(query, memory, query_pos, memory_pos), x)


def test_self_mask_hides_queries():
    layer = build_transformer_layer(layer_config())
    query, memory, query_pos, memory_pos = inputs()
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[:4, 4] = True
    before = layer(query, memory, query_pos, memory_pos, mask)
    query[4] += 1
    after = layer(query, memory, query_pos, memory_pos, mask)
    torch.testing.assert_close(before[:4], after[:4])
    assert not torch.allclose(before[4], after[4])


def test_checkpointing_changes_nothing():
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        layer = build_transformer_layer(layer_config(with_cp=with_cp)).train()
        query, memory, query_pos, memory_pos = inputs()
        layer(query, memory, query_pos, memory_pos).square().sum().backward()
        grads.append([p.grad for p in layer.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_ffn_config_wins_over_the_short_argument():
    layer = build_transformer_layer(layer_config(feedforward_channels=99, ffn_dropout=0.5))
    assert layer.ffns[0].layers[0][0].out_features == 32
    config = layer_config(feedforward_channels=48)
    config["ffn_cfgs"] = None
    assert build_transformer_layer(config).ffns[0].layers[0][0].out_features == 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operation_order": ("norm", "ffn")}, "`operation_order` must be .* but got"),
        ({"attn_cfgs": [{"type": "PETRMultiheadAttention"}]}, "but got 1 entries"),
    ],
)
def test_bad_layers(change, message):
    with pytest.raises(ValueError, match=message):
        build_transformer_layer(layer_config(**change))


def test_transformer_returns_every_layer_and_starts_from_zero():
    config = head_config()["transformer"]
    transformer = build_transformer(config)
    transformer.init_weights()
    query, memory, query_pos, memory_pos = inputs()
    outputs = transformer(memory, memory_pos, query_pos.transpose(0, 1))
    assert outputs.shape == (2, 2, 5, 16)
    content = torch.zeros_like(query)
    for layer, got in zip(transformer.decoder.layers, outputs, strict=True):
        content = layer(content, memory, query_pos, memory_pos)
        torch.testing.assert_close(got, transformer.decoder.post_norm(content).transpose(0, 1))


def test_only_last_layer_is_refused():
    config = head_config()["transformer"]
    config["decoder"]["return_intermediate"] = False
    with pytest.raises(ValueError, match="`return_intermediate` must be True"):
        build_transformer(config)


def test_memory_is_bev_row_by_row_then_views():
    bev = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    camera = torch.arange(12 * 3 * 2 * 7.0).reshape(12, 3, 2, 7)
    tokens = memory_tokens(bev, camera, 2)
    assert tokens.shape == (20 + 6 * 14, 2, 3)
    assert torch.equal(tokens[3 * 5 + 2, 1], bev[1, :, 3, 2])
    view, row, column = 4, 1, 6
    token = tokens[20 + view * 14 + row * 7 + column, 1]
    assert torch.equal(token, camera[6 + view, :, row, column])
