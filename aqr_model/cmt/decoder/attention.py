"""Multi-head attention of the CMT decoder, on torch's scaled_dot_product_attention.

Both registered names compute the same function and honour every mask. They differ in what the
configured rate of attention dropout does, see `PETRMultiheadFlashAttention`.
"""

from typing import Any

import torch
from mmcv.cnn.bricks.drop import build_dropout
from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.runner import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F


class PackedAttention(nn.Module):
    """Projections and attention core, with the parameter names of `nn.MultiheadAttention`.

    L query length, S key length, B batch, C channels, H heads.
    """

    def __init__(self, embed_dims: int, num_heads: int, *, dropout: float, bias: bool) -> None:
        """Create the projections: Xavier-uniform weights, zero biases if any."""
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(
                f"`embed_dims` must be a multiple of `num_heads`, but got {embed_dims} and"
                f" {num_heads}. Change one of them."
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dims, embed_dims))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dims)) if bias else None
        self.out_proj = nn.Linear(embed_dims, embed_dims, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend.

        Args:
            query: [L, B, C]
            key: [S, B, C]
            value: [S, B, C]
            mask: In torch's own convention (True: attend; or additive), broadcastable to
                [B, H, L, S].

        Returns:
            Projected context. [L, B, C]
        """
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        heads = [
            F.linear(tokens, weight, bias).unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]
        context = F.scaled_dot_product_attention(
            *heads, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(context.permute(2, 0, 1, 3).flatten(2))


@ATTENTION.register_module()
class PETRMultiheadAttention(BaseModule):
    """Attention with position embeddings on queries and keys and an identity connection.

    L query length, S key length, B batch, C channels, H heads.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        dropout_layer: dict[str, Any] | None = None,
        dropout: float | None = None,
        batch_first: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        """Build the attention.

        Args:
            embed_dims: Channels.
            num_heads: Heads.
            attn_drop: Dropout on the attention weights.
            proj_drop: Dropout on the projected output.
            dropout_layer: mmcv dropout on the branch, before the identity is added.
            dropout: Public configs' short form: sets `attn_drop` and the branch's dropout.
            batch_first: Tokens come as [B, L, C] instead of [L, B, C].
            init_cfg: mmcv's initialisation config.
        """
        super().__init__(init_cfg)
        if dropout is not None:
            attn_drop, dropout_layer = dropout, {"type": "Dropout", "drop_prob": dropout}
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.batch_first = batch_first
        self.attn = self._build_core(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)
        self.dropout_layer = build_dropout(dropout_layer) if dropout_layer else nn.Identity()

    def _build_core(self, attn_drop: float) -> PackedAttention:
        return PackedAttention(self.embed_dims, self.num_heads, dropout=attn_drop, bias=True)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend and add the identity.

        Args:
            query: [L, B, C]
            key: The query if absent. [S, B, C]
            value: The key, without its position, if absent. [S, B, C]
            identity: What the result is added to; the query if absent. [L, B, C]
            query_pos: Added to the query. [L, B, C]
            key_pos: Added to the key, never to the value; `query_pos` if absent and the key is
                the query. [S, B, C]
            attn_mask: True means blocked, or additive. [L, S] or [B * H, L, S]
            key_padding_mask: True means blocked. [B, S]

        Returns:
            [L, B, C]
        """
        if key is None:
            key, key_pos = query, query_pos if key_pos is None else key_pos
        value = key if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        key = key if key_pos is None else key + key_pos
        if self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        mask = _torch_mask(attn_mask, key_padding_mask, self.num_heads, query.dtype)
        out = self.attn(query, key, value, mask)
        if self.batch_first:
            out = out.transpose(0, 1)
        return identity + self.dropout_layer(self.proj_drop(out))


@ATTENTION.register_module()
class PETRMultiheadFlashAttention(PETRMultiheadAttention):
    """`PETRMultiheadAttention` without dropout on attention weights.

    In the public code the configured rate lands on the flash kernel's switch for biases. Official
    checkpoints were therefore trained without attention dropout here, and a rate of 0 builds the
    projections without biases. Both are kept: they decide which checkpoints load. The branch's
    output dropout is as configured.
    """

    def _build_core(self, attn_drop: float) -> PackedAttention:
        return PackedAttention(self.embed_dims, self.num_heads, dropout=0.0, bias=attn_drop != 0)


def _torch_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, num_heads: int, dtype: torch.dtype
) -> Tensor | None:
    """Join both masks in the convention of torch's attention: True attends, or additive.

    Args:
        attn_mask: True means blocked, or additive. [L, S] or [B * H, L, S]
        key_padding_mask: True means blocked. [B, S]
        num_heads: H.
        dtype: Of an additive mask.

    Returns:
        Broadcastable to [B, H, L, S]; None if there is nothing to mask.
    """
    mask = None
    if attn_mask is not None:
        mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(dtype)
        if mask.dim() == 3:
            mask = mask.unflatten(0, (-1, num_heads))
    if key_padding_mask is None:
        return mask
    seen = ~key_padding_mask[:, None, None]
    if mask is None:
        return seen
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, float("-inf"))
