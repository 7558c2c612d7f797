"""Cross-attention that reads a window of memory around each query and nothing else."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .crossings import read
from .encoder_config import EncoderSpec
from .formats import autocast
from .projection import Projection

# Gathered keys or values of one piece of work. On a CPU they should stay in its cache, where two
# megabytes to sixteen are equally fast; a GPU wants few launches. Peak memory grows with it.
_CPU_PIECE_BYTES = 4 << 20
_GPU_PIECE_BYTES = 128 << 20


class WindowGroup(NamedTuple):
    """The windows of the queries that one number of views sees, so that all have one length.

    N queries of the group, L tokens of all windows of a query.
    """

    queries: Tensor  # index into the batch's queries, sample by sample. [N]
    tokens: Tensor  # index into the batch's memory, sample by sample. [N, L]
    blocked: (
        Tensor  # outside the map: the token there is one of the sample's, no matter which. [N, L]
    )


Windows = tuple[WindowGroup, ...]


@torch.no_grad()
def query_windows(projection: Projection, *, camera_size: int, bev_size: int) -> Windows:
    """List the tokens of the BEV window and of the window in every camera that sees the query.

    A window is the square of tokens around the token nearest to the projection, cut at the map's
    edges. Memory holds the BEV tokens row by row, then the cameras' in the order view, row, column.

    How many queries have how many views decides shapes, so the host waits for these few numbers
    once a step. A fixed number would either lose views, or gather a window in all six where most
    queries have one.

    Args:
        projection: Where the queries lie.
        camera_size: Edge of a camera window, tokens, odd.
        bev_size: Edge of the BEV window, tokens, odd.

    Returns:
        The windows, in ascending number of views. Each query stands in one group.
    """
    views, height, width = projection.camera_shape
    num_bev = projection.bev_shape[0] * projection.bev_shape[1]
    num_tokens = num_bev + views * height * width
    num_queries = projection.bev_valid.shape[1]
    bev_tokens, bev_inside = _window(projection.bev_cells, projection.bev_shape, bev_size)
    bev_inside = (bev_inside & projection.bev_valid[..., None]).flatten(0, 1)
    bev_tokens = bev_tokens.flatten(0, 1)
    visible = projection.camera_visible.transpose(1, 2).flatten(0, 1)  # [B * Q, V]
    cells = projection.camera_cells.transpose(1, 2).flatten(0, 1)  # [B * Q, V, 2]
    seen_by = visible.sum(dim=1)
    numbers = torch.arange(views + 1, device=visible.device)
    counts = read([(seen_by[:, None] == numbers).sum(dim=0)], "queries by number of views")[0]
    groups = []
    for num_views, queries in enumerate(seen_by.argsort(stable=True).split(counts.tolist())):
        if not len(queries):
            continue
        tokens, inside = [bev_tokens[queries]], [bev_inside[queries]]
        if num_views:
            seeing = visible[queries].byte().argsort(dim=1, descending=True, stable=True)
            seeing = seeing[:, :num_views, None]  # [N, k, 1]
            at = cells[queries].gather(1, seeing.expand(-1, -1, 2))
            camera_tokens, camera_inside = _window(at, (height, width), camera_size)
            camera_tokens = camera_tokens + seeing * (height * width) + num_bev
            tokens.append(camera_tokens.flatten(1))
            inside.append(camera_inside.flatten(1))
        allowed = torch.cat(inside, dim=1)
        start = queries[:, None] // num_queries * num_tokens
        found = torch.cat(tokens, dim=1).where(allowed, 0) + start
        groups.append(WindowGroup(queries=queries, tokens=found, blocked=~allowed))
    return tuple(groups)


def _window(cells: Tensor, shape: tuple[int, int], size: int) -> tuple[Tensor, Tensor]:
    """Token indices of the windows, and which lie in the map. [..., 2] -> twice [..., size²]."""
    # At the far edge of an image the nearest whole number may be one past the last token.
    nearest = (cells + 0.5).floor()
    offsets = torch.arange(size, device=cells.device) - size // 2
    row = nearest[..., 0].clamp(0, shape[0] - 1).long()[..., None] + offsets
    col = nearest[..., 1].clamp(0, shape[1] - 1).long()[..., None] + offsets
    row_inside, col_inside = (row >= 0) & (row < shape[0]), (col >= 0) & (col < shape[1])
    tokens = row[..., :, None] * shape[1] + col[..., None, :]
    inside = row_inside[..., :, None] & col_inside[..., None, :]
    return tokens.flatten(-2), inside.flatten(-2)


class WindowCrossAttention(nn.Module):
    """Multi-head cross-attention over windows, with the parameters of `nn.MultiheadAttention`.

    Keys and values are never projected: with K = W_k m, q·K = (W_kᵀ q)·m and Σ a V = W_v Σ a m, so
    the projections act on Q queries instead of T tokens (22,384 in the R50 model). The key bias
    adds the same to all logits of a query and drops out of the softmax. What is gathered is never
    kept: the backward pass gathers again, as `with_cp` of the users' configs asks.

    Args:
        spec: Width, heads, dropout.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.embed_dims = spec.embed_dims
        self.num_heads = spec.num_heads
        # Holds and initialises the parameters under their names; its forward is not used.
        self.attn = nn.MultiheadAttention(spec.embed_dims, spec.num_heads)
        self.attn_drop = nn.Dropout(spec.dropout)
        self.dropout_layer = nn.Dropout(spec.dropout)

    def forward(
        self, query: Tensor, query_pos: Tensor, memory: Tensor, memory_pos: Tensor, windows: Windows
    ) -> Tensor:
        """Read the windows and add the result to the query.

        B batch, Q queries, T memory tokens, d width.

        Args:
            query: Content. [B, Q, d]
            query_pos: Added to the content for the logits. [B, Q, d]
            memory: Values, and keys before their positions. [B, T, d]
            memory_pos: Added to the keys. [B or 1, T, d]
            windows: What each query reads.

        Returns:
            The query with what it read. One with nothing to read gets the output bias. [B, Q, d]
        """
        readers = self._key_queries(query + query_pos).to(memory.dtype)
        dropout = self.attn_drop.p if self.training else 0.0
        tables = memory.contiguous(), memory_pos.contiguous()
        with autocast(memory.device, None):  # it computes in the memory's own format
            mixed, total = _ReadWindows.apply(readers, *tables, windows, dropout)
        read = self._project_values(mixed, total[..., None]).view_as(query)
        return query + self.dropout_layer(self.attn.out_proj(read))

    def _key_queries(self, query: Tensor) -> Tensor:
        """Scaled W_kᵀ q of each head, to be multiplied with unprojected keys. -> [BQ, heads, d]."""
        heads, dims = self.num_heads, self.embed_dims
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        projected = nn.functional.linear(query.flatten(0, 1), weight[:dims], bias[:dims])
        projected = projected.view(-1, heads, dims // heads) * (dims // heads) ** -0.5
        return torch.einsum(
            "qnc,ncd->qnd", projected, weight[dims : 2 * dims].view(heads, dims // heads, dims)
        )

    def _project_values(self, mixed: Tensor, total: Tensor) -> Tensor:
        """W_v Σ a m + b_v Σ a of each head. [BQ, heads, d], [BQ, heads, 1] -> [BQ, d]."""
        heads, dims = self.num_heads, self.embed_dims
        weight = self.attn.in_proj_weight[2 * dims :].view(heads, dims // heads, dims)
        bias = self.attn.in_proj_bias[2 * dims :].view(heads, dims // heads)
        return (torch.einsum("qnd,ncd->qnc", mixed, weight) + total * bias).flatten(1)


class _ReadWindows(torch.autograd.Function):
    """Attention of readers over windows, a piece of the queries at a time.

    With k = m + p a token's key, a = softmax(u·k) over a window and y = Σ a m: the gradient of a is
    g·m, that of a logit s = a (g·m − Σ a g·m), so ∂m = Σ a g + s u, ∂p = Σ s u, ∂u = Σ s k.
    Autograd would keep every gathered window, 0.8 GB at R50 size, and their gradients beside them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        readers: Tensor,
        memory: Tensor,
        positions: Tensor,
        windows: Windows,
        dropout: float,
    ) -> tuple[Tensor, Tensor]:
        """Read. B batch, Q queries, T tokens, n heads, d width.

        Args:
            ctx: Of autograd.
            readers: Multiplied with the keys. [BQ, n, d]
            memory: Values, and keys before their positions. [B, T, d]
            positions: Added to the keys. [B or 1, T, d]
            windows: What each query reads.
            dropout: Probability that a weight is dropped.

        Returns:
            mixed: Σ a m. [BQ, n, d]
            total: Σ a: not 1 where nothing can be read or where dropout struck. [BQ, n]
        """
        mixed = torch.zeros_like(readers)
        total = readers.new_zeros(readers.shape[:2])
        shares, kept = [], []
        for piece in _pieces(windows, memory):
            values, keys = _gather(memory, positions, piece.tokens)
            # Tokens first: the gradients of the tokens then come out as they lie in memory.
            logits = torch.bmm(keys, readers.index_select(0, piece.queries).mT)
            share = _softmax(logits, piece.blocked[..., None])
            shares.append(share)
            if dropout:
                kept.append((torch.rand_like(share) >= dropout).to(share.dtype) / (1 - dropout))
                share = share * kept[-1]
            mixed.index_copy_(0, piece.queries, torch.bmm(share.mT, values))
            total.index_copy_(0, piece.queries, share.sum(dim=1))
        ctx.windows = windows
        ctx.save_for_backward(readers, memory, positions, *shares, *kept)
        return mixed, total

    @staticmethod
    @once_differentiable  # it names its arguments otherwise
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor | None, ...]:
        """Gradients of readers, memory and positions."""
        with autocast(grad_outputs[0].device, None):
            return _gradients(ctx, *grad_outputs)


def _gradients(ctx: Any, grad_mixed: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
    """The backward pass of `_ReadWindows`."""
    readers, memory, positions, *rest = ctx.saved_tensors
    pieces = list(_pieces(ctx.windows, memory))
    shares, kept = rest[: len(pieces)], rest[len(pieces) :] or [None] * len(pieces)
    needs_readers, needs_memory, needs_positions = ctx.needs_input_grad[:3]
    of_readers = torch.zeros_like(readers) if needs_readers else None
    of_values = torch.zeros_like(memory) if needs_memory else None
    of_keys = torch.zeros_like(memory) if needs_memory or needs_positions else None
    for piece, share, keep in zip(pieces, shares, kept, strict=True):
        values, keys = _gather(memory, positions, piece.tokens)
        upstream = grad_mixed.index_select(0, piece.queries)
        of_share = (
            torch.bmm(values, upstream.mT) + grad_total.index_select(0, piece.queries)[:, None]
        )
        if keep is not None:
            of_share = of_share * keep
        of_logits = share * (of_share - (share * of_share).sum(dim=1, keepdim=True))
        if of_readers is not None:
            of_readers.index_copy_(0, piece.queries, torch.bmm(of_logits.mT, keys))
        if of_keys is not None:
            _add_rows(
                of_keys,
                piece.tokens,
                torch.bmm(of_logits, readers.index_select(0, piece.queries)),
            )
        if of_values is not None:
            used = share if keep is None else share * keep
            _add_rows(of_values, piece.tokens, torch.bmm(used, upstream))
    if of_values is not None and of_keys is not None:
        of_values += of_keys
    of_positions = None
    if needs_positions:
        assert of_keys is not None
        of_positions = of_keys if len(positions) == len(memory) else of_keys.sum(0, True)
    return of_readers, of_values, of_positions, None, None


def _pieces(windows: Windows, memory: Tensor) -> Iterator[WindowGroup]:
    """Cut the groups so that the gathered rows of one piece stay small."""
    limit = _CPU_PIECE_BYTES if memory.device.type == "cpu" else _GPU_PIECE_BYTES
    row_bytes = memory.shape[-1] * memory.element_size()
    for group in windows:
        size = max(1, limit // (group.tokens.shape[1] * row_bytes))
        yield from map(WindowGroup._make, zip(*(part.split(size) for part in group), strict=True))


def _gather(memory: Tensor, positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Values and keys of the tokens. [B, T, d], [B or 1, T, d], [N, L] -> twice [N, L, d]."""
    shape = (*tokens.shape, memory.shape[-1])
    rows = tokens.flatten()
    values = memory.reshape(-1, shape[-1]).index_select(0, rows)
    if len(positions) != len(memory):
        rows = rows % memory.shape[1]
    keys = positions.reshape(-1, shape[-1]).index_select(0, rows).add_(values)
    return values.view(shape), keys.view(shape)


def _add_rows(table: Tensor, tokens: Tensor, rows: Tensor) -> None:
    """Add the rows of the tokens to a table. [B, T, d], [N, L], [N, L, d]."""
    dims = table.shape[-1]
    table.view(-1, dims).index_add_(0, tokens.flatten(), rows.view(-1, dims))


def _softmax(logits: Tensor, blocked: Tensor) -> Tensor:
    """Softmax over the tokens that are not blocked; all zero where none is left. [N, L, n]."""
    # A finite floor instead of -inf: a row of -inf would be NaN in value and gradient.
    floor = torch.finfo(logits.dtype).min
    return logits.masked_fill(blocked, floor).softmax(dim=1).masked_fill(blocked, 0.0)
