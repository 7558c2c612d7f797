import pytest
import torch
from aqr_twins import (
    CAMERA_SHAPE,
    GRID,
    NUM_TOKENS,
    allowed_tokens,
    busy_generator,
    project,
    random_inputs,
    ring_of_cameras,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from aqr_model.aqr import project_queries, window_attention
from aqr_model.aqr.encoder_config import EncoderSpec
from aqr_model.aqr.window_attention import WindowCrossAttention, query_windows


def overlapping(points, field_deg=160):
    """Cameras so wide that many points lie in two of them and some in three."""
    return project_queries(
        points,
        ring_of_cameras(len(points), field_deg=field_deg),
        grid=GRID,
        image_shape=(80, 128),
        bev_shape=(12, 16),
        camera_shape=CAMERA_SHAPE,
    )


def attention(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    module = WindowCrossAttention(EncoderSpec(embed_dims=16, num_heads=2, dropout=dropout))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    queries=st.integers(1, 12),
    camera_size=st.sampled_from([1, 3, 7]),
    bev_size=st.sampled_from([1, 5]),
    field_deg=st.sampled_from([60.0, 130.0, 170.0]),
)
def test_windows_hold_each_query_s_own_tokens_once(seed, queries, camera_size, bev_size, field_deg):
    points = torch.rand(2, queries, 3, generator=torch.Generator().manual_seed(seed))
    projection = overlapping(points * 1.4 - 0.2, field_deg)
    groups = query_windows(projection, camera_size=camera_size, bev_size=bev_size)
    found = {}
    for group in groups:
        for query, tokens, blocked in zip(*(part.tolist() for part in group), strict=True):
            assert query not in found
            assert all(0 <= token - query // queries * NUM_TOKENS < NUM_TOKENS for token in tokens)
            found[query] = [t for t, hidden in zip(tokens, blocked, strict=True) if not hidden]
    assert sorted(found) == list(range(2 * queries))
    for query, tokens in found.items():
        sample, place = divmod(query, queries)
        wanted = allowed_tokens(
            projection, sample, place, camera_size=camera_size, bev_size=bev_size
        )
        assert sorted(t - sample * NUM_TOKENS for t in tokens) == sorted(wanted)


def test_no_window_is_gathered_for_a_view_that_does_not_see():
    points, *_ = random_inputs(queries=40)
    projection = overlapping(points)
    groups = query_windows(projection, camera_size=3, bev_size=5)
    assert len(groups) >= 2
    counts = projection.camera_visible.sum(1).flatten()
    for group in groups:
        assert (counts[group.queries] * 9 + 25 == group.tokens.shape[1]).all()


def test_pieces_change_nothing(monkeypatch):
    points, query_pos, memory, memory_pos = random_inputs(queries=20)
    windows = query_windows(overlapping(points), camera_size=3, bev_size=5)
    module = attention()
    inputs = [query_pos, memory, memory_pos, *module.parameters()]

    def run():
        out = module(torch.zeros_like(query_pos), query_pos, memory, memory_pos, windows)
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    whole = run()
    monkeypatch.setattr(window_attention, "_CPU_PIECE_BYTES", 3 * 34 * 16 * 4)
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_by_finite_differences(dropout, shared):
    """The gradient is written by hand; dropout draws the same in every evaluation."""
    points, query_pos, memory, memory_pos = (t.double() for t in random_inputs(batch=2, queries=4))
    windows = query_windows(overlapping(points.float()), camera_size=1, bev_size=3)
    module = attention(dropout).double().train()
    positions = memory_pos[:1] if shared else memory_pos
    # Only what the windows read, or there would be 9,984 numbers to move.
    rows = torch.cat([group.tokens.flatten() for group in windows]).unique()[:12]
    values = memory.flatten(0, 1)[rows].detach().requires_grad_()
    keys = positions.flatten(0, 1)[rows % (len(positions) * NUM_TOKENS)].detach().requires_grad_()

    def read(query_pos, values, keys):
        torch.manual_seed(0)
        table = memory.detach().flatten(0, 1).index_copy(0, rows, values).view_as(memory)
        places = positions.detach().flatten(0, 1)
        places = places.index_copy(0, rows % len(places), keys).view_as(positions)
        return module(torch.zeros_like(query_pos), query_pos, table, places, windows)

    query_pos = query_pos.detach().requires_grad_()
    assert torch.autograd.gradcheck(read, (query_pos, values, keys), fast_mode=True)


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_one_gradient_alone_is_the_same(needed):
    points, *tensors = random_inputs()
    windows = query_windows(project(points), camera_size=3, bev_size=5)
    module = attention()

    def gradient(needing):
        inputs = [t.detach().requires_grad_(i in needing) for i, t in enumerate(tensors)]
        out = module(torch.zeros_like(inputs[0]), *inputs, windows)
        return torch.autograd.grad(out.square().sum(), inputs[needed])[0]

    torch.testing.assert_close(gradient({needed}), gradient({0, 1, 2}))


def test_memory_may_come_tokens_first():
    """The head holds its tokens as [T, B, d]."""
    points, query_pos, memory, memory_pos = random_inputs()
    windows = query_windows(project(points), camera_size=3, bev_size=5)
    module, zeros = attention(), torch.zeros_like(query_pos)
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (memory, memory_pos)]
    assert not turned[0].is_contiguous()
    torch.testing.assert_close(
        module(zeros, query_pos, *turned, windows),
        module(zeros, query_pos, memory, memory_pos, windows),
    )


def test_second_derivatives_are_refused():
    points, query_pos, memory, memory_pos = random_inputs()
    windows = query_windows(project(points), camera_size=3, bev_size=5)
    out = attention()(torch.zeros_like(query_pos), query_pos, memory, memory_pos, windows)
    (gradient,) = torch.autograd.grad(out.square().sum(), memory, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_batch_without_queries():
    points, query_pos, memory, memory_pos = random_inputs(queries=0)
    windows = query_windows(project(points), camera_size=3, bev_size=5)
    assert windows == ()
    out = attention()(torch.zeros_like(query_pos), query_pos, memory, memory_pos, windows)
    assert out.shape == (2, 0, 16)


def test_autocast_rounds_projections_and_not_what_is_read():
    """A caller's autocast must neither fail nor reach the sums over windows."""
    points, *leaves = random_inputs(seed=5)
    generator, projection = busy_generator(), project(points)
    exact = torch.stack(generator(*leaves, projection))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = torch.stack(generator(*leaves, projection))
        gradients = torch.autograd.grad(rough.square().sum(), leaves)
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
