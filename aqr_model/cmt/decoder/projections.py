"""The arithmetic of the decoder's attention: projections, and groups that do not see each other.

It needs torch alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
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


def attend_in_groups(
    heads: Sequence[Tensor], groups: Groups | None, *, dropout: float = 0.0
) -> Tensor:
    """Self-attention without a mask: each group of denoising queries is a batch entry of its own.

    Equal to attention over all pairs with a mask, but it reaches torch's flash kernel.

    Args:
        heads: Queries, keys and values of all. Each [B, H, Q, d]
        groups: The denoising queries at the front; None if there are none.
        dropout: Of the attention weights.

    Returns:
        [B, H, Q, d]
    """
    if groups is None:
        return F.scaled_dot_product_attention(*heads, dropout_p=dropout)
    first = groups.num_queries
    behind = [part[:, :, first:] for part in heads]
    matching = F.scaled_dot_product_attention(*behind, dropout_p=dropout)
    own = [part[:, :, :first].unflatten(2, groups).transpose(1, 2) for part in heads]
    seen = [part[:, None].expand(-1, groups.number, -1, -1, -1) for part in behind[1:]]
    read = [torch.cat(pair, dim=3) for pair in zip(own[1:], seen, strict=True)]
    entries = [part.flatten(0, 1) for part in (own[0], *read)]
    denoising = F.scaled_dot_product_attention(*entries, dropout_p=dropout)
    denoising = denoising.unflatten(0, (-1, groups.number)).transpose(1, 2).flatten(2, 3)
    return torch.cat([denoising, matching], dim=2)


def project_memory(
    tokens: Tensor, placed: Tensor, attentions: Sequence[PackedProjections]
) -> list[Memory]:
    """Project the memory for several layers at once: one matrix product for keys, one for values.

    Args:
        tokens: What values are made of. [B, T, C]
        placed: The tokens with their position embeddings, for the keys. [B, T, C]
        attentions: Of the layers, all with as many heads.

    Returns:
        One for each attention.
    """
    heads = attentions[0].num_heads
    both = []
    for part, source in ((1, placed), (2, tokens)):
        parts = [attention.parts()[part] for attention in attentions]
        weights, biases = zip(*parts, strict=True)
        bias = None if biases[0] is None else torch.cat(biases)
        projected = F.linear(source, torch.cat(weights), bias)
        layers = projected.unflatten(-1, (len(attentions), heads, -1))  # [B, T, N, H, d]
        both.append(layers.permute(2, 0, 3, 1, 4).unbind(0))
    return [Memory(keys, values) for keys, values in zip(*both, strict=True)]
