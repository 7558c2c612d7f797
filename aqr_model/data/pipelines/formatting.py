"""What the collated batch holds."""

from typing import Any

from mmcv.parallel import DataContainer
from mmdet3d.datasets import PIPELINES
from mmdet3d.datasets.pipelines import formating

_GROUND_TRUTH = ("gt_bboxes_3d", "gt_labels_3d")


@PIPELINES.register_module(force=True)
class Collect3D(formating.Collect3D):
    """mmdet3d's step; ground truth among the metas stands there as boxes and tensors.

    Denoising queries read ground truth from the metas. mmdet3d leaves a container there, which
    no collation opens, because containers inside the metas are not looked for.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Collect keys and metas."""
        data = super().__call__(results)
        metas = data["img_metas"].data
        for key in _GROUND_TRUTH:
            if isinstance(metas.get(key), DataContainer):
                metas[key] = metas[key].data
        return data
