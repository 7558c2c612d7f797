"""CMT in mmdet3d's registries, under the type names of its public configs.

Importing this package registers every part.
"""

from aqr_model.cmt import (
    assigner,
    attention,
    coder,
    cp_fpn,
    detector,
    head,
    task_head,
    transformer,
    vovnet,
    voxelize,
)

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
