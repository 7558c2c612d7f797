"""Every tunable of a sweep by its short name: the config keys it sets, its range, unit and meaning.

The single home of these numbers. A sweep spec may use these names, or any dotted key of the config.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KnobValue = float | int | bool | str

_HEAD = "model.pts_bbox_head"
_LR = "optimizer.paramwise_cfg.custom_keys"


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One tunable.

    Attributes:
        name: Short name, as a spec writes it.
        keys: Dotted config keys that take the value, all of them; empty for a pure search axis.
        default: Value of the shipped configs.
        low: Smallest allowed value, inclusive; None without a bound.
        high: Largest allowed value, inclusive; None without a bound.
        choices: Allowed values of a categorical knob, else None.
        unit: Physical unit, or what the number counts.
        meaning: One sentence.
    """

    name: str
    keys: tuple[str, ...]
    default: KnobValue
    low: float | None = None
    high: float | None = None
    choices: tuple[KnobValue, ...] | None = None
    unit: str = "1"
    meaning: str


_ALL = (
    Knob(
        name="enable_aqr",
        keys=(f"{_HEAD}.enable_aqr",),
        default=True,
        choices=(True, False),
        meaning="Adaptive query routing on or off; off is the plain CMT.",
    ),
    Knob(
        name="seed",
        keys=("seed",),
        default=0,
        low=0,
        high=2**31 - 1,
        meaning="Seed of initialisation, data order and augmentation.",
    ),
    Knob(
        name="amplification",
        keys=(),
        default=1.15,
        low=1.0,
        high=10.0,
        meaning="Largest feature gain A = r + c (1 - r): a search axis; derive the clamp from it.",
    ),
    Knob(
        name="max_weight_clamp",
        keys=(f"{_HEAD}.renderer_config.max_weight_clamp",),
        default=1.5,
        low=1.0,
        high=10.0,
        meaning="Upper bound c of the weight maps, whose neutral value is 1.",
    ),
    Knob(
        name="residual_weight",
        keys=(f"{_HEAD}.modulator_config.residual_weight",),
        default=0.7,
        low=0.0,
        high=1.0,
        meaning="Share r of the unmodulated feature: f' = f ((1 - r) M + r).",
    ),
    Knob(
        name="gaussian_sigma",
        keys=(f"{_HEAD}.renderer_config.gaussian_sigma",),
        default=1.0,
        low=0.1,
        high=8.0,
        unit="feature-map cells",
        meaning="Width of a query's kernel in the weight maps.",
    ),
    Knob(
        name="predictor_bias",
        keys=(f"{_HEAD}.aqr_config.predictor_bias",),
        default=0.0,
        low=-5.0,
        high=5.0,
        unit="logit",
        meaning="Initial bias of the weight predictor; at 0 a fresh AQR changes nothing.",
    ),
    Knob(
        name="base_lr",
        keys=("optimizer.lr",),
        default=1e-4,
        low=1e-8,
        high=1.0,
        meaning="Learning rate before multipliers and schedule.",
    ),
    Knob(
        name="aqr_lr_mult",
        keys=tuple(
            f"{_LR}.{part}.lr_mult"
            for part in ("aqr_weight_generator", "weight_renderer", "feature_modulator")
        ),
        default=1.0,
        low=0.0,
        high=1000.0,
        unit="x base_lr",
        meaning="Learning-rate multiplier of all AQR parts.",
    ),
    Knob(
        name="transformer_lr_mult",
        keys=(f"{_LR}.transformer.lr_mult",),
        default=0.8,
        low=0.0,
        high=100.0,
        unit="x base_lr",
        meaning="Learning-rate multiplier of the decoder.",
    ),
    Knob(
        name="task_heads_lr_mult",
        keys=(f"{_LR}.task_heads.lr_mult",),
        default=0.8,
        low=0.0,
        high=100.0,
        unit="x base_lr",
        meaning="Learning-rate multiplier of the box and class heads.",
    ),
)

KNOBS: Mapping[str, Knob] = {knob.name: knob for knob in _ALL}


def to_overrides(params: Mapping[str, KnobValue]) -> dict[str, Any]:
    """Translate parameters into dotted config overrides.

    Args:
        params: Knob names or dotted config keys with their values.

    Returns:
        Dotted config keys with their values; pure search axes are left out.
    """
    overrides: dict[str, Any] = {}
    for name, value in params.items():
        keys = KNOBS[name].keys if name in KNOBS else (name,)
        overrides.update(dict.fromkeys(keys, value))
    return overrides
