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
    "checkpoint_config.interval": config_keys.NUMBER_ABOVE_0,
    "checkpoint_config.by_epoch": config_keys.FLAG,
    "log_config.interval": config_keys.WHOLE_ABOVE_0,
}


class PlanError(ValueError):
    """A length of a training, or of its parts, that cannot be meant."""


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


def make_plan(cfg: Config, num_samples: int, *, num_parts: int = 1) -> Plan:
    """Turn epochs and fractions into optimizer steps.

    A config without ``evaluation.rungs`` is read as mmcv reads it: ``evaluation.interval`` and
    ``checkpoint_config.interval`` are epochs. With rungs, checkpoints come every so many steps.

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
        raise PlanError(
            f"the budget must be at least one step, but got (total_epochs={epochs}, "
            f"samples={num_samples}, samples_per_gpu={cfg.data.samples_per_gpu}, "
            f"batches in a step={num_parts})"
        )
    checkpoints = cfg.get("checkpoint_config") or {}
    in_epochs = checkpoints.get("by_epoch", "rungs" not in (cfg.get("evaluation") or {}))
    interval = checkpoints.get("interval", 1) * (per_epoch if in_epochs else 1)
    return Plan(
        samples_per_step=per_step,
        steps_per_epoch=per_epoch,
        total_steps=total,
        total_epochs=epochs,
        rungs=_rungs(cfg.get("evaluation") or {}, epochs, total),
        log_interval=(cfg.get("log_config") or {}).get("interval", 50),
        checkpoint_interval=max(1, round(interval)),
    )


def _rungs(evaluation: Mapping[str, Any], epochs: float, total: int) -> tuple[Rung, ...]:
    if "rungs" in evaluation:
        fractions = list(evaluation["rungs"])
    else:
        fractions = _each_epoch(evaluation.get("interval", 1), epochs)
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
        raise PlanError(f"evaluation.interval must be above 0 epochs, but got {interval}")
    count = int(epochs / interval)
    inside = [i * interval / epochs for i in range(1, count + 1)]
    return [fraction for fraction in inside if fraction < 1.0] + [1.0]
