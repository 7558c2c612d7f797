"""Train a detector from a config: build, loop, evaluate at rungs, report.

``python -m aqr_model.train CONFIG`` runs it by itself; a sweep calls :func:`train` with its own
report.
"""

import itertools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import cv2
import torch
import typer
from mmcv import Config
from mmcv.runner import build_optimizer
from mmdet3d.datasets import build_dataset
from mmdet3d.models import build_model
from torch import Tensor, nn

from aqr_model import lr_schedule
from aqr_model.checkpoint import (
    TrainState,
    load_pretrained,
    read_state,
    save_state,
    save_weights,
)
from aqr_model.evaluate import Evaluator
from aqr_model.loading import seed_everything, to_device, training_batches
from aqr_model.monitor import AqrMonitor
from aqr_model.reports import ConsoleReport

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


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A point of the training at which it is scored.

    Attributes:
        fraction: Share of the training budget.
        val_share: Share of the validation scenes.
        step: Optimizer steps done when it is reached.
    """

    fraction: float
    val_share: float
    step: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a training is and where it is scored.

    Attributes:
        steps_per_epoch: Optimizer steps of one pass over the data.
        total_steps: Optimizer steps of the whole budget.
        rungs: In the order in which they are reached; the last is the end.
        log_interval: Steps between two records of the losses.
        checkpoint_interval: Steps between two periodic checkpoints.
    """

    steps_per_epoch: int
    total_steps: int
    rungs: tuple[Rung, ...]
    log_interval: int
    checkpoint_interval: int


def make_plan(cfg: Config, num_samples: int) -> Plan:
    """Turn epochs and fractions into optimizer steps.

    Raises:
        ValueError: If a budget or a rung is out of range.
    """
    per_epoch = num_samples // cfg.data.samples_per_gpu
    total = round(cfg.total_epochs * per_epoch)
    if total < 1:
        raise ValueError(
            f"the budget must be at least one step, but got (total_epochs={cfg.total_epochs}, "
            f"samples={num_samples}, samples_per_gpu={cfg.data.samples_per_gpu})"
        )
    fractions = list(cfg.evaluation["rungs"])
    shares = list(cfg.evaluation.get("val_shares", [1.0] * len(fractions)))
    rising = all(a < b for a, b in itertools.pairwise(fractions))
    if not fractions or not rising or fractions[0] <= 0 or fractions[-1] != 1.0:
        raise ValueError(f"evaluation.rungs must rise from above 0 to 1.0, but got {fractions}")
    if len(shares) != len(fractions) or shares[-1] != 1.0:
        raise ValueError(
            f"evaluation.val_shares must give one share a rung, the last 1.0, but got {shares}"
        )
    rungs = tuple(
        Rung(fraction=fraction, val_share=share, step=max(1, round(fraction * total)))
        for fraction, share in zip(fractions, shares, strict=True)
    )
    return Plan(
        steps_per_epoch=per_epoch,
        total_steps=total,
        rungs=rungs,
        log_interval=cfg.log_config["interval"],
        checkpoint_interval=cfg.checkpoint_config["interval"],
    )


