"""Pipeline steps under the type names of CMT's public configs.

Registered here are the steps that mmdet3d lacks, and six of its own by the same name: those that
load files (errors that name the file, quicker reading), ``ObjectRangeFilter`` (it uses an alias
that numpy has dropped), ``PointShuffle`` (quicker) and ``Collect3D`` (ground truth in the metas
without containers).
"""

from aqr_model.data.pipelines.formatting import Collect3D
from aqr_model.data.pipelines.augment2d import (
    NormalizeMultiviewImage,
    PadMultiViewImage,
    ResizeCropFlipImage,
)
from aqr_model.data.pipelines.loading import (
    LoadMultiViewImageFromFiles,
    LoadPointsFromFile,
    LoadPointsFromMultiSweeps,
)
from aqr_model.data.pipelines.modality import ModalMask3D
from aqr_model.data.pipelines.object_paste import UnifiedObjectSample
from aqr_model.data.pipelines.augment3d import (
    CustomRandomFlip3D,
    GlobalRotScaleTransAll,
    ObjectRangeFilter,
    PointShuffle,
)
from aqr_model.data.pipelines.augment_cameras import GlobalRotScaleTransImage

__all__ = [
    "Collect3D",
    "CustomRandomFlip3D",
    "GlobalRotScaleTransAll",
    "GlobalRotScaleTransImage",
    "LoadMultiViewImageFromFiles",
    "LoadPointsFromFile",
    "LoadPointsFromMultiSweeps",
    "ModalMask3D",
    "NormalizeMultiviewImage",
    "ObjectRangeFilter",
    "PadMultiViewImage",
    "PointShuffle",
    "ResizeCropFlipImage",
    "UnifiedObjectSample",
]
