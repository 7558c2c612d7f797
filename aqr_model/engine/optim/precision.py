"""Mixed precision: which number format the image branch computes in, and the scale of the loss.

The image branch runs under autocast and hands over float32; voxel features, sparse encoder and head
stay in float32 (see ``CmtDetector``). Weights, gradients and optimizer are float32 throughout.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from mmcv import Config
from torch import nn

from aqr_model.engine import config_keys

READS: config_keys.Reads = {
    "bf16": config_keys.FLAG.or_none(),
    "fp16": config_keys.ANY,
    "fp16.loss_scale.**": config_keys.ANY,
    "optimizer_config.type": config_keys.TEXT,
    "optimizer_config.loss_scale.**": config_keys.ANY,
    "optimizer_config.custom_fp16.**": config_keys.SECTION,
}

MIN_LOSS_SCALE = 1.0
"""A dynamic scale below it means that the gradients themselves are not finite."""

_FP32_PARTS = ("pts_voxel_encoder", "pts_middle_encoder", "pts_bbox_head")


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What a config asks for.

    Attributes:
        name: Format of the image branch.
        loss_scale: Of fp16: a number, arguments of torch's ``GradScaler``, or ``dynamic``.
    """

    name: Literal["fp32", "bf16", "fp16"] = "fp32"
    loss_scale: float | Mapping[str, float] | Literal["dynamic"] = "dynamic"

    @property
    def image_dtype(self) -> torch.dtype | None:
        """Of the image branch; None for float32."""
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]


def read_precision(cfg: Config) -> Precision:
    """Read the precision of a config.

    ``bf16 = True``; or ``fp16 = dict(loss_scale=...)``; or an ``optimizer_config`` whose ``type``
    names an fp16 hook, with ``loss_scale`` in it. A hook's own default of a scale is 512.

    Raises:
        ValueError: If two formats are asked for, a scale is no scale, or ``custom_fp16`` wants
            half precision where there is none.
    """
    hook = cfg.get("optimizer_config") or {}
    by_hook = "Fp16" in str(hook.get("type", ""))
    fp16 = cfg.get("fp16")
    is_fp16 = by_hook or (fp16 is not None and fp16 is not False)
    if cfg.get("bf16") and is_fp16:
        raise ValueError("one of `bf16` and `fp16` must be set, but both are")
    lowered = [part for part in _FP32_PARTS if (hook.get("custom_fp16") or {}).get(part)]
    if lowered:
        raise ValueError(
            f"`custom_fp16` must be False for {', '.join(lowered)}: voxel features, sparse encoder "
            "and head compute in float32"
        )
    if cfg.get("bf16"):
        return Precision(name="bf16")
    if not is_fp16:
        return Precision()
    settings = hook if by_hook and "loss_scale" in hook else (fp16 or {})
    scale = settings.get("loss_scale", 512.0) if isinstance(settings, Mapping) else 512.0
    return Precision(name="fp16", loss_scale=_checked(scale))


def apply_precision(model: nn.Module, precision: Precision) -> None:
    """Set the format of a detector's image branch."""
    model.image_dtype = precision.image_dtype  # pyright: ignore[reportArgumentType]


def make_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """The scaler of the loss; it does nothing unless the format is fp16.

    Without it, gradients of fp16 activations below 6e-8 would vanish.
    """
    scale = precision.loss_scale
    settings: dict[str, Any] = {}
    if isinstance(scale, Mapping):
        settings = dict(scale)
    elif not isinstance(scale, str):
        # Torch has no constant scale: this one never grows, and an overflow ends the training.
        settings = {"init_scale": float(scale), "growth_interval": 2**31 - 1}
    return torch.amp.GradScaler(device.type, enabled=precision.name == "fp16", **settings)


def overflow_reason(precision: Precision, scaler: torch.amp.GradScaler) -> str | None:
    """Why an overflow of the gradients must end the training; None if the step is just skipped.

    A dynamic scale starts high and finds its value by overflowing.
    """
    if precision.name != "fp16":
        return "the gradients are not finite"
    if isinstance(precision.loss_scale, float | int):
        return f"the gradients overflow at the constant loss scale {precision.loss_scale:g}"
    # Half of today's scale is the next one; a scale that small cannot be what overflows.
    if scaler.get_scale() * scaler.get_backoff_factor() < MIN_LOSS_SCALE:
        return f"the gradients are not finite even at loss scale {scaler.get_scale():g}"
    return None


def _checked(scale: Any) -> float | Mapping[str, float] | Literal["dynamic"]:
    if scale == "dynamic":
        return "dynamic"
    if isinstance(scale, Mapping):
        return dict(scale)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or scale <= 0:
        raise ValueError(
            f"`loss_scale` must be 'dynamic', a number above 0 or a dict, but got {scale!r}"
        )
    return float(scale)
