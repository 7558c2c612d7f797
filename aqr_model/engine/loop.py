"""The training loop: build, step, save, score at the rungs, report."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import torch
from mmcv import Config
from mmcv.runner import OptimizerHook
from mmdet3d.datasets import build_dataset
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from aqr_model.cmt.loss.step_totals import StepTotals
from aqr_model.engine import config_keys
from aqr_model.engine.batches import Split, seed_everything, training_batches
from aqr_model.engine.distributed import Workers, local_device, together, without_exchange
from aqr_model.engine.evaluator import set_epoch
from aqr_model.engine.object_sampling import sampling_epochs
from aqr_model.engine.plan import Plan, Rung, equal_denoising_slots, make_plan
from aqr_model.engine.resuming import require_no_resume, restore, save
from aqr_model.engine.rungs import Rungs
from aqr_model.engine.setup import Run, build_detector, build_run, require_gradients
from aqr_model.engine.transfer import to_device
from aqr_model.engine.weights.states import previous_of, save_weights
from aqr_model.report.reports import Report

__all__ = ["Halted", "Plan", "Report", "Rung", "build_detector", "make_plan", "total_loss", "train"]

READS: config_keys.Reads = {
    "seed": config_keys.WHOLE_FROM_0.or_none(),
    "deterministic": config_keys.FLAG.or_none(),
    "num_threads": config_keys.WHOLE_FROM_0.or_none(),
    "data.train.**": config_keys.DATASETS.given(),
    "data.samples_per_gpu": config_keys.WHOLE_ABOVE_0.given(),
    "data.workers_per_gpu": config_keys.WHOLE_FROM_0.given(),
    "optimizer_config.cumulative_iters": config_keys.WHOLE_ABOVE_0,
    "optimizer_config.grad_clip.max_norm": config_keys.NORM,
    "optimizer_config.grad_clip.norm_type": config_keys.NORM,
}


class Halted(Exception):
    """A training ended before its end, as it was told to; its state is saved."""


def _never() -> bool:
    return False


def train(
    cfg: Config,
    *,
    workdir: Path,
    report: Report | None,
    resume_from: Path | None = None,
    halts: Callable[[], bool] = _never,
) -> None:
    """Train, score at the rungs and report.

    Random draws depend on the seed, the step and a sample's place in it, so that a training that is
    cut and resumed goes on as if nothing had happened, and one on several devices sees the samples
    that one device with a larger batch would see.

    Args:
        cfg: A whole training config; ``evaluation`` gives the rungs.
        workdir: Folder for checkpoints; made if missing.
        report: Takes scores, losses and statistics. If a process group of ``torch.distributed`` is
            there, all of its processes must call ``train``; that of rank 0 reports, evaluates with
            the others' help and saves, the others may give None.
        resume_from: A checkpoint of an earlier attempt at the same training.
        halts: Asked before each step. If it says yes in any process, the state is saved and all
            end.

    Raises:
        PlanError: If the config asks for what cannot be done.
        Halted: If ``halts`` said so; a resume goes on from the saved state: of the
            same step, or of a rung whose score was still being made.
        FloatingPointError: If a loss or a gradient is not finite; no saved weights are touched by
            it.
        CheckpointError: If a checkpoint does not fit.
        WorkerFailed: In the processes that did not fail themselves; the group is gone then.
    """
    if resume_from is None:
        require_no_resume(cfg)
    if cfg.get("num_threads"):
        torch.set_num_threads(cfg.num_threads)
    if cfg.get("deterministic"):  # what mmcv's tools mean by it
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    cv2.setNumThreads(1)  # the cores belong to torch and to the loading processes
    # Torch's setting does not reach NumPy's and SciPy's libraries.
    with threadpool_limits(cfg.get("num_threads")), together() as workers:
        # A function of its own: what it holds can go when it fails, so that the others notice.
        _train(cfg, workers, workdir, report, resume_from, halts)


def _train(
    cfg: Config,
    workers: Workers,
    workdir: Path,
    report: Report | None,
    resume_from: Path | None,
    halts: Callable[[], bool],
) -> None:
    device, seed = local_device(), int(cfg.get("seed") or 0)
    seed_everything(seed, 0)
    equal_slots, sampled = equal_denoising_slots(cfg), sampling_epochs(cfg)
    num_parts = (cfg.get("optimizer_config") or {}).get("cumulative_iters", 1)
    split = Split(
        batch_size=cfg.data.samples_per_gpu,
        parts=num_parts,
        rank=workers.rank,
        num_ranks=workers.size,
    )
    dataset = build_dataset(cfg.data.train)
    plan = make_plan(cfg, len(dataset), num_parts=split.parts * split.num_ranks)
    run = build_run(cfg, plan, workers, device, workdir, report)
    start, rungs_done = restore(run, resume_from)
    batches = training_batches(
        dataset,
        batch_size=split.batch_size,
        parts=split.parts,
        rank=split.rank,
        num_ranks=split.num_ranks,
        num_workers=cfg.data.workers_per_gpu,
        seed=seed,
        start=start,
        stop=plan.total_steps,
        sampling_stop=None if sampled is None else round(sampled * plan.steps_per_epoch),
    )
    with Rungs(run, rungs_done) as rungs:
        with run.progress.paused():
            # A rung whose score the last attempt did not hand over is due before the first step.
            rungs.score_due(start)
        for step, parts in enumerate(_grouped(batches, split.parts), start=start):
            # What the losses divide by is known before: it is counted over all parts and processes.
            own = _count(parts, run.model, equal_slots=equal_slots)
            counts, told, scored = zip(
                *workers.gather((own, halts(), rungs.has_score)), strict=True
            )
            with run.progress.paused():
                if any(scored):
                    rungs.hand_over()
            if any(told):
                run.check.settle()
                if not rungs.is_open:  # else the state of its rung is the one to go on from
                    save(run, step, rungs.done)
                since = " of the rung that was being scored" if rungs.is_open else ""
                raise Halted(f"told to end before step {step + 1}; the state{since} is saved")
            terms, values = _step(run, parts, StepTotals.merge(counts), split, seed, step)
            if step == start:
                require_gradients(run)
            if _is_looked_at(run, step):
                run.check.settle()
            run.monitor.after_backward(step)
            run.averaged.update(step)
            run.progress.record(step, terms, values)
            with run.progress.paused():
                if (step + 1) % plan.checkpoint_interval == 0:
                    rungs.hand_over()
                    save(run, step + 1, rungs.done)
                rungs.score_due(step + 1)
        run.check.settle()
    if workers.is_main:
        meta = {"step": plan.total_steps, "seed": seed, "averaged": run.averaged.acts}
        with run.averaged.in_place():  # the weights that were scored
            save_weights(run.model, workdir / "final.pth", **meta)
        # Nothing will write over the last state any more.
        previous_of(workdir / "latest.pth").unlink(missing_ok=True)


def _step(
    run: Run, parts: Sequence[Any], totals: StepTotals, split: Split, seed: int, step: int
) -> tuple[list[dict[str, Any]], Tensor]:
    """Move the weights once; return the loss terms of each batch, and (loss, gradient norm)."""
    epoch = run.plan.epoch(step)
    run.frozen.train_mode()
    set_epoch(run.model, epoch, run.plan.total_epochs)
    run.rates.set(step, epoch)
    run.monitor.before_step(step)
    terms, loss = _forward_backward(run, parts, totals, split, seed, step)
    run.scaler.unscale_(run.optimizer)
    run.monitor.measure_gradients(step)
    grad_norm = _clip(run.model, run.grad_clip)
    values = run.workers.mean(torch.stack([loss.float(), grad_norm.float()]))
    run.scaler.step(run.optimizer)  # which leaves the weights where gradients are not finite
    run.scaler.update()
    run.check.watch(step, terms, values)
    return terms, values


def total_loss(terms: Mapping[str, Tensor | Sequence[Tensor]]) -> Tensor:
    """Sum the terms whose name contains ``loss``."""
    parts = [
        value.mean() if isinstance(value, Tensor) else torch.stack([v.mean() for v in value]).sum()
        for name, value in terms.items()
        if "loss" in name
    ]
    return torch.stack(parts).sum()


def _forward_backward(
    run: Run, parts: Sequence[Any], totals: StepTotals, split: Split, seed: int, step: int
) -> tuple[list[dict[str, Any]], Tensor]:
    """Add up the gradients of a step's batches; return the loss terms of each, and their mean."""
    device = local_device()
    terms, losses = [], []
    for index, part in enumerate(parts):
        # Dropout does not depend on how many draws came before it.
        seed_everything(seed, 2, step, split.first_place(index))
        is_last = index + 1 == len(parts)
        with nullcontext() if is_last else without_exchange(run.net):
            with run.check.blamed_first():
                found = run.net(return_loss=True, step_totals=totals, **to_device(part, device))
            if index == 0:
                run.check.settle()  # of the step before, whose gradients go now
                run.optimizer.zero_grad(set_to_none=True)
            loss = total_loss(found) / len(parts)
            run.scaler.scale(loss).backward()
        run.monitor.after_part(step)
        terms.append({name: _detached(value) for name, value in found.items()})
        losses.append(loss.detach())
    return terms, torch.stack(losses).sum()


