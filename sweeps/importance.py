"""Which axes set the best trials apart. Pure, but for Optuna's evaluator."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState, create_trial

from sweeps.trials import ParamValue, SweepRecord

Mode = Literal["max", "min"]
Told = tuple[Mapping[str, ParamValue], float]

# PED-ANOVA compares the best quarter with all; it needs some five trials in it to say anything.
IMPORTANCE_QUANTILE = 0.25
IMPORTANCE_MIN_TRIALS = 20


@dataclass(frozen=True, kw_only=True)
class Within:
    """What an axis that not every trial has means to those that have it.

    Attributes:
        share: Of it, beside the other axes that all of these trials have; None with too few of
            them, or if their best quarter does not differ from the rest.
        num_trials: Trials with the axis and a value.
    """

    share: float | None
    num_trials: int


def importance(
    record: SweepRecord,
    distributions: Mapping[str, BaseDistribution],
    *,
    min_trials: int = IMPORTANCE_MIN_TRIALS,
) -> dict[str, float] | None:
    """Share of each searched axis in reaching the best quarter of the trials (PED-ANOVA).

    Stopped trials count with their imputed values: only the order matters here, and leaving them
    out would hide what the bad half has in common. An axis with a condition is left out, since the
    trials that lack it have no value of it to compare: see `conditional_importance`.

    Returns:
        Axis to share, largest first, adding up to 1; None with too few trials, or if the best
        quarter does not differ from the rest.
    """
    told = _told(record, distributions)
    axes = {name: each for name, each in distributions.items() if all(name in s for s, _ in told)}
    return _shares(told, axes, record.attrs["mode"], min_trials)


def conditional_importance(
    record: SweepRecord,
    distributions: Mapping[str, BaseDistribution],
    *,
    min_trials: int = IMPORTANCE_MIN_TRIALS,
) -> dict[str, Within]:
    """The axes that some trials lack, each among the trials that have it.

    A share here is one of those trials alone: it compares with no share of other trials.

    Returns:
        Axis to its meaning, in the order of the space.
    """
    told = _told(record, distributions)
    found: dict[str, Within] = {}
    for name in distributions:
        with_it = [(sampled, value) for sampled, value in told if name in sampled]
        if len(with_it) == len(told):
            continue
        axes = {n: each for n, each in distributions.items() if all(n in s for s, _ in with_it)}
        shares = _shares(with_it, axes, record.attrs["mode"], min_trials)
        share = None if shares is None else shares[name]
        found[name] = Within(share=share, num_trials=len(with_it))
    return found


def _told(record: SweepRecord, axes: Collection[str]) -> list[Told]:
    """Sampled point and value of each trial that has a value, and no axis of another space."""
    return [
        (trial.sampled, trial.told)
        for trial in record.searched
        if trial.told is not None and trial.sampled.keys() <= set(axes)
    ]


def _shares(
    told: Sequence[Told], axes: Mapping[str, BaseDistribution], mode: Mode, min_trials: int
) -> dict[str, float] | None:
    """Shares of axes that all of these trials have."""
    if len(told) < min_trials or not axes or not _has_best_quarter([v for _, v in told], mode):
        return None
    trials = [
        create_trial(
            state=TrialState.COMPLETE,
            value=value,
            params={name: sampled[name] for name in axes},
            distributions=dict(axes),
        )
        for sampled, value in told
    ]
    shares = _ped_anova(trials, mode)
    total = sum(shares.values())
    if total <= 0:
        return None
    order = sorted(shares, key=lambda name: (-shares[name], name))
    return {name: shares[name] / total for name in order}


def _has_best_quarter(values: Sequence[float], mode: Mode) -> bool:
    """Whether the best quarter, with what ties with its last, leaves anybody out."""
    ordered = sorted(values, reverse=mode == "max")
    return ordered[math.ceil(IMPORTANCE_QUANTILE * len(ordered)) - 1] != ordered[-1]


def _ped_anova(trials: list[optuna.trial.FrozenTrial], mode: Mode) -> dict[str, float]:
    logger = logging.getLogger("optuna.storages._in_memory")
    level = logger.level
    logger.setLevel(logging.WARNING)  # The study below is a container; announcing it misleads.
    try:
        study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    finally:
        logger.setLevel(level)
    study.add_trials(trials)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=IMPORTANCE_QUANTILE)
    return dict(evaluator.evaluate(study))
