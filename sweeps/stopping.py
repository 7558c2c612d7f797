"""Early stopping: rules on scores at a rung. Pure; `sweeps.scheduler` applies them.

A rule sees scores of one rung only, hence of one fidelity: the same share of the training budget
and of the validation scenes. Known points and the control are no peers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Rule = Literal["safe", "fast", "none"]

SAFE_MIN_PEERS = 4
# About sqrt(2): the trial and its peers both carry the noise of one evaluation.
SAFE_MARGIN_SIGMAS = 1.4
FAST_MIN_PEERS = 2
FAST_FACTOR = 2


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a trial stops, and why or why not.

    Raises:
        ValueError: If there is no reason.
    """

    stop: bool
    reason: str

    def __post_init__(self) -> None:
        if not self.reason:
            raise ValueError("a verdict must carry a reason")


def decide(
    rule: Rule,
    *,
    value: float,
    peers: Sequence[float],
    noise: float | None,
    val_share: float,
    mode: Literal["max", "min"] = "max",
) -> Verdict:
    """Judge a trial at a rung before the last.

    Args:
        rule: `safe` stops only what is below the median of its peers by more than the noise
            explains; `fast` keeps the better half at each rung; `none` stops nothing.
        value: The trial's score.
        peers: Scores of other trials at the same rung.
        noise: Spread of a score between seeds on all validation scenes; None while it is not known,
            and then `safe` stops nothing.
        val_share: Share of the scenes scored at this rung.
        mode: Whether more is better.
    """
    match rule:
        case "none":
            return Verdict(stop=False, reason="early stopping is off")
        case "safe":
            if noise is None:
                return Verdict(stop=False, reason="the control has not measured the noise yet")
            return _decide_safe(value, peers, noise / math.sqrt(val_share), mode)
        case "fast":
            return _decide_fast(value, peers, mode)


def _decide_safe(
    value: float, peers: Sequence[float], sigma: float, mode: Literal["max", "min"]
) -> Verdict:
    if len(peers) < SAFE_MIN_PEERS:
        return Verdict(stop=False, reason=f"{len(peers)} of {SAFE_MIN_PEERS} peers at this rung")
    middle, margin = median(peers), SAFE_MARGIN_SIGMAS * sigma
    threshold = middle - margin if mode == "max" else middle + margin
    stop = value < threshold if mode == "max" else value > threshold
    side = "below" if (value < threshold) else "above" if value > threshold else "at"
    return Verdict(
        stop=stop,
        reason=f"{value:.4f} is {side} {threshold:.4f}, the median {middle:.4f} of {len(peers)} "
        f"peers {'less' if mode == 'max' else 'plus'} {SAFE_MARGIN_SIGMAS:g} x {sigma:.4f}",
    )


def _decide_fast(value: float, peers: Sequence[float], mode: Literal["max", "min"]) -> Verdict:
    if len(peers) < FAST_MIN_PEERS:
        return Verdict(stop=False, reason=f"{len(peers)} of {FAST_MIN_PEERS} peers at this rung")
    better = sum(peer > value if mode == "max" else peer < value for peer in peers)
    kept = math.ceil((len(peers) + 1) / FAST_FACTOR)
    return Verdict(
        stop=better >= kept,
        reason=f"rank {better + 1} of {len(peers) + 1} at this rung, the best {kept} go on",
    )


def impute(rung_index: int, value: float, finished: Sequence[Sequence[float]]) -> float:
    """Estimate the full-budget value of a trial that was stopped at a rung.

    Args:
        rung_index: Where it was stopped.
        value: Its score there.
        finished: The scores of finished trials at all rungs.
    """
    gaps = [scores[-1] - scores[rung_index] for scores in finished]
    return value + (median(gaps) if gaps else 0.0)
