"""The toy's `aqr_model/train.py` for several objectives: what is better takes longer.

It keeps a log of its own of each score: what really happened, whatever the sweep says.
"""

import json
import time
from pathlib import Path

CLASSES = ("pedestrian", "bicycle")


class Halted(Exception):
    """Never raised here."""


def train(
    cfg, *, workdir: Path, report, resume_from: Path | None = None, halts=lambda: False
) -> None:
    head = cfg.model.pts_bbox_head
    weight = head.modulator_config.residual_weight if head.enable_aqr else 0.5
    sigma = head.renderer_config.gaussian_sigma
    begun, spent = time.monotonic(), 0.0
    for step, (fraction, share) in enumerate(
        zip(cfg.evaluation.rungs, cfg.evaluation.val_shares, strict=True)
    ):
        # Training as long as the weight says; the wait for a verdict is no training.
        time.sleep(0.3 + 1.2 * weight)
        spent += time.monotonic() - begun
        metrics = {
            "val/nds": 0.4 + 0.05 * weight * fraction - 0.02 * (sigma - 1) ** 2,
            "val/map": 0.1,
            "val/ap/pedestrian": 0.3 - 0.1 * weight + 0.1 * sigma,
            "val/ap/bicycle": 0.2 * fraction,
        }
        with (workdir / "diary.jsonl").open("a") as diary:
            diary.write(json.dumps({**metrics, "fraction": fraction, "seconds": spent}) + "\n")
        checkpoint = workdir / "latest.pth"
        part = checkpoint.with_suffix(".part")
        part.write_text(str(step))
        part.replace(checkpoint)
        report.rung(
            metrics,
            fraction=fraction,
            val_share=share,
            epoch=fraction,
            step=step + 1,
            checkpoint=checkpoint,
        )
        begun = time.monotonic()
