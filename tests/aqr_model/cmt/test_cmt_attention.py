import cmt_cases  # noqa: F401  (registers the parts)
import pytest
import torch
from mmcv.cnn.bricks.transformer import build_attention
from torch import nn

from aqr_model.cmt.decoder.projections import Groups, project_memory

DIMS, HEADS, Q, T, B = 16, 4, 5, 7, 3
KINDS = ("PETRMultiheadAttention", "PETRMultiheadFlashAttention")


def build(kind="PETRMultiheadAttention", seed=0, **config):
    torch.manual_seed(seed)
    return build_attention({"type": kind, "embed_dims": DIMS, "num_heads": HEADS} | config)


def tokens(length, seed):
    return torch.randn(B, length, DIMS, generator=torch.Generator().manual_seed(seed))


def twin(attention):
    theirs = nn.MultiheadAttention(DIMS, HEADS, batch_first=True)
    theirs.load_state_dict(attention.attn.state_dict())
    return theirs


def assert_same(ours, theirs, got, want):
    """Values, and the gradients of all parameters."""
    torch.testing.assert_close(got, want)
    draw = torch.randn_like(got)
    (got * draw).sum().backward()
    (want * draw).sum().backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.attn.get_parameter(name).grad, parameter.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_the_memory_equals_torchs_attention(kind):
    ours = build(kind, dropout=0.1).eval()
    theirs = twin(ours)
    query, query_pos, memory, key_pos = tokens(Q, 1), tokens(Q, 2), tokens(T, 3), tokens(T, 4)
    placed = memory + key_pos
    want = theirs(query + query_pos, placed, memory, need_weights=False)[0]
    (projected,) = project_memory(memory, placed, [ours.attn])
    assert_same(ours, theirs, ours.attend_memory(query, query_pos, projected), query + want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [None, Groups(1, 2), Groups(3, 1), Groups(2, 4)])
def test_self_attention_equals_torchs_with_a_mask(kind, groups):
    first = 0 if groups is None else groups.num_queries
    blocked = torch.zeros(first + Q, first + Q, dtype=torch.bool)
    for row in range(first + Q):
        for column in range(first):
            blocked[row, column] = row >= first or row // groups.size != column // groups.size
    ours = build(kind, dropout=0.1).eval()
    theirs = twin(ours)
    query, position = tokens(first + Q, 1), tokens(first + Q, 2)
    placed = query + position
    want = theirs(placed, placed, query, attn_mask=blocked, need_weights=False)[0]
    assert_same(ours, theirs, ours.attend_self(query, position, groups), query + want)


def test_matching_queries_cannot_tell_what_is_denoised():
    attention, groups = build().eval(), Groups(2, 3)
    query, position = tokens(6 + Q, 1), tokens(6 + Q, 2)
    before = attention.attend_self(query, position, groups)
    query[:, 4] += 1
    after = attention.attend_self(query, position, groups)
    assert torch.equal(before[:, 6:], after[:, 6:])
    assert torch.equal(before[:, :3], after[:, :3]), "nor can the other group"
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_layers_projected_together_are_those_projected_alone():
    memory, placed = tokens(T, 1), tokens(T, 2)
    layers = [build(seed=seed) for seed in range(3)]
    together = project_memory(memory, placed, [layer.attn for layer in layers])
    alone = [project_memory(memory, placed, [layer.attn])[0] for layer in layers]
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys)
        torch.testing.assert_close(ours.values, theirs.values)
    (together[1].keys.sum() + together[2].values.square().sum()).backward()
    changed = [layer.attn.in_proj_weight.grad.view(3, -1).abs().sum(1) > 0 for layer in layers]
    assert [part.tolist() for part in changed] == [
        [False, False, False],
        [False, True, False],
        [False, False, True],
    ], "each layer keeps its own weights"


def test_the_flash_variant_keeps_all_attention_weights():
    query, position = tokens(Q, 1), tokens(Q, 2)
    flash = build("PETRMultiheadFlashAttention", attn_drop=0.5).train()
    plain = build("PETRMultiheadAttention", attn_drop=0.5).train()
    for attention, same in ((flash, True), (plain, False)):
        twice = [attention.attend_self(query, position, Groups(1, 2)) for _ in range(2)]
        assert torch.equal(*twice) == same


@pytest.mark.parametrize("kind", KINDS)
def test_the_short_rate_drops_the_branch_too(kind):
    attention = build(kind, dropout=0.5).train()
    query, position = tokens(Q, 1), tokens(Q, 2)
    assert attention.dropout_layer.p == 0.5
    twice = [attention.attend_self(query, position, None) for _ in range(2)]
    assert not torch.equal(*twice)


def test_a_flash_rate_of_zero_has_no_biases():
    names = {"in_proj_weight", "out_proj.weight"}
    assert set(build("PETRMultiheadFlashAttention", dropout=0.0).attn.state_dict()) == names
    biases = {"in_proj_bias", "out_proj.bias"}
    for kind, rate in (("PETRMultiheadFlashAttention", 0.1), ("PETRMultiheadAttention", 0.0)):
        assert set(build(kind, dropout=rate).attn.state_dict()) == names | biases


def test_without_biases_it_still_reads():
    ours = build("PETRMultiheadFlashAttention", dropout=0.0)
    memory = tokens(T, 1)
    (projected,) = project_memory(memory, memory, [ours.attn])
    theirs = nn.MultiheadAttention(DIMS, HEADS, bias=False, batch_first=True)
    theirs.load_state_dict(ours.attn.state_dict())
    query, position = tokens(Q, 2), tokens(Q, 3)
    want = query + theirs(query + position, memory, memory, need_weights=False)[0]
    torch.testing.assert_close(ours.attend_memory(query, position, projected), want)


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="multiple of `num_heads`, but got 16 and 5"):
        build(num_heads=5)
