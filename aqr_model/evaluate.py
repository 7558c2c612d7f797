"""Score a checkpoint: ``python -m aqr_model.evaluate CONFIG CHECKPOINT``.

``torchrun --nproc_per_node N -m aqr_model.evaluate CONFIG CHECKPOINT`` shares the samples among
N processes.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer
from mmdet3d.models import build_model

from aqr_model.engine.distributed import launched, local_device, together
from aqr_model.engine.evaluator import Evaluator, set_epoch
from aqr_model.engine.optim.precision import apply_precision, read_precision
from aqr_model.engine.plan import budget_epochs
from aqr_model.engine.weights.pretrained import Wanted, load_pretrained
from aqr_model.preflight.checks import preflight_of_scoring
from aqr_model.preflight.options import TAKES_OPTIONS, CfgOptions, given_config
from aqr_model.preflight.reading import ConfigError
from aqr_model.user_errors import explained

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings=TAKES_OPTIONS)
@explained()
def main(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="A training config.")],
    checkpoint: Annotated[Path, typer.Argument(help="Weights that fit it.")],
    share: Annotated[float, typer.Option(help="Share of the validation scenes.")] = 1.0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Samples at a time. Default: data.val_samples_per_gpu, else 1."),
    ] = None,
    averaged: Annotated[
        bool, typer.Option("--averaged", help="Score the averages that an EMA hook left.")
    ] = False,
    bootstrap: Annotated[
        int,
        typer.Option(min=0, help="Draws of scenes for the standard error of NDS; 0 for none."),
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for detections and summary.")] = None,
    format_only: Annotated[
        bool, typer.Option(help="Write results_nusc.json for nuScenes' server to --out, unscored.")
    ] = False,
    cfg_options: CfgOptions = None,
) -> None:
    """Print NDS, mAP, the five errors and the AP of each class."""
    if bootstrap == 1:
        raise ConfigError("--bootstrap must be 0 or at least 2, but got 1")
    if format_only and (out is None or share != 1.0 or bootstrap):
        raise ConfigError(
            "--format-only must come with --out and without --share and --bootstrap: it writes all "
            "samples and scores none"
        )
    cfg = given_config(config, cfg_options, context)
    if batch_size is not None:
        cfg.data.val_samples_per_gpu = batch_size
    wanted = Wanted.to_score(cfg, averaged=averaged)
    found = preflight_of_scoring(cfg, checkpoint, wanted, source=config)
    found.require_none(str(config))
    with launched() as is_main, together() as workers:
        if is_main:
            logging.basicConfig(level=logging.INFO, format="%(message)s")
        model = build_model(cfg.model, train_cfg=cfg.get("train_cfg"), test_cfg=cfg.get("test_cfg"))
        load_pretrained(model, checkpoint, wanted)
        set_epoch(model, budget_epochs(cfg), budget_epochs(cfg))
        apply_precision(model, read_precision(cfg))
        device = local_device()
        evaluator = Evaluator(cfg, device=device, scored=not format_only)
        if format_only and out is not None:
            said = [str(evaluator.write(model.to(device), out, workers=workers))]
        else:
            scores = evaluator.score(
                model.to(device),
                val_share=share,
                workdir=out,
                keep_detections=True,
                bootstrap=bootstrap,
                workers=workers,
            )
            said = [f"{name:28s} {value:.4f}" for name, value in scores.items()]
        if is_main:
            print("\n".join(said))


if __name__ == "__main__":
    app()
