"""The Ray scheduler that carries out what is decided at each rung."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweeps.stopping import Verdict


class RungScheduler(FIFOScheduler):
    """Asks at every result whether its trial goes on.

    Args:
        judge: Takes Tune's trial id and the result; it has the score in the record on return.
        on_error: Takes Tune's trial and what ended its process.
    """

    _supports_buffered_results = False

    def __init__(
        self,
        judge: Callable[[str, dict[str, Any]], Verdict],
        on_error: Callable[[Trial, str], None],
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
        self._on_error(trial, _last_error(trial))


def _last_error(trial: Trial) -> str:
    # Ray's own accessors read the synchronised copy, which comes at the end of the run.
    path = trial.error_file
    text = Path(path).read_text(errors="replace") if path and Path(path).is_file() else ""
    last = text.rpartition("Failure # ")[2].partition("\n")[2].strip()
    return last or "no reason known to Ray"
