"""Early stopping: pure rules on scores at a rung, and the Ray scheduler that applies them.

A rule sees scores of one rung only, hence of one fidelity: the same share of the training budget
and of the validation scenes. Known points and the control are no peers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

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
    noise: float,
    val_share: float,
    mode: Literal["max", "min"] = "max",
) -> Verdict:
    """Judge a trial at a rung before the last.

    Args:
        rule: `safe` stops only what is below the median of its peers by more than the noise
            explains; `fast` keeps the better half at each rung; `none` stops nothing.
        value: The trial's score.
        peers: Scores of other trials at the same rung.
        noise: Spread of a score between seeds on all validation scenes.
        val_share: Share of the scenes scored at this rung.
        mode: Whether more is better.
    """
    match rule:
        case "none":
            return Verdict(stop=False, reason="early stopping is off")
        case "safe":
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


class RungScheduler(FIFOScheduler):
    """Asks at every result whether its trial goes on.

    Args:
        judge: Takes Tune's trial id and the result; it has the score in the record on return.
        on_error: Takes Tune's trial id and what ended the trial's process.
    """

    _supports_buffered_results = False

    def __init__(
        self,
        judge: Callable[[str, dict[str, Any]], Verdict],
        on_error: Callable[[str, str], None],
    ) -> None:
        super().__init__()
        self._judge = judge
        self._on_error = on_error

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Judge a result."""
        verdict = self._judge(trial.trial_id, result)
        return TrialScheduler.STOP if verdict.stop else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Pass on what Ray knows about the end of a process."""
        self._on_error(trial.trial_id, _last_error(trial))


def _last_error(trial: Trial) -> str:
    # Ray's own accessors read the synchronised copy, which comes at the end of the run.
    path = trial.error_file
    text = Path(path).read_text(errors="replace") if path and Path(path).is_file() else ""
    last = text.rpartition("Failure # ")[2].partition("\n")[2].strip()
    return last or "no reason known to Ray"
