"""What a training works with: built from its config, taken up from a checkpoint, saved to one."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from mmdet3d.models import build_model
from torch import nn

from aqr_model.engine.distributed import Workers
from aqr_model.engine.evaluator import Evaluator
from aqr_model.engine.monitor import AqrMonitor
from aqr_model.engine.optim import lr_schedule
from aqr_model.engine.optim.freezing import Frozen
from aqr_model.engine.optim.param_groups import Rates, make_optimizer
from aqr_model.engine.optim.precision import Precision, apply_precision, make_scaler, read_precision
from aqr_model.engine.plan import Plan
from aqr_model.engine.progress import Progress
from aqr_model.engine.weights.files import CheckpointError
from aqr_model.engine.weights.pretrained import load_pretrained
from aqr_model.engine.weights.states import TrainState, read_newest, save_state
from aqr_model.report.reports import Report

logger = logging.getLogger(__name__)


def build_detector(cfg: Config) -> nn.Module:
    """Build the detector of a config, initialise it, and load ``load_from`` where it is set."""
    model = build_model(cfg.model, train_cfg=cfg.get("train_cfg"), test_cfg=cfg.get("test_cfg"))
    model.init_weights()
    if cfg.get("load_from"):
        fresh = load_pretrained(model, Path(cfg.load_from))
        if fresh:
            logger.info("%d AQR entries start from their initial values", len(fresh))
    return model


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training works with."""

    model: nn.Module
    net: nn.Module  # the model, or what averages its gradients over processes
    find_unused: bool
    frozen: Frozen
    optimizer: torch.optim.Optimizer
    precision: Precision
    scaler: torch.amp.GradScaler
    rates: Rates
    plan: Plan
    workers: Workers
    evaluator: Evaluator
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
    model = build_detector(cfg).to(device)
    precision = read_precision(cfg)
    apply_precision(model, precision)
    frozen = Frozen(model, cfg)
    optimizer = make_optimizer(model, cfg.optimizer)
    scaler = make_scaler(precision, device)
    rates = Rates(
        optimizer,
        cfg.optimizer,
        total_epochs=plan.total_epochs,
        lr_factor=lr_schedule.factor(cfg.get("lr_config")),
        momentum_factor=lr_schedule.factor(cfg.get("momentum_config")),
    )
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
        precision=precision,
        scaler=scaler,
        rates=rates,
        plan=plan,
        workers=workers,
        evaluator=Evaluator(cfg, device=device),
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


def restore(run: Run, resume_from: Path | None) -> tuple[int, int]:
    """Go back to a checkpoint; return its step and how many rungs are reported."""
    if resume_from is None:
        return 0, 0
    state = read_newest(resume_from)
    steps = run.workers.gather(state.step)
    if len(set(steps)) > 1:
        raise CheckpointError(f"all processes must read the same checkpoint, but got steps {steps}")
    if state.samples_per_step not in (None, run.plan.samples_per_step):
        raise CheckpointError(
            f"{resume_from} counts steps of {state.samples_per_step} samples, but this training "
            f"has {run.plan.samples_per_step} (samples_per_gpu x cumulative_iters x processes); "
            "resume it with the same number, on however many devices"
        )
    run.model.load_state_dict(state.model)
    run.optimizer.load_state_dict(state.optimizer)
    if state.scaler:  # states of before had none without fp16
        run.scaler.load_state_dict(state.scaler)
    return state.step, state.rungs_reported


def save(run: Run, step: int, rungs_done: int) -> Path:
    """Write the state of rank 0, from which all others follow."""
    path = run.workdir / "latest.pth"
    if run.workers.is_main:
        state = TrainState(
            step=step,
            model=run.model.state_dict(),
            optimizer=run.optimizer.state_dict(),
            rungs_reported=rungs_done,
            scaler=run.scaler.state_dict(),
            samples_per_step=run.plan.samples_per_step,
        )
        save_state(state, path)
    return path


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


def _blocks_gradients(model: nn.Module) -> bool:
    """Whether AQR's generator learns nothing, as in the users' code (semantics ``legacy``)."""
    head: Any = model.pts_bbox_head
    return bool(head.enable_aqr) and head.aqr_semantics.gradient == "blocked"
