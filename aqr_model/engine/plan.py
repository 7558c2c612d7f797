"""How long a training is, where it is scored, and what it saves and logs on the way."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmcv import Config

from aqr_model.engine import config_keys

READS: config_keys.Reads = {
    "total_epochs": config_keys.NUMBER_ABOVE_0.or_none(),
    "runner.max_epochs": config_keys.NUMBER_ABOVE_0.or_none(),
    "evaluation.interval": config_keys.NUMBER_ABOVE_0,
    "evaluation.rungs": config_keys.SHARES,
    "evaluation.val_shares": config_keys.SHARES,
    "evaluation.by_epoch": config_keys.FLAG,
    "checkpoint_config.interval": config_keys.INTERVAL,
    "checkpoint_config.by_epoch": config_keys.FLAG,
    "denoising_slots": config_keys.one_of("batch", "step"),
    "log_config.interval": config_keys.WHOLE_ABOVE_0,
}


class PlanError(ValueError):
    """A setting of a training that cannot be followed, with what to write."""


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
        samples_per_step: Samples of an optimizer step, over all processes.
        steps_per_epoch: Optimizer steps of one pass over the data.
        total_steps: Optimizer steps of the whole budget.
        total_epochs: The budget as the config states it.
        rungs: In the order in which they are reached; the last is the end.
        log_interval: Steps between two records of the losses.
        checkpoint_interval: Steps between two periodic checkpoints.
    """

    samples_per_step: int
    steps_per_epoch: int
    total_steps: int
    total_epochs: float
    rungs: tuple[Rung, ...]
    log_interval: int
    checkpoint_interval: int

    def epoch(self, step: int) -> float:
        """Passes over the data after some steps."""
        return step / self.steps_per_epoch


def budget_epochs(cfg: Config) -> float:
    """Epochs of a training: ``total_epochs``, else mmcv's newer ``runner.max_epochs``."""
    return float(cfg.get("total_epochs") or (cfg.get("runner") or {}).get("max_epochs") or 0)


def equal_denoising_slots(cfg: Config) -> bool:
    """Whether all batches of a step have as many denoising slots: ``denoising_slots = "step"``.

    Raises:
        PlanError: If it is neither "step" nor "batch", the default.
    """
    slots = cfg.get("denoising_slots") or "batch"
    if slots not in ("batch", "step"):
        raise PlanError(f"`denoising_slots` must be 'batch' or 'step', but got {slots!r}")
    return slots == "step"


def make_plan(cfg: Config, num_samples: int, *, num_parts: int = 1) -> Plan:
    """Turn epochs and fractions into optimizer steps.

    Intervals are read as mmcv reads them: ``checkpoint_config.interval`` and, without
    ``evaluation.rungs``, ``evaluation.interval`` count epochs. With ``by_epoch=False`` beside it,
    or ``runner.type='IterBasedRunner'``, an interval counts steps.

    Args:
        cfg: A training config.
        num_samples: Samples of the training set.
        num_parts: Batches of ``samples_per_gpu`` in a step: processes times accumulated batches.

    Raises:
        PlanError: If a budget or a rung is out of range.
    """
    per_step = cfg.data.samples_per_gpu * num_parts
    per_epoch = num_samples // per_step
    epochs = budget_epochs(cfg)
    total = round(epochs * per_epoch)
    if total < 1:
        raise PlanError(_no_budget(cfg, num_samples, num_parts))
    checkpoints, evaluation = cfg.get("checkpoint_config") or {}, cfg.get("evaluation") or {}
    interval = checkpoints.get("interval", 1) * (per_epoch if _in_epochs(checkpoints, cfg) else 1)
    in_epochs = 1.0 if _in_epochs(evaluation, cfg) else per_epoch
    return Plan(
        samples_per_step=per_step,
        steps_per_epoch=per_epoch,
        total_steps=total,
        total_epochs=epochs,
        rungs=_rungs(evaluation, epochs, total, evaluation.get("interval", 1) / in_epochs),
        log_interval=(cfg.get("log_config") or {}).get("interval", 50),
        # mmcv's -1 means never; the rungs and the end are saved in any case.
        checkpoint_interval=max(1, round(interval)) if interval > 0 else total,
    )


def _in_epochs(settings: Mapping[str, Any], cfg: Config) -> bool:
    """Whether an interval counts epochs, as mmcv decides it."""
    by_iterations = (cfg.get("runner") or {}).get("type") == "IterBasedRunner"
    return bool(settings.get("by_epoch", not by_iterations))


def _no_budget(cfg: Config, num_samples: int, num_parts: int) -> str:
    per_epoch = num_samples / (cfg.data.samples_per_gpu * num_parts)
    iterations = (cfg.get("runner") or {}).get("max_iters")
    if iterations and not budget_epochs(cfg) and per_epoch >= 1:
        parts = (cfg.get("optimizer_config") or {}).get("cumulative_iters", 1)
        epochs = iterations / parts / int(per_epoch)
        return (
            f"a training is as long as `total_epochs` says, and `runner.max_iters` is not read. "
            f"{iterations} iterations of this config are {epochs:g} epochs of its {num_samples} "
            f"samples: write `total_epochs = {epochs:g}`"
        )
    return (
        f"the budget must be at least one step, but got (total_epochs={budget_epochs(cfg)}, "
        f"samples={num_samples}, samples_per_gpu={cfg.data.samples_per_gpu}, "
        f"batches in a step={num_parts})"
    )


def _rungs(
    evaluation: Mapping[str, Any], epochs: float, total: int, interval: float
) -> tuple[Rung, ...]:
    if "rungs" in evaluation:
        fractions = list(evaluation["rungs"])
    else:
        fractions = _each_epoch(interval, epochs)
    shares = list(evaluation.get("val_shares", [1.0] * len(fractions)))
    rising = all(a < b for a, b in itertools.pairwise(fractions))
    if not fractions or not rising or fractions[0] <= 0 or fractions[-1] != 1.0:
        raise PlanError(f"evaluation.rungs must rise from above 0 to 1.0, but got {fractions}")
    if len(shares) != len(fractions) or shares[-1] != 1.0:
        raise PlanError(
            f"evaluation.val_shares must give one share a rung, the last 1.0, but got {shares}"
        )
    return tuple(
        Rung(fraction=fraction, val_share=share, step=max(1, round(fraction * total)))
        for fraction, share in zip(fractions, shares, strict=True)
    )


def _each_epoch(interval: float, epochs: float) -> list[float]:
    """Fractions of the budget after every so many epochs, and at its end."""
    if interval <= 0:
        raise PlanError(f"evaluation.interval must be above 0, but got {interval}")
    count = int(epochs / interval)
    inside = [i * interval / epochs for i in range(1, count + 1)]
    return [fraction for fraction in inside if fraction < 1.0] + [1.0]
