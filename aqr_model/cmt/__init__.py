"""CMT in mmdet3d's registries, under the type names of its public configs.

Importing this package registers every part. It may import `aqr_model.aqr`, torch, mmcv, mmdet and
mmdet3d; it knows neither data sets nor the training loop.
"""

from aqr_model.cmt import detector, head, voxelize
from aqr_model.cmt.boxes import coder
from aqr_model.cmt.decoder import attention, task_head, transformer
from aqr_model.cmt.images import cp_fpn, vovnet
from aqr_model.cmt.loss import assigner

__all__ = [
    "assigner",
    "attention",
    "coder",
    "cp_fpn",
    "detector",
    "head",
    "task_head",
    "transformer",
    "vovnet",
    "voxelize",
]
