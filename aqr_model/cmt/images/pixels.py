"""Pixels as the cameras gave them become what the image backbone reads, on its device."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from aqr_model.aqr.crossings import constant


def normalised(images: Tensor, metas: Sequence[Mapping[str, Any]]) -> Tensor:
    """Normalise images as `NormalizeMultiviewImage` would have, to the last bit on a CPU.

    Args:
        images: BGR, uint8; floats have been normalised before and come back as they are.
            [..., 3, H, W]
        metas: Of each sample; ``img_norm_cfg`` of the first holds for all.

    Returns:
        float32. [..., 3, H, W]
    """
    if images.is_floating_point():
        return images
    how = metas[0]["img_norm_cfg"]
    values = images.float()
    if how["to_rgb"]:
        values = values.flip(-3)
    scale, shift = 1 / how["std"], how["mean"] / how["std"]
    values *= constant(scale.tolist(), values)[:, None, None]
    values -= constant(shift.tolist(), values)[:, None, None]
    return values
