"""The health of a trial while it trains: its own curves and the control's, judged by the rules."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from sweeps.health import HealthRule, judge, watched
from sweeps.spool import SpoolCurves, SpoolWriter, spool_path
from sweeps.task import Task
from sweeps.training import TrialStopped

# A trial's health is judged at most so often in a full training, however often it logs.
MAX_JUDGEMENTS = 400
EPOCH_METRIC = "train/epoch"
CONTROL_STEM = "control"  # of its label; see `sweeps.trials.trial_label`

logger = logging.getLogger(__name__)


class HealthWatch:
    """Judges a trial by its own spool and the control's, whenever it has logged.

    Args:
        rules: What is looked for.
        epochs: The training budget, by which the rules measure time; None: nothing is judged.
        trials_dir: Holds one directory a trial.
        task: Which trial.
    """

    def __init__(
        self, rules: Sequence[HealthRule], epochs: float | None, trials_dir: Path, task: Task
    ) -> None:
        self._rules, self._epochs, self._trials_dir = rules, epochs, trials_dir
        self._metrics = watched(rules)
        self._is_control = task.label.startswith(CONTROL_STEM)
        # All else is compared with the control, and a finalist counts with every seed.
        self._may_stop = task.role == "search" and not self._is_control
        self._own = SpoolCurves(spool_path(trials_dir / task.label), self._metrics)
        self._controls: dict[Path, SpoolCurves] = {}
        self._total_steps: float | None = None
        self._next_step = 0.0

    @property
    def flags(self) -> dict[str, str]:
        """What was said, once for each rule; earlier attempts included."""
        return self._own.flags

    def read(self) -> None:
        """Take in what earlier attempts wrote."""
        self._own.read()

    def look(self, spool: SpoolWriter, values: Mapping[str, float], *, step: int) -> None:
        """Judge after a log.

        Raises:
            TrialStopped: If a rule ends the trial; the control and finalists are only flagged.
        """
        self._learn_budget(values, step)
        if not self._rules or self._total_steps is None or step < self._next_step:
            return
        if not self._metrics & values.keys():
            return
        self._next_step = step + self._total_steps / MAX_JUDGEMENTS
        history = self._own.read()
        control = [] if self._is_control else self._read_controls()
        verdicts = judge(history, self._rules, control=control, total_steps=self._total_steps)
        for verdict in verdicts:
            if verdict.rule not in self.flags:
                spool.flag(verdict.rule, verdict.reason, stop=verdict.stop)
                self.flags[verdict.rule] = verdict.reason
        ends = [verdict for verdict in verdicts if verdict.stop]
        if ends and self._may_stop:
            raise TrialStopped(f"health: {ends[0].rule}: {ends[0].reason}")

    def _learn_budget(self, values: Mapping[str, float], step: int) -> None:
        epoch = values.get(EPOCH_METRIC, 0.0)
        if self._epochs is not None and epoch > 0:
            self._total_steps = step * self._epochs / epoch

    def _read_controls(self) -> list[dict[str, list[tuple[int, float]]]]:
        """The control's curves as far as they are there; where they are not, nothing is said."""
        curves = []
        for directory in sorted(self._trials_dir.glob(f"{CONTROL_STEM}*")):
            path = spool_path(directory)
            control = self._controls.setdefault(path, SpoolCurves(path, self._metrics))
            try:
                curves.append(control.read())
            except OSError as error:
                logger.warning("the control's curve cannot be read: %s", error)
        return curves
