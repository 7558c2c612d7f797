"""Learning rate and momentum over a training, as pure functions of progress.

The policies and their arguments are those of mmcv's ``lr_config`` and ``momentum_config``, so that
the users' configs mean here what they mean there; progress is continuous, so that budgets need not
be whole epochs.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

Factor = Callable[[int, int], float]

_POLICIES = ("fixed", "cyclic", "CosineAnnealing")


def factor(config: Mapping[str, Any] | None) -> Factor:
    """The multiplier of a group's own value at a step.

    Args:
        config: ``lr_config`` or ``momentum_config``: ``policy`` and its arguments; None keeps the
            value.

    Returns:
        A function of (step, total steps), both in optimizer steps.

    Raises:
        ValueError: If the policy or an argument is not known.

    Source: mmcv 1.7 ``runner/hooks/lr_updater.py`` for what the arguments mean.
    """
    if config is None:
        return lambda step, total: 1.0
    arguments = dict(config)
    policy = arguments.pop("policy", None)
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(_POLICIES)}, but got {policy!r}")
    makers = {"fixed": _fixed, "cyclic": _cyclic, "CosineAnnealing": _cosine}
    try:
        return makers[policy](**arguments)
    except TypeError as error:
        raise ValueError(f"arguments of policy {policy!r}: {error}") from error


def _fixed() -> Factor:
    return lambda step, total: 1.0


def _cyclic(
    *, target_ratio: tuple[float, float], cyclic_times: int = 1, step_ratio_up: float = 0.4
) -> Factor:
    """From 1 to the first ratio and on to the second, along cosines, in each cycle."""
    if not 0 < step_ratio_up < 1:
        raise ValueError(f"0 < step_ratio_up < 1 must hold, but got {step_ratio_up}")
    first, second = target_ratio

    def at(step: int, total: int) -> float:
        cycle = max(total // cyclic_times, 1)
        up = max(int(step_ratio_up * cycle), 1)
        inside = step % cycle
        if inside < up:
            return _anneal(1.0, first, inside / up)
        return _anneal(first, second, (inside - up) / max(cycle - up, 1))

    return at


def _cosine(
    *,
    min_lr_ratio: float,
    warmup: str | None = None,
    warmup_iters: int = 0,
    warmup_ratio: float = 0.1,
) -> Factor:
    """From 1 to ``min_lr_ratio`` along a cosine, after a linear warm-up."""
    if warmup not in (None, "linear"):
        raise ValueError(f"warmup must be 'linear' or None, but got {warmup!r}")

    def at(step: int, total: int) -> float:
        regular = _anneal(1.0, min_lr_ratio, step / max(total, 1))
        if warmup is None or step >= warmup_iters:
            return regular
        return regular * (1 - (1 - step / warmup_iters) * (1 - warmup_ratio))

    return at


def _anneal(start: float, end: float, share: float) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))
