"""What AQR does to a sample of the validation set: its picture and the statistics behind it."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmcv import Config
from mmdet3d.datasets import build_dataset
from torch import nn

from aqr_model.aqr.observed import observe
from aqr_model.aqr.statistics import describe, histograms_of
from aqr_model.cmt.images.pixels import normalised
from aqr_model.data import CustomNuScenesDataset
from aqr_model.data.nuscenes.infos import CAMERAS
from aqr_model.engine.config_keys import ConfigError
from aqr_model.engine.transfer import collate, to_device
from aqr_model.report.pictures import Scene

logger = logging.getLogger(__name__)


class Viewer:
    """Draws samples of a config's validation set.

    Args:
        cfg: A training config with ``model.pts_bbox_head.enable_aqr``.

    Raises:
        ConfigError: Without AQR there is nothing to show.
    """

    def __init__(self, cfg: Config) -> None:
        if not cfg.model.pts_bbox_head.get("enable_aqr"):
            raise ConfigError(
                "`model.pts_bbox_head.enable_aqr` must be True to draw AQR's maps, but the config"
                " builds the plain detector. Take the config of its AQR version; detectors of one"
                " sensor have none."
            )
        dataset = build_dataset(cfg.data.val, {"test_mode": True})
        assert isinstance(dataset, CustomNuScenesDataset)
        self.dataset = dataset
        self.norm = _normalisation(cfg.data.val.pipeline)

    def index(self, sample: str) -> int:
        """The place of a sample in the validation set.

        Args:
            sample: Its number, from 0, or its token.

        Raises:
            ConfigError: If there is no such sample.
        """
        tokens = [info["token"] for info in self.dataset.data_infos]
        if sample in tokens:
            return tokens.index(sample)
        if sample.isdigit() and int(sample) < len(tokens):
            return int(sample)
        raise ConfigError(
            f"the sample must be a token or a number from 0 to {len(tokens) - 1}, but got"
            f" {sample!r}"
        )

    @torch.no_grad()
    def look(self, model: nn.Module, index: int) -> tuple[Scene, dict[str, Any]]:
        """Run the detector on a sample.

        Args:
            model: The detector; left in the mode in which it came.
            index: Place of the sample in the validation set.

        Returns:
            What to draw, and AQR's statistics with the four histograms.
        """
        head: Any = model.pts_bbox_head
        sample: Any = self.dataset[index]
        batch = to_device(collate([sample]), next(model.parameters()).device)
        annotations = self.dataset.get_ann_info(index)
        boxes = annotations["gt_bboxes_3d"][annotations["gt_labels_3d"] >= 0]
        was_training, was_collecting = model.training, head.collect_aqr
        model.eval()
        head.collect_aqr = True
        try:
            model(return_loss=False, rescale=True, **batch)
            found = head.last_aqr
        finally:
            head.collect_aqr, head.last_aqr = was_collecting, None
            model.train(was_training)
        planes = torch.cat([boxes.gravity_center, boxes.tensor[:, 3:]], dim=1)
        renderer, modulator = found.pop("renderer"), found.pop("modulator")
        observed = observe(**found | {"gt_boxes": [planes]})
        shares = histograms_of(observed, max_weight_clamp=renderer.max_weight_clamp)
        seen = observed.on_grid[0]
        grid = found["grid"]
        cells = found["projection"].bev_cells[0][seen].flip(-1) + 0.5  # x, y
        start = cells.new_tensor(grid.point_cloud_range[:2])
        meta = batch["img_metas"][0][0]
        info = self.dataset.data_infos[index]
        scene = Scene(
            title=f"sample {index}: {info['token']}",
            points=batch["points"][0][0].cpu().numpy(),
            corners=boxes.corners.numpy().reshape(-1, 8, 3),
            images=_pixels(normalised(batch["img"][0][0], batch["img_metas"][0]), self.norm),
            cameras=list(CAMERAS),
            lidar2img=np.stack(meta["lidar2img"]),
            grid=grid,
            bev_map=observed.bev_map[0].cpu().numpy(),
            camera_maps=observed.camera_maps[0].cpu().numpy(),
            queries=(cells * cells.new_tensor(grid.cell_size) + start).cpu().numpy(),
            weights=observed.lidar[0][seen].cpu().numpy(),
            histograms=shares,
            max_weight_clamp=renderer.max_weight_clamp,
        )
        values = describe(observed, renderer=renderer, modulator=modulator)
        return scene, {**values, **shares}


def _pixels(images: torch.Tensor, norm: Mapping[str, Any]) -> np.ndarray:
    """Undo the normalisation. [V, 3, H, W] -> RGB [V, H, W, 3] in 0 to 255."""
    found = images.permute(0, 2, 3, 1).cpu().numpy()
    found = found * np.asarray(norm["std"]) + np.asarray(norm["mean"])
    return (found if norm["to_rgb"] else found[..., ::-1]).clip(0, 255)


def _normalisation(pipeline: Any) -> dict[str, Any]:
    """What the test pipeline does to colours."""
    pending = list(pipeline)
    while pending:
        step = pending.pop()
        if step["type"] == "NormalizeMultiviewImage":
            return {"mean": step["mean"], "std": step["std"], "to_rgb": step.get("to_rgb", True)}
        pending += step.get("transforms", [])
    raise ConfigError(
        "`data.val.pipeline` must hold a `NormalizeMultiviewImage`, whose colours the picture"
        " restores, but has none."
    )
