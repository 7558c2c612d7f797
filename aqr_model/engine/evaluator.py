"""Score a detector on the validation scenes by the nuScenes devkit."""

from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from mmdet3d.datasets import build_dataset
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from aqr_model.data import CustomNuScenesDataset
from aqr_model.engine import config_keys
from aqr_model.engine.distributed import Workers
from aqr_model.engine.scoring import Request, ScoringProcess
from aqr_model.engine.transfer import collate, to_device

READS: config_keys.Reads = {
    "data.val.**": config_keys.SECTION.given(),
    "data.val_samples_per_gpu": config_keys.WHOLE_ABOVE_0,
    "data.workers_per_gpu": config_keys.WHOLE_FROM_0.given(),
}


class Evaluator:
    """Predict and score; the dataset is opened once and serves every rung.

    Args:
        cfg: A training config; ``data.val`` names the validation set.
        device: Where the model stands.
        scored: Detections are scored, not only written: there must be objects.

    Raises:
        DataError: If predicting or scoring would fail for what the files and tables lack.
    """

    def __init__(self, cfg: Config, *, device: torch.device, scored: bool = True) -> None:
        self.device = device
        self.num_workers = cfg.data.workers_per_gpu
        self.batch_size = cfg.data.get("val_samples_per_gpu", 1)
        dataset = build_dataset(cfg.data.val, {"test_mode": True})
        assert isinstance(dataset, CustomNuScenesDataset)
        dataset.require_readable()
        self.dataset = dataset
        self._cfg = cfg
        if scored:
            shares = (cfg.get("evaluation") or {}).get("val_shares", [])
            for share in {1.0, *shares}:
                self._share(share).require_objects()

    def score(
        self,
        model: nn.Module,
        *,
        val_share: float = 1.0,
        workdir: Path | None = None,
        keep_detections: bool = False,
        bootstrap: int = 0,
        workers: Workers | None = None,
    ) -> dict[str, float]:
        """Score a model.

        Processes share the samples; rank 0 puts the detections together and scores them.

        Args:
            model: The detector; left in the mode in which it came.
            val_share: Share of the validation scenes; always the same scenes.
            workdir: Folder for the devkit's summary; none by default.
            keep_detections: Write the detections there, too.
            bootstrap: Draws of scenes for the standard error of NDS; 0 for none.
            workers: Processes that hold the same model; all must call it.

        Returns:
            ``val/nds``, ``val/map``, the five true-positive errors and ``val/ap/<class>``, the
            same in all processes; with ``bootstrap`` also ``val/nds_standard_error``.

        Raises:
            FloatingPointError: If a detection is not finite.
        """
        dataset = self._share(val_share)
        workers = workers or Workers()
        scores, found = None, self._detect_all(model, dataset, workers)
        if workers.is_main:
            scores = dataset.evaluate(
                found,
                jsonfile_prefix=workdir,
                keep_results=keep_detections,
                bootstrap=bootstrap,
            )
        return workers.from_main(scores)

    def begin_score(
        self, model: nn.Module, *, val_share: float, workdir: Path, workers: Workers
    ) -> ScoringProcess | None:
        """Detect, and have another process score what was found.

        Args:
            model: The detector; left in the mode in which it came, and free to train on.
            val_share: Share of the validation scenes; always the same scenes.
            workdir: Folder for the devkit's summary.
            workers: Processes that hold the same model; all must call it.

        Returns:
            Gives the scores, as `score` does; None in all processes but that of rank 0.
        """
        found = self._detect_all(model, self._share(val_share), workers)
        if not workers.is_main:
            return None
        return ScoringProcess(
            Request(
                dataset={**self._cfg.data.val, "pipeline": []},  # a score reads no sensor file
                imports=self._cfg.get("custom_imports") or {},
                val_share=val_share,
                detections=found,
                workdir=workdir,
            )
        )

    def write(self, model: nn.Module, folder: Path, *, workers: Workers | None = None) -> Path:
        """Write a model's detections as nuScenes' server reads them, unscored.

        Args:
            model: The detector; left in the mode in which it came.
            folder: Where ``results_nusc.json`` is put.
            workers: Processes that hold the same model; all must call it.
        """
        workers = workers or Workers()
        path, found = None, self._detect_all(model, self.dataset, workers)
        if workers.is_main:
            path = self.dataset.format_results(found, folder)
        return workers.from_main(path)

    def _share(self, share: float) -> CustomNuScenesDataset:
        return self.dataset if share == 1.0 else self.dataset.with_share(share)

    def _detect_all(
        self, model: nn.Module, dataset: CustomNuScenesDataset, workers: Workers
    ) -> list[dict[str, Any]]:
        """Detections of all processes, in the order of the dataset; rank 0 alone has them."""
        own = range(workers.rank, len(dataset), workers.size)
        shares = workers.to_main(self._detect(model, Subset(dataset, own)))
        if not workers.is_main:
            return []
        return [shares[i % workers.size][i // workers.size] for i in range(len(dataset))]

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
