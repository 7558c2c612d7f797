"""Every tunable of a sweep by its short name: the config keys it sets, its range, unit and meaning.

The single home of these numbers. A sweep spec may use these names, or any dotted key of the config.
It imports nothing of this package: `launch` reads it without loading the detector.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

KnobValue = float | int | bool | str

_HEAD = "model.pts_bbox_head"
_LR = "optimizer.paramwise_cfg.custom_keys"
# The parts of AQR that can have parameters; the modulator has some where it learns.
_AQR_PARTS = ("aqr_weight_generator", "feature_modulator")


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
    default: KnobValue | None
    low: float | None = None
    high: float | None = None
    choices: tuple[KnobValue, ...] | None = None
    unit: str = "1"
    meaning: str


# Each field of `aqr_model.aqr.AqrSemantics`, its values and what they choose.
_SEMANTICS = (
    ("queries", ("matching", "all"), "which queries are weighed and drawn"),
    ("kernel", ("peak", "sum"), "what is 1 of a query's kernel"),
    ("background", ("neutral", "zero"), "the map where no query reaches"),
    ("residual", ("convex", "additive"), "how the residual weight enters"),
    ("views", ("all", "first"), "in which of the cameras that see it a query is drawn"),
    ("bev_grid", ("config", "fixed"), "the size of a BEV cell"),
    ("camera_scale", ("axes", "rows"), "pixels a camera cell, by axis or by the rows' alone"),
    ("cells", ("exact", "floored"), "exact or whole places of the queries"),
    ("unseen", ("masked", "origin"), "what becomes of a query that no camera sees"),
    ("gradient", ("flows", "blocked"), "whether the maps train the weights"),
    ("clamped", ("both", "bev"), "which maps are clamped"),
    ("predictor", ("silent", "random"), "how an untrained weight predictor starts"),
)

# Values that follow the training: name, config keys, the number each stands in place of, bounds.
_SCHEDULES = (
    ("clamp_schedule", (f"{_HEAD}.renderer_config.clamp_schedule",), "max_weight_clamp", 1.0, 10.0),
    (
        "residual_schedule",
        (f"{_HEAD}.modulator_config.residual_schedule",),
        "residual_weight",
        0,
        1,
    ),
    (
        "aqr_lr_mult_schedule",
        tuple(f"{_LR}.{part}.lr_mult_schedule" for part in _AQR_PARTS),
        "aqr_lr_mult",
        0.0,
        1000.0,
    ),
    (
        "transformer_lr_mult_schedule",
        (f"{_LR}.transformer.lr_mult_schedule",),
        "transformer_lr_mult",
        0.0,
        100.0,
    ),
    (
        "task_heads_lr_mult_schedule",
        (f"{_LR}.task_heads.lr_mult_schedule",),
        "task_heads_lr_mult",
        0.0,
        100.0,
    ),
)
# The head refuses a number beside a schedule that starts elsewhere.
_INSTEAD = {
    "clamp_schedule": f"{_HEAD}.renderer_config.max_weight_clamp",
    "residual_schedule": f"{_HEAD}.modulator_config.residual_weight",
}

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
        name="render_method",
        keys=(f"{_HEAD}.renderer_config.render_method",),
        default="gaussian",
        choices=("gaussian", "bilinear", "direct", "distance_weighted"),
        meaning="Shape of a query's kernel in the weight maps.",
    ),
    Knob(
        name="bilinear_radius",
        keys=(f"{_HEAD}.renderer_config.bilinear_radius",),
        default=1.5,
        low=1.0,
        high=16.0,
        unit="feature-map cells",
        meaning="Half-width of a query's kernel with render_method bilinear.",
    ),
    Knob(
        name="distance_decay",
        keys=(f"{_HEAD}.renderer_config.distance_decay",),
        default=0.8,
        low=0.01,
        high=0.99,
        unit="x a cell",
        meaning="What a cell of distance leaves of a kernel with render_method distance_weighted.",
    ),
    Knob(
        name="clamp_quantile",
        keys=(f"{_HEAD}.renderer_config.clamp_quantile",),
        default=1.0,
        low=0.01,
        high=1.0,
        meaning="Adaptive clamp: a map's bound is this quantile of what it amplifies, at most c.",
    ),
    Knob(
        name="modulation_type",
        keys=(f"{_HEAD}.modulator_config.modulation_type",),
        default="element_wise",
        choices=("element_wise", "channel_wise", "adaptive"),
        meaning="Features follow the map's own value, its mean, or a mix of both.",
    ),
    Knob(
        name="modulation_activation",
        keys=(f"{_HEAD}.modulator_config.activation",),
        default="none",
        choices=("none", "sigmoid", "tanh", "relu"),
        meaning="Function of a map's distance to neutral before it acts.",
    ),
    Knob(
        name="learnable_modulation",
        keys=(f"{_HEAD}.modulator_config.learnable_modulation",),
        default=False,
        choices=(False, True),
        meaning="Learn a scale and a bias of the maps, from 1 and 0.",
    ),
    Knob(
        name="camera_window",
        keys=(f"{_HEAD}.aqr_config.window_sizes.0",),
        default=9,
        choices=(1, 3, 5, 7, 9, 11, 13, 15),
        unit="tokens",
        meaning="Edge of the window in a camera's features that a query's weights come from.",
    ),
    Knob(
        name="bev_window",
        keys=(f"{_HEAD}.aqr_config.window_sizes.1",),
        default=5,
        choices=(1, 3, 5, 7, 9, 11, 13, 15),
        unit="tokens",
        meaning="Edge of the window in the BEV features that a query's weights come from.",
    ),
    Knob(
        name="semantics",
        keys=(f"{_HEAD}.aqr_config.semantics.preset",),
        default="right",
        choices=("right", "legacy"),
        meaning="What the maps mean: as designed, or as past runs had them.",
    ),
    *(
        Knob(
            name=f"semantics_{field}",
            keys=(f"{_HEAD}.aqr_config.semantics.{field}",),
            default=choices[0],
            choices=choices,
            meaning=f"Semantics of the maps: {meaning} (docs/aqr.md).",
        )
        for field, choices, meaning in _SEMANTICS
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
        keys=tuple(f"{_LR}.{part}.lr_mult" for part in _AQR_PARTS),
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
    *(
        Knob(
            name=name,
            keys=keys,
            default=None,
            low=low,
            high=high,
            unit="a value of the schedule; epochs",
            meaning=f"{number} over the training (docs/aqr.md): constant, cosine or staged.",
        )
        for name, keys, number, low, high in _SCHEDULES
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
    for name, value in _assembled(params).items():
        keys = KNOBS[name].keys if name in KNOBS else (name,)
        overrides.update({key: deepcopy(value) for key in keys})
        if name in _INSTEAD:
            overrides[_INSTEAD[name]] = None
    return overrides


def _assembled(params: Mapping[str, KnobValue]) -> dict[str, Any]:
    """Put the parts of each schedule together: `x.type`, `x.start_value`, `x.value_2`, ..."""
    whole: dict[str, Any] = {}
    for name, value in params.items():
        schedule, _, part = name.rpartition(".")
        if f"{schedule}.type" not in params:
            whole[name] = value
            continue
        config = whole.setdefault(schedule, {})
        key, _, number = part.rpartition("_")
        if number.isdigit():
            stages = config.setdefault("stages", [])
            while len(stages) < int(number):
                stages.append([0.0, 0.0])
            stages[int(number) - 1][key == "value"] = value
        else:
            config[part] = value
    return whole
