"""Train a detector from a config.

``python -m aqr_model.train CONFIG`` runs it by itself, ``torchrun --nproc_per_node N -m
aqr_model.train CONFIG`` on several devices; a sweep calls :func:`train` with its own report.
"""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer
from mmcv import Config

from aqr_model.engine.distributed import launched
from aqr_model.engine.loop import Halted, train
from aqr_model.engine.resuming import resume_path
from aqr_model.preflight.checks import preflight
from aqr_model.preflight.options import TAKES_OPTIONS, CfgOptions, given_config
from aqr_model.report.reports import ConsoleReport, Report
from aqr_model.user_errors import explained

__all__ = ["Halted", "Report", "train"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


logger = logging.getLogger(__name__)


def check(cfg: Config, path: Path) -> None:
    """Refuse what cannot start, with every reason, and name settings that do nothing.

    Raises:
        ConfigError: If a training cannot start from the config.
    """
    findings = preflight(cfg, source=path)
    if os.environ.get("RANK", "0") == "0":
        for warning in findings.warnings:
            logger.warning("%s", warning)
    findings.require_none(str(path))


@app.command(context_settings=TAKES_OPTIONS)
@explained()
def main(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="A training config, shipped or exported.")],
    work_dir: Annotated[Path | None, typer.Option(help="Default: the config's work_dir.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", "--auto-resume", help="Go on from latest.pth of the folder, if it is there."
        ),
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Default: the config's seed.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Only cuDNN's deterministic kernels.")
    ] = False,
    cfg_options: CfgOptions = None,
) -> None:
    """Train from a config and print its scores."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    cfg = given_config(config, cfg_options, context)
    if seed is not None:
        cfg.seed = seed
    if deterministic:
        cfg.deterministic = True
    check(cfg, config)
    folder = work_dir or Path(cfg.get("work_dir") or f"work_dirs/{config.stem}")
    with launched() as is_main:
        if not is_main:
            logging.getLogger().setLevel(logging.WARNING)  # one process tells what all do
        train(
            cfg,
            workdir=folder,
            report=ConsoleReport(folder) if is_main else None,
            resume_from=resume_path(cfg, folder, resume=resume),
        )


if __name__ == "__main__":
    app()
