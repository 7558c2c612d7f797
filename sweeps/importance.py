"""Which axes set the best trials apart. Pure, but for Optuna's evaluator."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState, create_trial

from sweeps.trials import SweepRecord

Mode = Literal["max", "min"]

# PED-ANOVA compares the best quarter with all; it needs some five trials in it to say anything.
IMPORTANCE_QUANTILE = 0.25
IMPORTANCE_MIN_TRIALS = 20


def importance(
    record: SweepRecord,
    distributions: Mapping[str, BaseDistribution],
    *,
    min_trials: int = IMPORTANCE_MIN_TRIALS,
) -> dict[str, float] | None:
    """Share of each searched axis in reaching the best quarter of the trials (PED-ANOVA).

    Stopped trials count with their imputed values: only the order matters here, and leaving them
    out would hide what the bad half has in common.

    Returns:
        Axis to share, largest first, adding up to 1; None with too few trials, or if the best
        quarter does not differ from the rest.
    """
    told = [t for t in record.searched if t.told is not None and set(t.sampled) == {*distributions}]
    mode: Mode = record.attrs["mode"]
    if len(told) < min_trials or not _has_best_quarter(
        [t.told for t in told if t.told is not None], mode
    ):
        return None
    trials = [
        create_trial(
            state=TrialState.COMPLETE,
            value=trial.told,
            params=dict(trial.sampled),
            distributions=dict(distributions),
        )
        for trial in told
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
