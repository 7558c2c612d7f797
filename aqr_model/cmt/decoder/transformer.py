"""The CMT transformer: BEV and camera tokens as one memory, a post-norm decoder over queries."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import build_norm_layer, xavier_init
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER, TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import (
    build_attention,
    build_feedforward_network,
    build_transformer_layer,
    build_transformer_layer_sequence,
)
from mmcv.runner import BaseModule, ModuleList
from mmdet.models.utils.builder import TRANSFORMER
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aqr_model.cmt.decoder.attention import PETRMultiheadAttention
from aqr_model.cmt.decoder.projections import Groups, Memory, project_memory

_OPERATIONS = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")


@TRANSFORMER_LAYER.register_module()
class PETRTransformerDecoderLayer(BaseModule):
    """Self-attention, cross-attention, feed-forward network, each followed by a LayerNorm.

    Q queries, S memory tokens, B batch, C channels.
    """

    def __init__(
        self,
        attn_cfgs: Sequence[Mapping[str, Any]],
        ffn_cfgs: Mapping[str, Any] | None = None,
        feedforward_channels: int | None = None,
        ffn_dropout: float = 0.0,
        operation_order: Sequence[str] = _OPERATIONS,
        norm_cfg: Mapping[str, Any] | None = None,
        with_cp: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        """Build the layer.

        Args:
            attn_cfgs: Self-attention, then cross-attention.
            ffn_cfgs: mmcv's FFN; what it sets wins over the two arguments below.
            feedforward_channels: Hidden channels of the FFN.
            ffn_dropout: Dropout of the FFN.
            operation_order: Must be the decoder's only order; public configs spell it out.
            norm_cfg: LayerNorm by default.
            with_cp: Trade time for memory in training by recomputing activations.
            init_cfg: mmcv's initialisation config.
        """
        super().__init__(init_cfg)
        if tuple(operation_order) != _OPERATIONS:
            raise ValueError(
                f"`operation_order` must be {_OPERATIONS}, but got {tuple(operation_order)}."
                " Write it so, or leave it out."
            )
        if len(attn_cfgs) != 2:
            raise ValueError(
                "`attn_cfgs` must hold self-attention and cross-attention, but got"
                f" {len(attn_cfgs)} entries."
            )
        self.attentions: Any = ModuleList([_attention(cfg) for cfg in attn_cfgs])
        self.embed_dims = int(attn_cfgs[0]["embed_dims"])
        ffn = {"type": "FFN", "embed_dims": self.embed_dims, "ffn_drop": ffn_dropout}
        if feedforward_channels is not None:
            ffn["feedforward_channels"] = feedforward_channels
        self.ffns: Any = ModuleList([build_feedforward_network(ffn | dict(ffn_cfgs or {}))])
        norm = dict(norm_cfg or {"type": "LN"})
        self.norms: Any = ModuleList([build_norm_layer(norm, self.embed_dims)[1] for _ in range(3)])
        self.with_cp = with_cp

    def forward(
        self, query: Tensor, query_pos: Tensor, memory: Memory, groups: Groups | None = None
    ) -> Tensor:
        """Refine the queries once.

        Args:
            query: [B, Q, C]
            query_pos: [B, Q, C]
            memory: Keys and values of this layer.
            groups: The denoising queries at the front; None if there are none.

        Returns:
            [B, Q, C]
        """
        attend_self, attend_memory = self.attentions
        query = self.norms[0](attend_self.attend_self(query, query_pos, groups))
        query = self.norms[1](attend_memory.attend_memory(query, query_pos, memory))
        return self.norms[2](self.ffns[0](query))


def _attention(config: Mapping[str, Any]) -> PETRMultiheadAttention:
    """Build an attention; mmcv's own has the same function and parameters as CMT's."""
    names = {"MultiheadAttention": "PETRMultiheadAttention"}
    built = build_attention({**config, "type": names.get(config["type"], config["type"])})
    if not isinstance(built, PETRMultiheadAttention):
        raise ValueError(
            "`type` of a decoder's attention must be MultiheadAttention, PETRMultiheadAttention or"
            f" PETRMultiheadFlashAttention, but got {config['type']!r}."
        )
    return built


@TRANSFORMER_LAYER_SEQUENCE.register_module()
class PETRTransformerDecoder(BaseModule):
    """Decoder layers with one shared LayerNorm on every returned layer."""

    def __init__(
        self,
        transformerlayers: dict[str, Any],
        num_layers: int,
        return_intermediate: bool = True,
        post_norm_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        """Build the layers.

        Args:
            transformerlayers: Config of one layer.
            num_layers: Layers.
            return_intermediate: Must be True: the task heads read every layer.
            post_norm_cfg: LayerNorm by default.
            init_cfg: mmcv's initialisation config.
        """
        super().__init__(init_cfg)
        if not return_intermediate:
            raise ValueError(
                "`return_intermediate` must be True, but got False: every layer is supervised."
            )
        layers = [build_transformer_layer(transformerlayers) for _ in range(num_layers)]
        self.layers: Any = ModuleList(layers)
        self.num_layers = num_layers
        self.embed_dims: int = layers[0].embed_dims
        self.post_norm = build_norm_layer(post_norm_cfg or {"type": "LN"}, self.embed_dims)[1]

    def forward(
        self, query_pos: Tensor, tokens: Tensor, token_pos: Tensor, groups: Groups | None = None
    ) -> Tensor:
        """Run all layers on content that starts at zero.

        Args:
            query_pos: [B, Q, C]
            tokens: The memory. [B, T, C]
            token_pos: Added to the keys. [B or 1, T, C]
            groups: The denoising queries at the front; None if there are none.

        Returns:
            Every layer's queries, normalised. [N, B, Q, C]
        """
        placed = tokens + token_pos
        query = torch.zeros_like(query_pos)
        memories = None
        if not (self.layers[0].with_cp and self.training):
            readers = [layer.attentions[1].attn for layer in self.layers]
            memories = project_memory(tokens, placed, readers)
        outputs = []
        for index, layer in enumerate(self.layers):
            if memories is None:
                inputs = (layer, query, query_pos, tokens, placed, groups)
                query = checkpoint(_project_and_refine, *inputs, use_reentrant=False)
            else:
                query = layer(query, query_pos, memories[index], groups)
            outputs.append(self.post_norm(query))
        return torch.stack(outputs)


def _project_and_refine(
    layer: PETRTransformerDecoderLayer,
    query: Tensor,
    query_pos: Tensor,
    tokens: Tensor,
    placed: Tensor,
    groups: Groups | None,
) -> Tensor:
    """One layer with its own projections of the memory, which are not kept but made again."""
    (memory,) = project_memory(tokens, placed, [layer.attentions[1].attn])
    return layer(query, query_pos, memory, groups)


@TRANSFORMER.register_module(name=["CmtTransformer", "CmtLidarTransformer", "CmtImageTransformer"])
class CmtTransformer(BaseModule):
    """Decode queries against the tokens of the sensors; public configs name it after these.

    B batch, C channels, T memory tokens, Q queries, N layers.
    """

    def __init__(self, decoder: dict[str, Any], init_cfg: dict[str, Any] | None = None) -> None:
        """Build the decoder from its config."""
        super().__init__(init_cfg)
        self.decoder = build_transformer_layer_sequence(decoder)
        self.embed_dims: int = self.decoder.embed_dims

    def init_weights(self) -> None:
        """Xavier-uniform for every weight of more than one dimension, zero for its bias."""
        for module in self.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() > 1:
                xavier_init(module, distribution="uniform")
        self._is_init = True

    def forward(
        self, tokens: Tensor, token_pos: Tensor, query_pos: Tensor, groups: Groups | None = None
    ) -> Tensor:
        """Run the decoder; arguments as there. [N, B, Q, C]."""
        return self.decoder(query_pos, tokens, token_pos, groups)


def memory_tokens(bev: Tensor | None, camera: Tensor | None, batch: int) -> Tensor:
    """Join the features of the sensors that are there to the tokens that queries read.

    Args:
        bev: [B, C, H, W]
        camera: [B * V, C, h, w]
        batch: B.

    Returns:
        BEV row by row, then view by view and row by row. [B, H * W + V * h * w, C]
    """
    tokens = []
    if bev is not None:
        tokens.append(bev.flatten(2).transpose(1, 2))
    if camera is not None:
        tokens.append(camera.unflatten(0, (batch, -1)).permute(0, 1, 3, 4, 2).flatten(1, 3))
    return torch.cat(tokens, dim=1)
