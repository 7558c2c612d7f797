import pytest
import torch
from cmt_cases import head_config
from mmcv.cnn.bricks.transformer import build_attention, build_transformer_layer
from mmdet.models.utils import build_transformer

from aqr_model.cmt.decoder.projections import Groups, project_memory
from aqr_model.cmt.decoder.transformer import memory_tokens


def layer_config(**changes):
    decoder = head_config()["transformer"]["decoder"]
    return decoder["transformerlayers"] | changes


def inputs(num_queries=5, num_tokens=11, batch=2, dims=16):
    """Query positions, tokens, token positions."""
    draw = torch.Generator().manual_seed(0)
    sizes = [num_queries, num_tokens, num_tokens]
    return [torch.randn(batch, n, dims, generator=draw) for n in sizes]


def decoder_of(**changes):
    config = head_config()["transformer"]
    config["decoder"]["transformerlayers"] |= changes
    torch.manual_seed(0)
    transformer = build_transformer(config)
    transformer.init_weights()
    return transformer.decoder


def test_layer_equals_its_parts():
    layer = build_transformer_layer(layer_config())
    query_pos, tokens, token_pos = inputs()
    (memory,) = project_memory(tokens, tokens + token_pos, [layer.attentions[1].attn])
    query = torch.randn_like(query_pos)
    x = layer.norms[0](layer.attentions[0].attend_self(query, query_pos, None))
    x = layer.norms[1](layer.attentions[1].attend_memory(x, query_pos, memory))
    x = layer.norms[2](x + layer.ffns[0].layers(x))
    torch.testing.assert_close(layer(query, query_pos, memory), x)


def test_mmcvs_attention_is_read_as_ours():
    attention = layer_config()["attn_cfgs"][0]
    layer = build_transformer_layer(
        layer_config(attn_cfgs=[attention | {"type": "MultiheadAttention"}, attention])
    )
    names = {name for name, _ in layer.attentions[0].named_parameters()}
    assert names == {name for name, _ in build_attention(attention).named_parameters()}
    with pytest.raises(ValueError, match=r"must be MultiheadAttention, .* but got 'MultiScale"):
        build_transformer_layer(
            layer_config(attn_cfgs=[{"type": "MultiScaleDeformableAttention"}, attention])
        )


@pytest.mark.parametrize("groups", [None, Groups(2, 1)])
def test_checkpointing_changes_nothing(groups):
    grads = []
    for with_cp in (False, True):
        decoder = decoder_of(with_cp=with_cp).train()
        query_pos, tokens, token_pos = (part.requires_grad_() for part in inputs())
        decoder(query_pos, tokens, token_pos, groups).square().sum().backward()
        leaves = [*decoder.parameters(), query_pos, tokens, token_pos]
        grads.append([leaf.grad for leaf in leaves])
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
    transformer = build_transformer(head_config()["transformer"])
    transformer.init_weights()
    query_pos, tokens, token_pos = inputs()
    outputs = transformer(tokens, token_pos, query_pos)
    assert outputs.shape == (2, 2, 5, 16)
    content = torch.zeros_like(query_pos)
    for layer, got in zip(transformer.decoder.layers, outputs, strict=True):
        (memory,) = project_memory(tokens, tokens + token_pos, [layer.attentions[1].attn])
        content = layer(content, query_pos, memory)
        torch.testing.assert_close(got, transformer.decoder.post_norm(content))


def test_only_last_layer_is_refused():
    config = head_config()["transformer"]
    config["decoder"]["return_intermediate"] = False
    with pytest.raises(ValueError, match="`return_intermediate` must be True"):
        build_transformer(config)


def test_memory_is_bev_row_by_row_then_views():
    bev = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    camera = torch.arange(12 * 3 * 2 * 7.0).reshape(12, 3, 2, 7)
    tokens = memory_tokens(bev, camera, 2)
    assert tokens.shape == (2, 20 + 6 * 14, 3)
    assert torch.equal(tokens[1, 3 * 5 + 2], bev[1, :, 3, 2])
    view, row, column = 4, 1, 6
    token = tokens[1, 20 + view * 14 + row * 7 + column]
    assert torch.equal(token, camera[6 + view, :, row, column])
