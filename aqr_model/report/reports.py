"""Where a training sends what it finds; the report of one that runs by itself."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)


class Report(Protocol):
    """Where a training sends what it finds; the sweep and the command line each have their own."""

    def rung(
        self,
        metrics: Mapping[str, float],
        *,
        fraction: float,
        val_share: float,
        epoch: float,
        step: int,
        checkpoint: Path | None,
    ) -> None:
        """Hand over the score at a rung; an exception ends the training."""
        ...

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Hand over losses, learning rates and statistics."""
        ...

    def artifact(self, path: Path) -> None:
        """Hand over a file."""
        ...


class ConsoleReport:
    """Print losses and scores, and append all values to ``metrics.jsonl``.

    Args:
        folder: Where the file goes; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"

    def rung(
        self,
        metrics: Mapping[str, float],
        *,
        fraction: float,
        val_share: float,
        epoch: float,
        step: int,
        checkpoint: Path | None,
    ) -> None:
        """Print and keep a score."""
        logger.info(
            "%.0f %% of the budget, %.0f %% of the validation scenes: NDS %.4f  mAP %.4f%s",
            100 * fraction,
            100 * val_share,
            metrics["val/nds"],
            metrics["val/map"],
            "  (averaged weights)" if "val/averaged_weights" in metrics else "",
        )
        self._append({"step": step, "fraction": fraction, "val_share": val_share, **metrics})

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Keep values; print those that a person follows."""
        if "train/loss" in values:
            logger.info(
                "step %d  epoch %.2f  loss %.3f  grad %.1f  lr %.2g  %.3f s/step",
                step,
                values["train/epoch"],
                values["train/loss"],
                values.get("train/grad_norm", math.nan),  # all of the steps were skipped
                values["train/lr/max"],
                values["train/s_per_step"],
            )
        self._append({"step": step, **values})

    def artifact(self, path: Path) -> None:
        """Do nothing: the file already lies where its writer put it."""

    def _append(self, record: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(dict(record)) + "\n")
