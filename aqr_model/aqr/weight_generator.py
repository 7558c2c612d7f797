"""Two weights for every object query: how much it wants of LiDAR and of the cameras."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .encoder_config import EncoderSpec, read_encoder_config
from .projection import Projection
from .semantics import AqrSemantics
from .window_attention import WindowCrossAttention, Windows, query_windows

_LOG = logging.getLogger(__name__)
# The bias in all stored code of past runs: a weight of 0.82 before anything was seen.
_RANDOM_BIAS = 1.5


class QueryWeights(NamedTuple):
    """Weights in (0, 1); 0.5 asks for nothing. B batch, Q queries."""

    lidar: Tensor  # [B, Q]
    camera: Tensor  # [B, Q]


class AQRWeightGenerator(nn.Module):
    """Weigh LiDAR and cameras for each query by what lies around its projections.

    One post-norm decoder layer reads the BEV window and the windows of every camera that sees the
    query, in one softmax; a linear layer gives two independent logits. The predictor starts at
    zero, so all weights start at 0.5 and the maps at 1; the encoder's first gradient comes with
    the second step.

    Args:
        embed_dims: Width d of queries and memory.
        window_sizes: Edges of the camera and of the BEV window, tokens, odd. An even s is read as
            s + 1, which is what the users' code made of it, with a warning.
        encoder_config: The users' `PETRTransformerDecoder` dictionary. It replaces `num_heads` and
            `feedforward_channels`.
        num_heads: Attention heads, without `encoder_config`.
        feedforward_channels: Hidden width of the feed-forward part, without `encoder_config`; four
            times `embed_dims` by default.
        predictor_bias: Initial bias of both logits. Only at 0 does a new AQR change nothing. Left
            out, it is 0, and 1.5 with `semantics.predictor='random'`.
        use_type_embed: Read from the users' configs; the embeddings it added were never used, so
            neither value adds any.
        bev_feature_shape: (H, W) that the BEV features must have; not checked if left out.
        pers_feature_shape: (V, h, w) that the camera features must have.
        semantics: See `AqrSemantics.from_config`; read is predictor.

    Raises:
        ValueError: If a window has no size, a width or key of `encoder_config` is wrong.

    Source: design section 3; parameter names of facts/cmt-facts.md section 3.
    """

    def __init__(
        self,
        *,
        embed_dims: int = 256,
        window_sizes: Sequence[int] = (9, 5),
        encoder_config: Mapping[str, Any] | None = None,
        num_heads: int | None = None,
        feedforward_channels: int | None = None,
        predictor_bias: float | None = None,
        use_type_embed: bool = False,
        bev_feature_shape: Sequence[int] | None = None,
        pers_feature_shape: Sequence[int] | None = None,
        semantics: AqrSemantics | Mapping[str, Any] | str | None = None,
    ) -> None:
        super().__init__()
        spec = _encoder_spec(embed_dims, encoder_config, num_heads, feedforward_channels)
        self.embed_dims = embed_dims
        self.camera_window, self.bev_window = _odd_windows(window_sizes)
        self.random_predictor = AqrSemantics.from_config(semantics).predictor == "random"
        if predictor_bias is None:
            predictor_bias = _RANDOM_BIAS if self.random_predictor else 0.0
        self.predictor_bias = float(predictor_bias)
        self.bev_feature_shape = bev_feature_shape
        self.pers_feature_shape = pers_feature_shape
        self.encoder = WindowEncoder(spec)
        self.weight_predictor = nn.Linear(embed_dims, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: xavier-uniform matrices; a predictor at zero, or random too."""
        for parameter in self.encoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        if self.random_predictor:
            nn.init.xavier_uniform_(self.weight_predictor.weight)
        else:
            nn.init.zeros_(self.weight_predictor.weight)
        nn.init.constant_(self.weight_predictor.bias, self.predictor_bias)

    def forward(
        self, query_pos: Tensor, memory: Tensor, memory_pos: Tensor, projection: Projection
    ) -> QueryWeights:
        """Weigh both modalities for each query.

        A query that a modality does not see has a weight for it all the same; the renderer leaves
        it out.

        B batch, Q queries, T = H·W + V·h·w memory tokens, d width.

        Args:
            query_pos: Position embeddings of the matching queries. [B, Q, d]
            memory: Unmodulated features: BEV row by row, then views, rows, columns. [B, T, d]
            memory_pos: Position embeddings of the memory. [B or 1, T, d]
            projection: Where the queries lie.

        Returns:
            The weights, float32. [B, Q] each

        Raises:
            ValueError: If shapes disagree.
        """
        check_feature_shapes(projection, self.bev_feature_shape, self.pers_feature_shape)
        self._check_inputs(query_pos, memory, memory_pos, projection)
        windows = query_windows(
            projection, camera_size=self.camera_window, bev_size=self.bev_window
        )
        content = self.encoder(query_pos, memory, memory_pos, windows)
        lidar, camera = self.weight_predictor(content).float().sigmoid().unbind(dim=-1)
        return QueryWeights(lidar=lidar, camera=camera)

    def _check_inputs(
        self, query_pos: Tensor, memory: Tensor, memory_pos: Tensor, projection: Projection
    ) -> None:
        (rows, cols), (views, height, width) = projection.bev_shape, projection.camera_shape
        batch, num_queries = projection.bev_valid.shape
        tokens = rows * cols + views * height * width
        wanted = {
            "query_pos": (query_pos, [batch, num_queries, self.embed_dims]),
            "memory": (memory, [batch, tokens, self.embed_dims]),
            "memory_pos": (memory_pos, [len(memory_pos), tokens, self.embed_dims]),
        }
        for name, (tensor, shape) in wanted.items():
            if list(tensor.shape) != shape:
                raise ValueError(
                    f"`{name}` must be {shape}, BEV tokens first, to fit the projection, but got"
                    f" {list(tensor.shape)}."
                )
        if len(memory_pos) not in (1, batch):
            raise ValueError(f"`memory_pos` must hold 1 or {batch} samples, got {len(memory_pos)}.")


