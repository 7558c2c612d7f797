"""Cross-attention that reads a window of memory around each query and nothing else."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .encoder_config import EncoderSpec
from .projection import Projection


class Windows(NamedTuple):
    """The memory tokens that each query reads; L tokens, the largest count of the batch."""

    tokens: Tensor  # index into the memory; 0 where blocked. [B, Q, L]
    blocked: Tensor  # padding: outside the map, or no such view. [B, Q, L]


@torch.no_grad()
def query_windows(projection: Projection, *, camera_size: int, bev_size: int) -> Windows:
    """List the tokens of the BEV window and of the window in every camera that sees the query.

    A window is the square of tokens around the token nearest to the projection, cut at the map's
    edges. Memory holds the BEV tokens row by row, then the cameras' in the order view, row, column.

    B batch, Q queries, L tokens of all windows of a query.

    Args:
        projection: Where the queries lie.
        camera_size: Edge of a camera window, tokens, odd.
        bev_size: Edge of the BEV window, tokens, odd.

    Returns:
        The windows.
    """
    rows, cols = projection.bev_shape
    bev_tokens, bev_inside = _window(projection.bev_cells, projection.bev_shape, bev_size)
    bev_inside = bev_inside & projection.bev_valid[..., None]
    views, view_seen = _visible_views(projection.camera_visible)
    # [B, k, Q] views out of [B, V, Q, 2] cells
    cells = projection.camera_cells.gather(1, views[..., None].expand(-1, -1, -1, 2))
    map_shape = projection.camera_shape[1:]
    camera_tokens, camera_inside = _window(cells, map_shape, camera_size)
    camera_tokens = camera_tokens + views[..., None] * (map_shape[0] * map_shape[1]) + rows * cols
    camera_inside = camera_inside & view_seen[..., None]
    tokens = torch.cat([bev_tokens, camera_tokens.transpose(1, 2).flatten(2)], dim=-1)
    inside = torch.cat([bev_inside, camera_inside.transpose(1, 2).flatten(2)], dim=-1)
    return Windows(tokens=tokens.where(inside, 0), blocked=~inside)


def _visible_views(visible: Tensor) -> tuple[Tensor, Tensor]:
    """The k views that see a query, padded to the batch's largest k. [B, V, Q] -> twice [B, k, Q].

    k decides a shape, so the host waits for it once a step. A fixed k would either lose views or
    gather six windows where nearly every query has one.
    """
    most = int(visible.sum(dim=1).max()) if visible.numel() else 0
    views = visible.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    return views, visible.gather(1, views)


def _window(cells: Tensor, shape: tuple[int, int], size: int) -> tuple[Tensor, Tensor]:
    """Token indices of the windows, and which lie in the map. [..., 2] -> twice [..., size²]."""
    limits = torch.tensor(shape, device=cells.device)
    # At the far edge of an image the nearest whole number may be one past the last token.
    nearest = (cells + 0.5).floor().clamp(min=0).minimum(limits - 1).long()
    offsets = torch.arange(size, device=cells.device) - size // 2
    row = nearest[..., 0, None] + offsets
    col = nearest[..., 1, None] + offsets
    row_inside, col_inside = (row >= 0) & (row < shape[0]), (col >= 0) & (col < shape[1])
    tokens = row[..., :, None] * shape[1] + col[..., None, :]
    inside = row_inside[..., :, None] & col_inside[..., None, :]
    return tokens.flatten(-2), inside.flatten(-2)


class WindowCrossAttention(nn.Module):
    """Multi-head cross-attention over windows, with the parameters of `nn.MultiheadAttention`.

    Keys and values are never projected: with K = W_k m, q·K = (W_kᵀ q)·m and Σ a V = W_v Σ a m, so
    the projections act on Q queries instead of T tokens (22,384 in the R50 model). The key bias
    adds the same to all logits of a query and drops out of the softmax.

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
        self.with_cp = spec.with_cp

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
        arguments = (query + query_pos, memory, memory + memory_pos, windows)
        if self.with_cp and torch.is_grad_enabled():
            read = checkpoint(self._read, *arguments, use_reentrant=False)
        else:
            read = self._read(*arguments)
        return query + self.dropout_layer(self.attn.out_proj(read))

    def _read(self, query: Tensor, values: Tensor, keys: Tensor, windows: Windows) -> Tensor:
        """Attend to the windows. [B, Q, d] -> [B, Q, d]."""
        # Tokens first: the gradient of the gathered keys then comes out as it lies in memory.
        logits = torch.bmm(_gather(keys, windows.tokens), self._key_queries(query).mT)
        attention = self.attn_drop(_softmax(logits, windows.blocked.flatten(0, 1)[..., None]))
        mixed = torch.bmm(attention.mT, _gather(values, windows.tokens))
        # Not 1 where nothing can be read or where dropout struck: the value bias follows it.
        total = attention.sum(dim=1)[..., None]
        return self._project_values(mixed, total).view_as(query)

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


def _gather(table: Tensor, tokens: Tensor) -> Tensor:
    """Rows of each sample's table. [B, T, d], [B, Q, L] -> [B * Q, L, d].

    `torch.gather` over an expanded index: torch has a blocked CPU path for just this case, and on
    CUDA its backward adds atomically where plain indexing would sort first.
    """
    batch, num_tokens, dims = table.shape
    start = torch.arange(batch, device=tokens.device)[:, None, None] * num_tokens
    rows = (tokens + start).flatten()[:, None].expand(-1, dims)
    return table.reshape(-1, dims).gather(0, rows).view(-1, tokens.shape[-1], dims)


def _softmax(logits: Tensor, blocked: Tensor) -> Tensor:
    """Softmax over the tokens that are not blocked; all zero where none is left. [BQ, L, heads]."""
    # A finite floor instead of -inf: a row of -inf would be NaN in value and gradient.
    floor = torch.finfo(logits.dtype).min
    return logits.masked_fill(blocked, floor).softmax(dim=1).masked_fill(blocked, 0.0)