def train(cfg: Config, *, workdir: Path, report: Report, resume_from: Path | None = None) -> None:
    """Train, score at the rungs and report.

    Random draws depend on the seed and the step alone, so that a training that is cut and resumed
    on one device goes on as if nothing had happened.

    Args:
        cfg: A whole training config; ``evaluation`` gives the rungs.
        workdir: Folder for checkpoints; made if missing.
        report: Takes scores, losses and statistics.
        resume_from: A checkpoint of an earlier attempt at the same training.

    Raises:
        FloatingPointError: If a loss or a gradient is not finite; the weights are not touched by
            it.
        CheckpointError: If a checkpoint does not fit.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if cfg.get("num_threads"):
        torch.set_num_threads(cfg.num_threads)
    cv2.setNumThreads(1)  # the cores belong to torch and to the loading processes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed_everything(cfg.seed, 0)
    dataset = build_dataset(cfg.data.train)
    plan = make_plan(cfg, len(dataset))
    model = build_detector(cfg).to(device)
    optimizer = build_optimizer(model, cfg.optimizer)
    lr_factor = lr_schedule.factor(cfg.get("lr_config"))
    beta_factor = lr_schedule.factor(cfg.get("momentum_config"))
    start, rungs_done = _restore(model, optimizer, resume_from)
    monitor = AqrMonitor(model, cfg, report)
    evaluator = Evaluator(cfg, device=device)
    _remember_initial(optimizer)
    batches = training_batches(
        dataset,
        batch_size=cfg.data.samples_per_gpu,
        num_workers=cfg.data.workers_per_gpu,
        seed=cfg.seed,
        start=start,
        stop=plan.total_steps,
    )
    progress = _Progress(report, plan, optimizer)

    # A rung whose score the last attempt did not hand over is due before the first step.
    rungs_done = _score_due(start, rungs_done, plan, model, optimizer, evaluator, workdir, report)
    for step, batch in enumerate(batches, start=start):
        model.train()
        _set_rates(
            optimizer, lr_factor(step, plan.total_steps), beta_factor(step, plan.total_steps)
        )
        # Dropout and denoising noise of a step do not depend on how many draws came before it.
        seed_everything(cfg.seed, 2, step)
        monitor.before_step(step)
        terms = model(return_loss=True, **to_device(batch, device))
        loss = total_loss(terms)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = _clip(model, cfg.get("optimizer_config"))
        # Weights that have taken a non-finite gradient are lost; so stop before, not after.
        _require_finite(loss, grad_norm, terms, model, step)
        monitor.after_backward(step)
        optimizer.step()
        progress.record(step, terms, loss, grad_norm)
        if (step + 1) % plan.checkpoint_interval == 0:
            _save(model, optimizer, step + 1, rungs_done, workdir)
        rungs_done = _score_due(
            step + 1, rungs_done, plan, model, optimizer, evaluator, workdir, report
        )
    save_weights(model, workdir / "final.pth", step=plan.total_steps, seed=int(cfg.seed))


def build_detector(cfg: Config) -> nn.Module:
    """Build the detector of a config, initialise it, and load ``load_from`` where it is set."""
    model = build_model(cfg.model, train_cfg=cfg.get("train_cfg"), test_cfg=cfg.get("test_cfg"))
    model.init_weights()
    if cfg.get("load_from"):
        fresh = load_pretrained(model, Path(cfg.load_from))
        if fresh:
            logger.info("%d AQR entries start from their initial values", len(fresh))
    return model


def total_loss(terms: Mapping[str, Tensor | Sequence[Tensor]]) -> Tensor:
    """Sum the terms whose name contains ``loss``."""
    parts = [
        value.mean() if isinstance(value, Tensor) else torch.stack([v.mean() for v in value]).sum()
        for name, value in terms.items()
        if "loss" in name
    ]
    return torch.stack(parts).sum()


def _restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, resume_from: Path | None
) -> tuple[int, int]:
    if resume_from is None:
        return 0, 0
    state = read_state(resume_from)
    model.load_state_dict(state.model)
    optimizer.load_state_dict(state.optimizer)
    return state.step, state.rungs_reported


def _save(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int, rungs_done: int, workdir: Path
) -> Path:
    state = TrainState(
        step=step,
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        rungs_reported=rungs_done,
    )
    path = workdir / "latest.pth"
    save_state(state, path)
    return path


def _score_due(
    step: int,
    rungs_done: int,
    plan: Plan,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    evaluator: Evaluator,
    workdir: Path,
    report: Report,
) -> int:
    """Score and report the rungs that end at this step; return how many are done by now."""
    while rungs_done < len(plan.rungs) and plan.rungs[rungs_done].step <= step:
        rung = plan.rungs[rungs_done]
        # Saved before the score is handed over: if the process dies in between, the next attempt
        # scores this rung again, and nothing is lost.
        checkpoint = _save(model, optimizer, step, rungs_done, workdir)
        metrics = evaluator.score(model, val_share=rung.val_share, workdir=workdir)
        report.rung(
            metrics,
            fraction=rung.fraction,
            val_share=rung.val_share,
            epoch=step / plan.steps_per_epoch,
            step=step,
            checkpoint=checkpoint,
        )
        rungs_done += 1
    return rungs_done


def _remember_initial(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        if "betas" in group:
            group.setdefault("initial_betas", group["betas"])


def _set_rates(optimizer: torch.optim.Optimizer, lr_factor: float, beta_factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * lr_factor
        if "initial_betas" in group:
            first, second = group["initial_betas"]
            group["betas"] = (first * beta_factor, second)


def _clip(model: nn.Module, optimizer_config: Mapping[str, Any] | None) -> Tensor:
    limit = ((optimizer_config or {}).get("grad_clip") or {}).get("max_norm", math.inf)
    with_gradient = [p for p in model.parameters() if p.grad is not None]
    return torch.nn.utils.clip_grad_norm_(with_gradient, limit)


def _require_finite(
    loss: Tensor, grad_norm: Tensor, terms: Mapping[str, Any], model: nn.Module, step: int
) -> None:
    values = torch.stack([loss.detach().float(), grad_norm.detach().float()]).tolist()
    if all(map(math.isfinite, values)):
        return
    guilty = [f"loss term {name}" for name, value in terms.items() if not _finite(value)]
    guilty += [
        f"gradient of {name}"
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not _finite(parameter.grad)
    ]
    raise FloatingPointError(
        f"loss and gradients must be finite, but at step {step} loss is {values[0]} "
        f"and the gradient norm {values[1]}; not finite: {', '.join(guilty[:3]) or 'their sum'}"
    )


def _finite(value: Tensor | Sequence[Tensor]) -> bool:
    tensors = [value] if isinstance(value, Tensor) else value
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


class _Progress:
    """Losses, learning rates and speed, averaged between records."""

    def __init__(self, report: Report, plan: Plan, optimizer: torch.optim.Optimizer) -> None:
        self.report = report
        self.plan = plan
        self.optimizer = optimizer
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.since = time.perf_counter()

    def record(self, step: int, terms: Mapping[str, Any], loss: Tensor, grad_norm: Tensor) -> None:
        """Take one step's values; hand over their means every ``log_interval`` steps."""
        named = {"loss": loss, "grad_norm": grad_norm, **terms}
        for name, value in named.items():
            if isinstance(value, Tensor):
                self.sums[name] = self.sums.get(name, torch.zeros(())) + value.detach()
        self.count += 1
        if (step + 1) % self.plan.log_interval == 0 or step + 1 == self.plan.total_steps:
            self._flush(step)

    def _flush(self, step: int) -> None:
        means = torch.stack([value.float() for value in self.sums.values()]) / self.count
        values = {
            f"train/{name}": mean for name, mean in zip(self.sums, means.tolist(), strict=True)
        }
        values |= {f"train/{name}": rate for name, rate in self._rates().items()}
        values["train/epoch"] = (step + 1) / self.plan.steps_per_epoch
        values["train/s_per_step"] = (time.perf_counter() - self.since) / self.count
        self.report.log(values, step=step + 1)
        self.sums, self.count, self.since = {}, 0, time.perf_counter()

    def _rates(self) -> dict[str, float]:
        """Smallest and largest rate; mmcv makes one group of each parameter."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return {"lr/min": min(rates), "lr/max": max(rates)}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path, typer.Argument(help="A training config, shipped or exported.")],
    work_dir: Annotated[Path | None, typer.Option(help="Default: the config's work_dir.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from latest.pth of the folder.")] = False,
) -> None:
    """Train from a config and print its scores."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    cfg = Config.fromfile(str(config))
    folder = work_dir or Path(cfg.get("work_dir") or f"work_dirs/{config.stem}")
    latest = folder / "latest.pth"
    train(
        cfg,
        workdir=folder,
        report=ConsoleReport(folder),
        resume_from=latest if resume and latest.is_file() else None,
    )


if __name__ == "__main__":
    app()
