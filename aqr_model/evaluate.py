"""Score a detector on the validation scenes by the nuScenes devkit.

``python -m aqr_model.evaluate CONFIG CHECKPOINT`` prints the scores of a checkpoint.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from mmcv import Config
from mmcv.parallel import collate
from mmdet3d.datasets import build_dataset
from mmdet3d.models import build_model
from torch import nn
from torch.utils.data import DataLoader

from aqr_model.checkpoint import load_pretrained
from aqr_model.data import CustomNuScenesDataset
from aqr_model.loading import to_device


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
        self, model: nn.Module, *, val_share: float = 1.0, workdir: Path | None = None
    ) -> dict[str, float]:
        """Score a model.

        Args:
            model: The detector; left in the mode in which it came.
            val_share: Share of the validation scenes; always the same scenes.
            workdir: Folder for the detections and the devkit's summary; none by default.

        Returns:
            ``val/nds``, ``val/map``, the five true-positive errors and ``val/ap/<class>``.

        Raises:
            FloatingPointError: If a detection is not finite.
        """
        dataset = self.dataset if val_share == 1.0 else self.dataset.with_share(val_share)
        return dataset.evaluate(self._detect(model, dataset), jsonfile_prefix=workdir)

    @torch.no_grad()
    def _detect(self, model: nn.Module, dataset: CustomNuScenesDataset) -> list[dict[str, Any]]:
        was_training = model.training
        model.eval()
        loader = DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=lambda samples: collate(samples, samples_per_gpu=self.batch_size),
        )
        found = []
        for batch in loader:
            found += model(return_loss=False, rescale=True, **to_device(batch, self.device))
        model.train(was_training)
        return found


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path, typer.Argument(help="A training config.")],
    checkpoint: Annotated[Path, typer.Argument(help="Weights that fit it.")],
    share: Annotated[float, typer.Option(help="Share of the validation scenes.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Folder for detections and summary.")] = None,
) -> None:
    """Print NDS, mAP, the five errors and the AP of each class."""
    cfg = Config.fromfile(str(config))
    model = build_model(cfg.model, train_cfg=cfg.get("train_cfg"), test_cfg=cfg.get("test_cfg"))
    load_pretrained(model, checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scores = Evaluator(cfg, device=device).score(model.to(device), val_share=share, workdir=out)
    for name, value in scores.items():
        print(f"{name:28s} {value:.4f}")


if __name__ == "__main__":
    app()
