"""nuScenes from tables to the model's inputs, and from its outputs to NDS."""

from aqr_model.data import pipelines
from aqr_model.data.nuscenes.dataset import CLASS_NAMES, CustomNuScenesDataset

__all__ = ["CLASS_NAMES", "CustomNuScenesDataset", "pipelines"]
