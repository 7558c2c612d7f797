"""The attentions of the CMT decoder, under the type names of public configs.

They take no masks. Denoising queries may not be seen by others than their own group; a mask over
all pairs would keep torch's flash kernel from being used, see `projections.attend_in_groups`.
"""

from typing import Any

from mmcv.cnn.bricks.drop import build_dropout
from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.runner import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from aqr_model.cmt.decoder.projections import Groups, Memory, PackedProjections, attend_in_groups


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
        return self._added(query, attend_in_groups(heads, groups, dropout=self._dropout()))

    def attend_memory(self, query: Tensor, query_pos: Tensor, memory: Memory) -> Tensor:
        """Let queries read the memory, and add what they read to them.

        Args:
            query: [B, Q, C]
            query_pos: Added to the queries. [B, Q, C]
            memory: See `project_memory`.

        Returns:
            [B, Q, C]
        """
        read = F.scaled_dot_product_attention(
            self.attn.heads(query + query_pos, 0), *memory, dropout_p=self._dropout()
        )
        return self._added(query, read)

    def _dropout(self) -> float:
        return self.attn_drop if self.training else 0.0

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
