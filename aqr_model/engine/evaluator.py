"""Score a detector on the validation scenes by the nuScenes devkit."""

from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from mmdet3d.datasets import build_dataset
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from aqr_model.data import CustomNuScenesDataset
from aqr_model.engine.distributed import Workers
from aqr_model.engine.transfer import collate, to_device


class Evaluator:
    """Predict and score; the dataset is opened once and serves every rung.

    Args:
        cfg: A training config; ``data.val`` names the validation set.
        device: Where the model stands.
    """

    def __init__(self, cfg: Config, *, device: torch.device) -> None:
        self.device = device
        self.num_workers = cfg.data.workers_per_gpu
        self.batch_size = cfg.data.get("val_samples_per_gpu", 1)
        dataset = build_dataset(cfg.data.val, {"test_mode": True})
        assert isinstance(dataset, CustomNuScenesDataset)
        self.dataset = dataset

    def score(
        self,
        model: nn.Module,
        *,
        val_share: float = 1.0,
        workdir: Path | None = None,
        keep_detections: bool = False,
        workers: Workers | None = None,
    ) -> dict[str, float]:
        """Score a model.

        Processes share the samples; rank 0 puts the detections together and scores them.

        Args:
            model: The detector; left in the mode in which it came.
            val_share: Share of the validation scenes; always the same scenes.
            workdir: Folder for the devkit's summary; none by default.
            keep_detections: Write the detections there, too.
            workers: Processes that hold the same model; all must call it.

        Returns:
            ``val/nds``, ``val/map``, the five true-positive errors and ``val/ap/<class>``, the
            same in all processes.

        Raises:
            FloatingPointError: If a detection is not finite.
        """
        dataset = self.dataset if val_share == 1.0 else self.dataset.with_share(val_share)
        workers = workers or Workers()
        own = range(workers.rank, len(dataset), workers.size)
        shares = workers.to_main(self._detect(model, Subset(dataset, own)))
        scores = None
        if workers.is_main:
            found = [shares[i % workers.size][i // workers.size] for i in range(len(dataset))]
            scores = dataset.evaluate(found, jsonfile_prefix=workdir, keep_results=keep_detections)
        return workers.from_main(scores)

    @torch.no_grad()
    def _detect(self, model: nn.Module, dataset: Dataset) -> list[dict[str, Any]]:
        was_training = model.training
        model.eval()
        loader = DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
        )
        found = []
        for batch in loader:
            found += model(return_loss=False, rescale=True, **to_device(batch, self.device))
        model.train(was_training)
        return found


def set_epoch(model: nn.Module, epoch: float, total_epochs: float) -> None:
    """Give AQR's schedules the epoch; a finished model is scored with the last one's values."""
    head: Any = model.pts_bbox_head
    head.set_epoch(epoch, total_epochs)
