"""Attention of the CMT decoder, on torch's scaled_dot_product_attention, always without a mask.

Denoising queries may not be seen by others than their own group. A mask over all pairs would keep
torch's flash kernel from being used; here each group is a batch entry of its own instead.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmcv.cnn.bricks.drop import build_dropout
from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.runner import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F


class Groups(NamedTuple):
    """Denoising queries, which stand before the matching ones.

    A group's queries see each other and the matching queries; matching queries see none of them.
    """

    number: int
    size: int  # queries of each

    @property
    def num_queries(self) -> int:
        """Queries of all groups."""
        return self.number * self.size


class Memory(NamedTuple):
    """Keys and values of one layer, projected. B batch, H heads, T tokens, d channels of a head."""

    keys: Tensor  # [B, H, T, d]
    values: Tensor  # [B, H, T, d]


class PackedProjections(nn.Module):
    """The projections of an attention, with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, embed_dims: int, num_heads: int, *, bias: bool) -> None:
        """Create the projections: Xavier-uniform weights, zero biases if any."""
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(
                f"`embed_dims` must be a multiple of `num_heads`, but got {embed_dims} and"
                f" {num_heads}. Change one of them."
            )
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dims, embed_dims))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dims)) if bias else None
        self.out_proj = nn.Linear(embed_dims, embed_dims, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    def parts(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight [C, C] and bias [C] of queries, keys and values."""
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return list(zip(self.in_proj_weight.chunk(3), biases, strict=True))

    def heads(self, tokens: Tensor, part: int) -> Tensor:
        """Project to queries (0), keys (1) or values (2). [B, L, C] -> [B, H, L, d]."""
        weight, bias = self.parts()[part]
        return F.linear(tokens, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def joined(self, context: Tensor) -> Tensor:
        """Project the heads' results back. [B, H, L, d] -> [B, L, C]."""
        return self.out_proj(context.transpose(1, 2).flatten(2))


@ATTENTION.register_module()
class PETRMultiheadAttention(BaseModule):
    """Attention with position embeddings on queries and keys and an identity connection.

    B batch, Q queries, T memory tokens, C channels, H heads, d = C / H.
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
            batch_first: Unused: tokens always come as [B, L, C]; some configs carry it.
            init_cfg: mmcv's initialisation config.
        """
        super().__init__(init_cfg)
        if dropout is not None:
            attn_drop, dropout_layer = dropout, {"type": "Dropout", "drop_prob": dropout}
        self.embed_dims = embed_dims
        self.attn_drop = self._weight_dropout(attn_drop)
        self.attn = PackedProjections(embed_dims, num_heads, bias=self._has_biases(attn_drop))
        self.proj_drop = nn.Dropout(proj_drop)
        self.dropout_layer = build_dropout(dropout_layer) if dropout_layer else nn.Identity()

    def attend_self(self, query: Tensor, query_pos: Tensor, groups: Groups | None) -> Tensor:
        """Let queries read each other, and add what they read to them.

        Args:
            query: [B, Q, C]
            query_pos: Added to queries and keys, never to values. [B, Q, C]
            groups: The denoising queries at the front; None if there are none.

        Returns:
            [B, Q, C]
        """
        placed = query + query_pos
        heads = self.attn.heads(placed, 0), self.attn.heads(placed, 1), self.attn.heads(query, 2)
        if groups is None:
            return self._added(query, self._attend(*heads))
        first = groups.num_queries
        matching = self._attend(*(part[:, :, first:] for part in heads))
        denoising = self._attend(*_one_batch_entry_each(heads, groups))
        denoising = (
            denoising.unflatten(0, (len(query), groups.number)).transpose(1, 2).flatten(2, 3)
        )
        return self._added(query, torch.cat([denoising, matching], dim=2))

    def attend_memory(self, query: Tensor, query_pos: Tensor, memory: Memory) -> Tensor:
        """Let queries read the memory, and add what they read to them.

        Args:
            query: [B, Q, C]
            query_pos: Added to the queries. [B, Q, C]
            memory: See `project_memory`.

        Returns:
            [B, Q, C]
        """
        return self._added(query, self._attend(self.attn.heads(query + query_pos, 0), *memory))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rate = self.attn_drop if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, dropout_p=rate)

    def _added(self, query: Tensor, context: Tensor) -> Tensor:
        return query + self.dropout_layer(self.proj_drop(self.attn.joined(context)))

    def _weight_dropout(self, attn_drop: float) -> float:
        return attn_drop

    def _has_biases(self, attn_drop: float) -> bool:
        return True


@ATTENTION.register_module()
class PETRMultiheadFlashAttention(PETRMultiheadAttention):
    """`PETRMultiheadAttention` without dropout on attention weights.

    In the public code the configured rate lands on the flash kernel's switch for biases. Official
    checkpoints were therefore trained without attention dropout here, and a rate of 0 builds the
    projections without biases. Both are kept: they decide which checkpoints load. The branch's
    output dropout is as configured.
    """

    def _weight_dropout(self, attn_drop: float) -> float:
        return 0.0

    def _has_biases(self, attn_drop: float) -> bool:
        return attn_drop != 0


def project_memory(
    tokens: Tensor, placed: Tensor, attentions: Sequence[PETRMultiheadAttention]
) -> list[Memory]:
    """Project the memory for several layers at once: one matrix product for keys, one for values.

    Args:
        tokens: What values are made of. [B, T, C]
        placed: The tokens with their position embeddings, for the keys. [B, T, C]
        attentions: Of the layers, all with as many heads.

    Returns:
        One for each attention.
    """
    heads = attentions[0].attn.num_heads
    both = []
    for part, source in ((1, placed), (2, tokens)):
        parts = [attention.attn.parts()[part] for attention in attentions]
        weights, biases = zip(*parts, strict=True)
        bias = None if biases[0] is None else torch.cat(biases)
        projected = F.linear(source, torch.cat(weights), bias)
        layers = projected.unflatten(-1, (len(attentions), heads, -1))  # [B, T, N, H, d]
        both.append(layers.permute(2, 0, 3, 1, 4).unbind(0))
    return [Memory(keys, values) for keys, values in zip(*both, strict=True)]


def _one_batch_entry_each(heads: Sequence[Tensor], groups: Groups) -> list[Tensor]:
    """The denoising queries of each group; keys and values of theirs and of the matching queries.

    Args:
        heads: Queries, keys and values of all. Each [B, H, Q, d]
        groups: The denoising queries.

    Returns:
        Each [B * number, H, size, d], keys and values [B * number, H, size + matching, d].
    """
    own = [part[:, :, : groups.num_queries].unflatten(2, groups).transpose(1, 2) for part in heads]
    seen = [
        part[:, None, :, groups.num_queries :].expand(-1, groups.number, -1, -1, -1)
        for part in heads[1:]
    ]
    keys_and_values = [torch.cat(pair, dim=3) for pair in zip(own[1:], seen, strict=True)]
    return [part.flatten(0, 1) for part in (own[0], *keys_and_values)]
