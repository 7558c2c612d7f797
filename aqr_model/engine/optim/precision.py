"""Mixed precision: which number format each part computes in, and the scale of the loss.

Three parts may compute in fewer bits, under autocast: the image branch, the BEV backbone with its
neck, and the decoder. Voxels, sparse encoder, positions, query routing, boxes, matching and losses
stay in float32 (see ``CmtDetector`` and ``CmtHead``), as do weights, gradients and optimizer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from mmcv import Config
from torch import nn

from aqr_model.engine import config_keys

READS: config_keys.Reads = {
    "precision.**": config_keys.SECTION.or_none(),
    "bf16": config_keys.FLAG.or_none(),
    "fp16": config_keys.ANY,
    "fp16.loss_scale.**": config_keys.ANY,
    "optimizer_config.type": config_keys.TEXT,
    "optimizer_config.loss_scale.**": config_keys.ANY,
    "optimizer_config.custom_fp16.**": config_keys.SECTION,
}

MIN_LOSS_SCALE = 1.0
"""A dynamic scale below it means that the gradients themselves are not finite."""

_FORMATS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_FP32_PARTS = ("pts_voxel_encoder", "pts_middle_encoder", "pts_bbox_head")

LossScale = float | Mapping[str, float] | Literal["dynamic"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What a config asks for.

    Attributes:
        images: Format of image backbone and neck.
        bev: Of the BEV backbone and its neck.
        decoder: Of the transformer's layers, with float32 sums between them.
        tf32: On a GPU, let products of float32 matrices round their factors to 10 bits. Maps and
            geometry never do.
        loss_scale: Of fp16: a number, arguments of torch's ``GradScaler``, or ``dynamic``.
    """

    images: Literal["fp32", "bf16", "fp16"] = "fp32"
    bev: Literal["fp32", "bf16"] = "fp32"
    decoder: Literal["fp32", "bf16"] = "fp32"
    tf32: bool = True
    loss_scale: LossScale = "dynamic"

    def __post_init__(self) -> None:
        """Check the formats."""
        allowed = {"images": tuple(_FORMATS), "bev": ("fp32", "bf16"), "decoder": ("fp32", "bf16")}
        for part, formats in allowed.items():
            if getattr(self, part) not in formats:
                raise ValueError(
                    f"`precision.{part}` must be one of {', '.join(formats)}, but got"
                    f" {getattr(self, part)!r}"
                )
        if not isinstance(self.tf32, bool):
            raise ValueError(f"`precision.tf32` must be True or False, but got {self.tf32!r}")


def read_precision(cfg: Config) -> Precision:
    """Read the precision of a config.

    ``precision = dict(images=..., bev=..., decoder=..., tf32=...)``; or ``bf16 = True``, which is
    bf16 for all three parts; or, for the image branch alone, ``fp16 = dict(loss_scale=...)`` or an
    ``optimizer_config`` whose ``type`` names an fp16 hook, with ``loss_scale`` in it. A hook's own
    default of a scale is 512.

    Raises:
        ValueError: If two ways are used, a value is not one of those that there are, or
            ``custom_fp16`` wants half precision where there is none.
    """
    hook = cfg.get("optimizer_config") or {}
    by_hook = "Fp16" in str(hook.get("type", ""))
    fp16 = cfg.get("fp16")
    is_fp16 = by_hook or (fp16 is not None and fp16 is not False)
    ways = {"precision": cfg.get("precision"), "bf16": cfg.get("bf16"), "fp16": is_fp16}
    used = [name for name, value in ways.items() if value]
    if len(used) > 1:
        kept = f"`optimizer_config.type = {hook['type']!r}`" if by_hook else f"`{used[-1]}`"
        others = [f"`{name} = None`" for name in used[:-1]]
        raise ValueError(
            "one of `precision`, `bf16` and `fp16` must be set, an fp16 hook of `optimizer_config`"
            f" among them, but got {', '.join(f'`{name}`' for name in used[:-1])} and {kept},"
            f" perhaps from a file of `_base_`. Write {' and '.join(others)} to keep {kept}."
        )
    lowered = [part for part in _FP32_PARTS if (hook.get("custom_fp16") or {}).get(part)]
    if lowered:
        raise ValueError(
            f"`custom_fp16` must be False for {', '.join(lowered)}: fp16 is for the image branch "
            "alone; `precision` can set bf16 for the BEV backbone and the decoder"
        )
    if ways["precision"]:
        return _from_keys(ways["precision"])
    if ways["bf16"]:
        return Precision(images="bf16", bev="bf16", decoder="bf16")
    if not is_fp16:
        return Precision()
    settings = hook if by_hook and "loss_scale" in hook else (fp16 or {})
    scale = settings.get("loss_scale", 512.0) if isinstance(settings, Mapping) else 512.0
    return Precision(images="fp16", loss_scale=_checked(scale))


def apply_precision(model: nn.Module, precision: Precision) -> None:
    """Set the formats of a detector's parts, and on a GPU whether its process uses TF32."""
    detector: Any = model
    detector.image_dtype = _FORMATS[precision.images]
    detector.bev_dtype = _FORMATS[precision.bev]
    detector.pts_bbox_head.decoder_dtype = _FORMATS[precision.decoder]
    if torch.cuda.is_available():
        rounding = "tf32" if precision.tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = rounding
        torch.backends.cudnn.conv.fp32_precision = rounding  # pyright: ignore[reportAttributeAccessIssue]


def make_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """The scaler of the loss; without fp16 its scale is 1.

    Without a scale, gradients of fp16 activations below 6e-8 would vanish. In every format the
    scaler keeps a step whose gradients are not finite from touching the weights, on the device
    itself: the host need not wait to see them.
    """
    scale: Any = precision.loss_scale if precision.images == "fp16" else 1.0
    settings: dict[str, Any] = {}
    if isinstance(scale, Mapping):
        settings = dict(scale)
    elif not isinstance(scale, str):
        # Torch has no constant scale: this one never grows, and an overflow ends the training.
        settings = {"init_scale": float(scale), "growth_interval": 2**31 - 1}
    return torch.amp.GradScaler(device.type, **settings)


def overflow_reason(precision: Precision, scaler: torch.amp.GradScaler) -> str | None:
    """Why an overflow of the gradients must end the training; None if the step is just skipped.

    A dynamic scale starts high and finds its value by overflowing.

    Args:
        precision: Of the training.
        scaler: After the step that overflowed, which has lowered its scale.
    """
    if precision.images != "fp16":
        return "the gradients are not finite"
    if isinstance(precision.loss_scale, float | int):
        return f"the gradients overflow at the constant loss scale {precision.loss_scale:g}"
    # A scale that small cannot be what overflows.
    if scaler.get_scale() < MIN_LOSS_SCALE:
        before = scaler.get_scale() / scaler.get_backoff_factor()
        return f"the gradients are not finite even at loss scale {before:g}"
    return None


def _from_keys(keys: Mapping[str, Any]) -> Precision:
    known = [name for name in Precision.__dataclass_fields__]
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise ValueError(f"keys of `precision` must be among {known}, but got {unknown}")
    settings = dict(keys)
    if "loss_scale" in settings:
        settings["loss_scale"] = _checked(settings["loss_scale"])
    return Precision(**settings)


def _checked(scale: Any) -> LossScale:
    if scale == "dynamic":
        return "dynamic"
    if isinstance(scale, Mapping):
        return dict(scale)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or scale <= 0:
        raise ValueError(
            f"`loss_scale` must be 'dynamic', a number above 0 or a dict, but got {scale!r}"
        )
    return float(scale)
