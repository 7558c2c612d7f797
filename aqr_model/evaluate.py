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
from aqr_model.preflight.reading import load_config
from aqr_model.preflight.sensors import require_agreeing_sensors
from aqr_model.preflight.types import require_known_types
from aqr_model.report.user_errors import explained

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@explained()
def main(
    config: Annotated[Path, typer.Argument(help="A training config.")],
    checkpoint: Annotated[Path, typer.Argument(help="Weights that fit it.")],
    share: Annotated[float, typer.Option(help="Share of the validation scenes.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Folder for detections and summary.")] = None,
    format_only: Annotated[
        bool, typer.Option(help="Write results_nusc.json for nuScenes' server to --out, unscored.")
    ] = False,
) -> None:
    """Print NDS, mAP, the five errors and the AP of each class."""
    if format_only and (out is None or share != 1.0):
        raise typer.BadParameter("--format-only needs --out, and writes all samples: no --share.")
    cfg = load_config(config)
    require_known_types(cfg, ("model",))
    require_agreeing_sensors(cfg, ("val",))
    model = build_model(cfg.model, train_cfg=cfg.get("train_cfg"), test_cfg=cfg.get("test_cfg"))
    load_pretrained(model, checkpoint)
    set_epoch(model, budget_epochs(cfg), budget_epochs(cfg))
    apply_precision(model, read_precision(cfg))
    device = local_device()
    evaluator = Evaluator(cfg, device=device, scored=not format_only)
    if out is not None and format_only:
        print(evaluator.write(model.to(device), out))
        return
    scores = evaluator.score(model.to(device), val_share=share, workdir=out, keep_detections=True)
    for name, value in scores.items():
        print(f"{name:28s} {value:.4f}")


if __name__ == "__main__":
    app()
