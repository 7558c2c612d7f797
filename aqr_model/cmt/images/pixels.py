"""Pixels as the cameras gave them become what the image backbone reads, on its device."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqr_model.aqr.crossings import constant


def normalised(images: Tensor, metas: Sequence[Mapping[str, Any]]) -> Tensor:
    """Normalise images as `NormalizeMultiviewImage` would have, to the last bit on a CPU.

    Args:
        images: BGR, uint8; floats have been normalised before and come back as they are.
            [..., 3, H, W]
        metas: Of each sample; its ``img_norm_cfg`` says how.

    Returns:
        float32. [..., 3, H, W]
    """
    if images.is_floating_point():
        return images
    how, *others = [meta["img_norm_cfg"] for meta in metas]
    if any(not np.array_equal(how[name], each[name]) for each in others for name in how):
        # Of several datasets: each sample as its own pipeline says.
        parts = zip(images, metas, strict=True)
        return torch.stack([normalised(own, [meta]) for own, meta in parts])
    values = images.float()
    if how["to_rgb"]:
        values = values.flip(-3)
    scale, shift = 1 / how["std"], how["mean"] / how["std"]
    values *= constant(scale.tolist(), values)[:, None, None]
    values -= constant(shift.tolist(), values)[:, None, None]
    return values
