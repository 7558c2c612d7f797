"""What a training works with, built from its config."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from mmdet3d.models import build_model
from torch import nn

from aqr_model.engine import config_keys
from aqr_model.engine.distributed import Workers
from aqr_model.engine.evaluator import Evaluator
from aqr_model.engine.hooks import Averaged, averaging_hook
from aqr_model.engine.monitor import AqrMonitor
from aqr_model.engine.nonfinite import FiniteCheck
from aqr_model.engine.optim.freezing import Frozen
from aqr_model.engine.optim.lr_schedule import Schedule
from aqr_model.engine.optim.param_groups import Rates, make_optimizer
from aqr_model.engine.optim.precision import (
    Precision,
    apply_precision,
    make_scaler,
    overflow_reason,
    read_precision,
)
from aqr_model.engine.plan import Plan
from aqr_model.engine.progress import Progress
from aqr_model.engine.weights.pretrained import Wanted, load_pretrained
from aqr_model.report.reports import Report

logger = logging.getLogger(__name__)

READS: config_keys.Reads = {
    "model.**": config_keys.SECTION.given(),
    "train_cfg.**": config_keys.SECTION.or_none(),
    "test_cfg.**": config_keys.SECTION.or_none(),
    "load_from": config_keys.TEXT.or_none(),
    "load_parts": config_keys.NAME_OR_NAMES.or_none(),
    "load_averaged": config_keys.FLAG.or_none(),
    "load_types": config_keys.NAME_OR_NAMES.or_none(),
    "lr_config.**": config_keys.SECTION.or_none(),
    "momentum_config.**": config_keys.SECTION.or_none(),
    "find_unused_parameters": config_keys.FLAG.or_none(),
    "evaluation.beside_training": config_keys.FLAG.or_none(),
}


def build_detector(cfg: Config) -> nn.Module:
    """Build the detector of a config, initialise it, and load ``load_from`` where it is set."""
    model = build_model(cfg.model, train_cfg=cfg.get("train_cfg"), test_cfg=cfg.get("test_cfg"))
    model.init_weights()
    if cfg.get("load_from"):
        load_pretrained(model, Path(cfg.load_from), Wanted.of_config(cfg))
    return model


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training works with."""

    model: nn.Module
    net: nn.Module  # the model, or what averages its gradients over processes
    find_unused: bool
    frozen: Frozen
    optimizer: torch.optim.Optimizer
    grad_clip: Mapping[str, Any]
    precision: Precision
    scaler: torch.amp.GradScaler
    check: FiniteCheck
    averaged: Averaged
    rates: Rates
    plan: Plan
    workers: Workers
    evaluator: Evaluator
    scores_beside: bool
    monitor: AqrMonitor
    progress: Progress
    workdir: Path
    report: Report | None


def build_run(
    cfg: Config,
    plan: Plan,
    workers: Workers,
    device: torch.device,
    workdir: Path,
    report: Report | None,
) -> Run:
    """Build all that a training needs, in the order in which one part needs the other.

    Args:
        cfg: A whole training config.
        plan: Of the training.
        workers: Its processes.
        device: Of this process.
        workdir: Folder for checkpoints; rank 0 makes it.
        report: Of rank 0.
    """
    if workers.is_main:
        if report is None:
            raise ValueError("the process of rank 0 must have a report")
        workdir.mkdir(parents=True, exist_ok=True)
    hook = averaging_hook(cfg)
    model = build_detector(cfg).to(device)
    precision = read_precision(cfg)
    apply_precision(model, precision)
    frozen = Frozen(model, cfg)
    optimizer = make_optimizer(model, cfg.optimizer)
    scaler = make_scaler(precision, device)
    schedule = Schedule.of_config(optimizer, cfg, plan)
    rates = Rates(optimizer, cfg.optimizer, schedule, total_epochs=plan.total_epochs)
    if workers.is_main:
        frozen.log()
    own = report if workers.is_main else None
    find_unused = bool(cfg.get("find_unused_parameters")) or _blocks_gradients(model)
    return Run(
        model=model,
        net=workers.wrap(model, find_unused=find_unused),
        find_unused=find_unused,
        frozen=frozen,
        optimizer=optimizer,
        grad_clip=(cfg.get("optimizer_config") or {}).get("grad_clip") or {},
        precision=precision,
        scaler=scaler,
        check=FiniteCheck(model, workers, lambda: overflow_reason(precision, scaler)),
        averaged=Averaged(model, hook),
        rates=rates,
        plan=plan,
        workers=workers,
        evaluator=Evaluator(cfg, device=device),
        scores_beside=_scores_beside(cfg, device),
        monitor=AqrMonitor(model, cfg, own, workers=workers, workdir=workdir),
        progress=Progress(
            own,
            plan,
            workers,
            rates=rates.by_name,
            scale=scaler.get_scale if precision.images == "fp16" else None,
        ),
        workdir=workdir,
        report=own,
    )


def require_gradients(run: Run) -> None:
    """Name parameters that train but got no gradient in the first step.

    Raises:
        ValueError: On several processes without ``find_unused_parameters``: they would wait for
            these gradients, and not average the others.
    """
    idle = [n for n, p in run.model.named_parameters() if p.requires_grad and p.grad is None]
    if not idle:
        return
    shown = f"{', '.join(idle[:5])}{' ...' if len(idle) > 5 else ''}"
    if run.workers.size > 1 and not run.find_unused:
        raise ValueError(
            f"every parameter that trains must get a gradient, but {len(idle)} got none: {shown}. "
            "Freeze them, or set `find_unused_parameters = True`."
        )
    logger.warning("%d parameters got no gradient and do not learn: %s", len(idle), shown)


def _scores_beside(cfg: Config, device: torch.device) -> bool:
    """On a GPU by default; on the CPU the devkit would take the training's cores."""
    wanted = (cfg.get("evaluation") or {}).get("beside_training")
    return device.type == "cuda" if wanted is None else bool(wanted)


def _blocks_gradients(model: nn.Module) -> bool:
    """Whether AQR's generator learns nothing, as in the users' code (semantics ``legacy``)."""
    head: Any = model.pts_bbox_head
    return bool(head.enable_aqr) and head.aqr_semantics.gradient == "blocked"