class WindowEncoder(nn.Module):
    """One decoder layer over windows and the norm after it."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList([WindowDecoderLayer(spec)])
        self.post_norm = nn.LayerNorm(spec.embed_dims)

    def forward(
        self, query_pos: Tensor, memory: Tensor, memory_pos: Tensor, windows: Windows
    ) -> Tensor:
        """Describe each query by its windows, from empty content. -> [B, Q, d]."""
        content = torch.zeros_like(query_pos)
        for layer in self.layers:
            content = layer(content, query_pos, memory, memory_pos, windows)
        return self.post_norm(content)


class WindowDecoderLayer(nn.Module):
    """cross_attn, norm, ffn, norm."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([WindowCrossAttention(spec)])
        self.ffns = nn.ModuleList([FeedForward(spec)])
        self.norms = nn.ModuleList([nn.LayerNorm(spec.embed_dims) for _ in range(2)])

    def forward(
        self, query: Tensor, query_pos: Tensor, memory: Tensor, memory_pos: Tensor, windows: Windows
    ) -> Tensor:
        """Run the layer. [B, Q, d] -> [B, Q, d]."""
        query = self.attentions[0](query, query_pos, memory, memory_pos, windows)
        query = self.norms[0](query)
        return self.norms[1](self.ffns[0](query))


class FeedForward(nn.Module):
    """Two linear layers around a ReLU, added to their input; parameter names of mmcv's FFN."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(
                nn.Linear(spec.embed_dims, spec.hidden_channels),
                nn.ReLU(inplace=True),
                nn.Dropout(spec.ffn_drop),
            ),
            nn.Linear(spec.hidden_channels, spec.embed_dims),
            nn.Dropout(spec.ffn_drop),
        )

    def forward(self, query: Tensor) -> Tensor:
        """Add the result to the input. [B, Q, d] -> [B, Q, d]."""
        return query + self.layers(query)


def check_feature_shapes(
    projection: Projection, bev: Sequence[int] | None, camera: Sequence[int] | None
) -> None:
    """Compare the shapes that a config declares with those that came.

    Raises:
        ValueError: If a declared shape differs.
    """
    declared = {
        "bev_feature_shape": (bev, projection.bev_shape),
        "pers_feature_shape": (camera, projection.camera_shape),
    }
    for name, (wanted, got) in declared.items():
        if wanted is not None and tuple(wanted) != tuple(got):
            raise ValueError(
                f"`{name}` is {tuple(wanted)} in the config, but the features are {tuple(got)}."
                " Correct it, or leave it out: the shapes are read from the features."
            )


def _encoder_spec(
    embed_dims: int,
    encoder_config: Mapping[str, Any] | None,
    num_heads: int | None,
    feedforward_channels: int | None,
) -> EncoderSpec:
    if encoder_config is None:
        return EncoderSpec(
            embed_dims=embed_dims,
            num_heads=4 if num_heads is None else num_heads,
            feedforward_channels=feedforward_channels,
        )
    if num_heads is not None or feedforward_channels is not None:
        raise ValueError(
            "`num_heads` and `feedforward_channels` must stand either in `encoder_config` or beside"
            " it, but both came. Keep those in `encoder_config`."
        )
    return read_encoder_config(encoder_config, embed_dims=embed_dims)


def _odd_windows(window_sizes: Sequence[int]) -> tuple[int, int]:
    """Camera and BEV window, so that each has a centre."""
    if len(window_sizes) != 2 or any(size < 1 for size in window_sizes):
        raise ValueError(
            f"`window_sizes` must be two sizes >= 1, [camera, lidar], but got {list(window_sizes)}."
        )
    camera, bev = (size + 1 - size % 2 for size in window_sizes)
    if [camera, bev] != list(window_sizes):
        _LOG.warning(
            "`window_sizes` %s are read as %s: a window needs a centre, and past runs read s + 1"
            " tokens where s was even. Write them so.",
            list(window_sizes),
            [camera, bev],
        )
    return camera, bev
