"""Show what AQR does to a sample, for any checkpoint.

``python -m aqr_model.visualize CONFIG CHECKPOINT --sample N --out DIR`` writes a picture and the
statistics behind it. The sample is one of the validation set.
"""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from mmdet3d.models import build_model

from aqr_model.engine.distributed import local_device
from aqr_model.engine.evaluator import set_epoch
from aqr_model.engine.plan import budget_epochs
from aqr_model.engine.weights.pretrained import Wanted, load_pretrained
from aqr_model.preflight.reading import load_config
from aqr_model.report.pictures import draw, save
from aqr_model.report.viewer import Viewer
from aqr_model.user_errors import explained

logger = logging.getLogger(__name__)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@explained()
def main(
    config: Annotated[Path, typer.Argument(help="A training config with AQR.")],
    checkpoint: Annotated[Path, typer.Argument(help="Weights that fit it.")],
    sample: Annotated[str, typer.Option(help="Number or token in the validation set.")] = "0",
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("pictures"),
    dpi: Annotated[int, typer.Option(help="Pixels per inch; the picture is 12 inches wide.")] = 100,
) -> None:
    """Write the picture of a sample and, as JSON, the statistics behind it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = load_config(config)
    viewer = Viewer(cfg)
    index = viewer.index(sample)
    model = build_model(cfg.model, train_cfg=cfg.get("train_cfg"), test_cfg=cfg.get("test_cfg"))
    fresh = load_pretrained(model, checkpoint, Wanted.to_score(cfg))
    if fresh:
        logger.info(
            "%d AQR entries are not in the checkpoint: their maps are untrained", len(fresh)
        )
    set_epoch(model, budget_epochs(cfg), budget_epochs(cfg))
    scene, values = viewer.look(model.to(local_device()), index)
    picture = save(draw(scene), out / f"sample_{index:05d}.png", dpi=dpi)
    numbers = out / f"sample_{index:05d}.json"
    numbers.write_text(json.dumps(values, indent=1))
    logger.info("%s and %s", picture, numbers)


if __name__ == "__main__":
    app()
