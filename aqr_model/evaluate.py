"""Score a checkpoint: ``python -m aqr_model.evaluate CONFIG CHECKPOINT``."""

from pathlib import Path
from typing import Annotated

import typer
from mmdet3d.models import build_model

from aqr_model.engine.distributed import local_device
from aqr_model.engine.evaluator import Evaluator, set_epoch
from aqr_model.engine.optim.precision import apply_precision, read_precision
from aqr_model.engine.plan import budget_epochs
from aqr_model.engine.weights.pretrained import load_pretrained
from aqr_model.preflight.checks import preflight_of_scoring
from aqr_model.preflight.reading import load_config
from aqr_model.user_errors import explained

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@explained()
def main(
    config: Annotated[Path, typer.Argument(help="A training config.")],
    checkpoint: Annotated[Path, typer.Argument(help="Weights that fit it.")],
    share: Annotated[float, typer.Option(help="Share of the validation scenes.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Folder for detections and summary.")] = None,
) -> None:
    """Print NDS, mAP, the five errors and the AP of each class."""
    cfg = load_config(config)
    preflight_of_scoring(cfg, checkpoint, source=config).require_none(str(config))
    model = build_model(cfg.model, train_cfg=cfg.get("train_cfg"), test_cfg=cfg.get("test_cfg"))
    load_pretrained(model, checkpoint)
    set_epoch(model, budget_epochs(cfg), budget_epochs(cfg))
    apply_precision(model, read_precision(cfg))
    device = local_device()
    scores = Evaluator(cfg, device=device).score(
        model.to(device), val_share=share, workdir=out, keep_detections=True
    )
    for name, value in scores.items():
        print(f"{name:28s} {value:.4f}")


if __name__ == "__main__":
    app()