def _is_looked_at(run: Run, step: int) -> bool:
    """Whether something of this step is logged, drawn, saved or scored: then it must be finite."""
    plan = run.plan
    return (
        run.progress.is_due(step)
        or run.monitor.is_due(step)
        or (step + 1) % plan.checkpoint_interval == 0
        or any(rung.step == step + 1 for rung in plan.rungs)
    )


def _grouped(batches: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    return zip(*[iter(batches)] * size, strict=True)


def _count(
    parts: Sequence[Mapping[str, Any]], model: nn.Module, *, equal_slots: bool
) -> StepTotals:
    """Count the boxes of a process's batches."""
    head: Any = model.pts_bbox_head
    return StepTotals.count(
        [part["gt_labels_3d"] for part in parts],
        num_classes=sum(map(len, head.class_names)),
        equal_slots=equal_slots,
    )


def _detached(value: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    return value.detach() if isinstance(value, Tensor) else [part.detach() for part in value]


def _clip(model: nn.Module, limits: Mapping[str, Any]) -> Tensor:
    """Scale the gradients down to a norm; return what it was. Without a limit it only measures."""
    hook: Any = OptimizerHook(
        {"max_norm": limits.get("max_norm", math.inf), "norm_type": limits.get("norm_type", 2)}
    )
    return hook.clip_grads(model.parameters())
