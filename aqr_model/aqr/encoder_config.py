"""The weight generator's encoder in the users' vocabulary, read into numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_OPERATIONS = ("cross_attn", "norm", "ffn", "norm")
_ENCODER_KEYS = ("type", "return_intermediate", "num_layers", "transformerlayers", "post_norm_cfg")
_LAYER_KEYS = (
    "type", "with_cp", "attn_cfgs", "ffn_cfgs", "feedforward_channels", "ffn_dropout",
    "operation_order",
)  # fmt: skip
_ATTENTION_KEYS = ("type", "embed_dims", "num_heads", "dropout")
_FFN_KEYS = ("type", "embed_dims", "feedforward_channels", "num_fcs", "ffn_drop", "act_cfg")


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """One decoder layer of the generator: cross_attn, norm, ffn, norm.

    Args:
        embed_dims: Width of queries and memory.
        num_heads: Attention heads; divides `embed_dims`.
        feedforward_channels: Hidden width of the feed-forward part.
        dropout: Of the attention weights and of the attention's output, in [0, 1).
        ffn_drop: After each linear layer of the feed-forward part, in [0, 1).
        with_cp: Accepted; windows are always gathered again in the backward pass.

    Raises:
        ValueError: If a number is outside its range.
    """

    embed_dims: int
    num_heads: int = 4
    feedforward_channels: int | None = None
    dropout: float = 0.0
    ffn_drop: float = 0.0
    with_cp: bool = False

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.embed_dims % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide `embed_dims` ({self.embed_dims}), but got"
                f" {self.num_heads}."
            )
        for name in ("dropout", "ffn_drop"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"`{name}` must be in [0, 1), but got {getattr(self, name)}.")

    @property
    def hidden_channels(self) -> int:
        """Hidden width of the feed-forward part; four times the width unless given."""
        return self.feedforward_channels or 4 * self.embed_dims


def read_encoder_config(config: Mapping[str, Any], *, embed_dims: int) -> EncoderSpec:
    """Read `aqr_config.encoder_config`, a `PETRTransformerDecoder` of one layer.

    Args:
        config: The dictionary as the users' configs write it.
        embed_dims: Width of the generator, which the dictionary's widths must equal.

    Returns:
        The numbers in it; what it leaves out keeps its default.

    Raises:
        ValueError: For an unknown key, more than one layer, another order of operations, another
            width, or another activation.
    """
    _check_keys("encoder_config", config, _ENCODER_KEYS)
    _require("encoder_config.num_layers", config.get("num_layers", 1), 1)
    norm = config.get("post_norm_cfg", {}).get("type", "LN")
    _require("encoder_config.post_norm_cfg.type", norm, "LN")
    layer = config.get("transformerlayers", {})
    _check_keys("encoder_config.transformerlayers", layer, _LAYER_KEYS)
    order = tuple(layer.get("operation_order", _OPERATIONS))
    _require("encoder_config.transformerlayers.operation_order", order, _OPERATIONS)
    attention = _one_attention(layer.get("attn_cfgs", {}))
    ffn = layer.get("ffn_cfgs", {})
    _check_keys("encoder_config.transformerlayers.ffn_cfgs", ffn, _FFN_KEYS)
    _require("ffn_cfgs.num_fcs", ffn.get("num_fcs", 2), 2)
    _require("ffn_cfgs.act_cfg.type", ffn.get("act_cfg", {}).get("type", "ReLU"), "ReLU")
    for part in (attention, ffn):
        _require("encoder_config's embed_dims", part.get("embed_dims", embed_dims), embed_dims)
    return EncoderSpec(
        embed_dims=embed_dims,
        num_heads=attention.get("num_heads", 4),
        feedforward_channels=ffn.get("feedforward_channels", layer.get("feedforward_channels")),
        dropout=attention.get("dropout", 0.0),
        ffn_drop=ffn.get("ffn_drop", layer.get("ffn_dropout", 0.0)),
        with_cp=layer.get("with_cp", False),
    )


def _one_attention(attn_cfgs: Any) -> Mapping[str, Any]:
    configs = [attn_cfgs] if isinstance(attn_cfgs, Mapping) else list(attn_cfgs)
    if len(configs) != 1:
        raise ValueError(
            "`encoder_config.transformerlayers.attn_cfgs` must hold one attention, the"
            f" cross-attention, but got {len(configs)}. Remove the others."
        )
    _check_keys("encoder_config.transformerlayers.attn_cfgs", configs[0], _ATTENTION_KEYS)
    return configs[0]


def _check_keys(name: str, config: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ValueError(
            f"`{name}` knows the keys {', '.join(known)}, but got {', '.join(unknown)}. Remove or"
            " rename the latter."
        )


def _require(name: str, value: Any, wanted: Any) -> None:
    if value != wanted:
        raise ValueError(f"`{name}` must be {wanted!r}, but got {value!r}.")
