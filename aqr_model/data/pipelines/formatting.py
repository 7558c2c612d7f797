"""What the collated batch holds."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmcv.parallel import DataContainer
from mmdet3d.datasets import PIPELINES
from mmdet3d.datasets.pipelines import formating

from aqr_model.data.pipelines.augment2d import NormalizeMultiviewImage, PadMultiViewImage

_GROUND_TRUTH = ("gt_bboxes_3d", "gt_labels_3d")


@PIPELINES.register_module(force=True)
class Collect3D(formating.Collect3D):
    """mmdet3d's step; ground truth among the metas stands there as boxes and tensors.

    Denoising queries read ground truth from the metas. mmdet3d leaves a container there, which
    no collation opens, because containers inside the metas are not looked for. With images of
    uint8 goes how the device normalises them, whatever ``meta_keys`` says.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Collect keys and metas."""
        data = super().__call__(results)
        metas = data["img_metas"].data
        for key in _GROUND_TRUTH:
            if isinstance(metas.get(key), DataContainer):
                metas[key] = metas[key].data
        images = data.get("img")
        if isinstance(images, DataContainer) and images.data.dtype == torch.uint8:
            metas["img_norm_cfg"] = results["img_norm_cfg"]
        return data


def leave_to_device(steps: Sequence[Any]) -> None:
    """Let a pipeline's images be normalised on the device, where no later step reads pixels.

    Steps of other packages before it may give pixels at one time and floats at another, and a
    batch must be one of both: then nothing is left.

    Args:
        steps: Of a built pipeline; those inside a `MultiScaleFlipAug3D` are looked at, too.
    """
    for index, step in enumerate(steps):
        inner = getattr(step, "transforms", None)
        if inner is not None:
            leave_to_device(inner.transforms)
        later = steps[index + 1 :]
        if (
            isinstance(step, NormalizeMultiviewImage)
            and all(type(before).__module__.split(".")[0] in _KNOWN for before in steps[:index])
            and any(isinstance(after, Collect3D) for after in later)
            and all(isinstance(after, _BLIND) for after in later)
        ):
            step.device_multiple = math.lcm(
                *(after.size_divisor for after in later if isinstance(after, PadMultiViewImage))
            )


_KNOWN = ("aqr_model", "mmdet3d")
# These read no pixels, padding apart.
_BLIND = (PadMultiViewImage, formating.DefaultFormatBundle3D, Collect3D)
