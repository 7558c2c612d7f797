import cmt_cases  # noqa: F401  (registers the parts)
import pytest
import torch
from mmcv.cnn.bricks.transformer import build_attention
from torch import nn

DIMS, HEADS, L, S, B = 16, 4, 5, 7, 3


def build(kind="PETRMultiheadAttention", **config):
    torch.manual_seed(0)
    return build_attention({"type": kind, "embed_dims": DIMS, "num_heads": HEADS} | config)


def tokens(length, seed):
    return torch.randn(length, B, DIMS, generator=torch.Generator().manual_seed(seed))


def masks():
    blocked = torch.zeros(L, S, dtype=torch.bool)
    blocked[0, :4] = blocked[3, 2:] = True
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1, 5:] = True
    additive = torch.randn(L, S, generator=torch.Generator().manual_seed(9))
    return {
        "none": {},
        "bool": {"attn_mask": blocked},
        "additive": {"attn_mask": additive},
        "per head": {"attn_mask": torch.randn(B * HEADS, L, S)},
        "padding": {"key_padding_mask": padding},
        "bool and padding": {"attn_mask": blocked, "key_padding_mask": padding},
        "additive and padding": {
            "attn_mask": additive,
            "key_padding_mask": torch.zeros(B, S).masked_fill(padding, float("-inf")),
        },
    }


@pytest.mark.parametrize("kind", ["PETRMultiheadAttention", "PETRMultiheadFlashAttention"])
@pytest.mark.parametrize("case", masks())
def test_equals_torch_multihead_attention(kind, case):
    """Values and gradients, with every kind of mask."""
    ours = build(kind, dropout=0.1).eval()
    theirs = nn.MultiheadAttention(DIMS, HEADS)
    theirs.load_state_dict(ours.attn.state_dict())
    kwargs = masks()[case]
    query, memory, key_pos = tokens(L, 1), tokens(S, 2), tokens(S, 3)
    query_pos = tokens(L, 4)
    want = theirs(query + query_pos, memory + key_pos, memory, **kwargs, need_weights=False)[0]
    if case == "additive and padding":
        kwargs["key_padding_mask"] = kwargs["key_padding_mask"].isinf()
    got = ours(query, memory, memory, query_pos=query_pos, key_pos=key_pos, **kwargs)
    torch.testing.assert_close(got, query + want)
    draw = torch.randn_like(got)
    (got * draw).sum().backward()
    (want * draw).sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.attn.get_parameter(name).grad, parameter.grad)


def test_batch_first_is_the_transposed_call():
    query, memory = tokens(L, 1), tokens(S, 2)
    want = build()(query, memory)
    got = build(batch_first=True)(query.transpose(0, 1), memory.transpose(0, 1))
    torch.testing.assert_close(got.transpose(0, 1), want)


def test_self_attention_takes_the_query_position_for_the_key():
    query, position = tokens(L, 1), tokens(L, 2)
    attention = build()
    got = attention(query, query_pos=position)
    torch.testing.assert_close(
        got, attention(query, query, query, query_pos=position, key_pos=position)
    )


def test_the_flash_variant_keeps_all_attention_weights():
    query, memory = tokens(L, 1), tokens(S, 2)
    flash = build("PETRMultiheadFlashAttention", attn_drop=0.5).train()
    assert torch.equal(flash(query, memory), flash(query, memory))
    plain = build("PETRMultiheadAttention", attn_drop=0.5).train()
    assert not torch.equal(plain(query, memory), plain(query, memory))


@pytest.mark.parametrize("kind", ["PETRMultiheadAttention", "PETRMultiheadFlashAttention"])
def test_the_short_rate_drops_the_branch_too(kind):
    attention = build(kind, dropout=0.5).train()
    query = tokens(L, 1)
    assert attention.dropout_layer.p == 0.5
    assert not torch.equal(attention(query), attention(query))


def test_a_flash_rate_of_zero_has_no_biases():
    names = {"in_proj_weight", "out_proj.weight"}
    assert set(build("PETRMultiheadFlashAttention", dropout=0.0).attn.state_dict()) == names
    biases = {"in_proj_bias", "out_proj.bias"}
    for kind, rate in (("PETRMultiheadFlashAttention", 0.1), ("PETRMultiheadAttention", 0.0)):
        assert set(build(kind, dropout=rate).attn.state_dict()) == names | biases


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="multiple of `num_heads`, but got 16 and 5"):
        build(num_heads=5)
