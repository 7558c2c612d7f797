"""What is decided about a trial by its scores and its peers': whether it goes on, what it is worth.

Pure; `sweeps.search` acts on it.
"""

from collections.abc import Mapping

from sweeps.finalists import noise_for_stopping
from sweeps.objectives import objectives_of, values_at
from sweeps.pareto import decide_on_all, noise_to_stop_by
from sweeps.spec import SweepSpec
from sweeps.stopping import Verdict, decide, impute
from sweeps.trials import Outcome, Role, RungResult, TrialRecord


class Decisions:
    """Decides by the trials of a sweep as they stand at that moment.

    Args:
        spec: The sweep.
        trials: Its trials by label; followed as they change.
        num_controls: Seeds of the control that the sweep runs.
    """

    def __init__(
        self, spec: SweepSpec, trials: Mapping[str, TrialRecord], *, num_controls: int
    ) -> None:
        self._spec, self._trials, self._num_controls = spec, trials, num_controls
        self._objectives = objectives_of(spec)
        self._fidelities = spec.stopping.fidelities

    def at_rung(self, trial: TrialRecord, index: int) -> Verdict:
        """Whether a trial goes on after a rung, by the spec's rule; control and finalists do."""
        if trial.role == "control":
            return Verdict(stop=False, reason="the control runs to its end")
        if trial.role == "finalist":
            return Verdict(stop=False, reason="finalists run to their end")
        if index == len(self._fidelities) - 1:
            return Verdict(stop=False, reason="the full budget is spent")
        peers = [
            peer.rungs[index]
            for peer in self._of("search")
            if peer.label != trial.label and len(peer.rungs) > index
        ]
        if self._spec.objective.also:
            return self._on_all(trial.rungs[index], peers, index)
        return decide(
            self._spec.stopping.rule,
            value=self._score(trial.rungs[index]),
            peers=[self._score(peer) for peer in peers],
            noise=self._noise(),
            val_share=self._fidelities[index][1],
            mode=self._spec.objective.mode,
        )

    def value_to_tell(self, trial: TrialRecord, outcome: Outcome) -> float | None:
        """What a study learns of a trial that ends so: its score, an estimate of it, or nothing."""
        if outcome not in ("finished", "stopped") or not trial.rungs:
            return None
        value = self._score(trial.rungs[-1])
        if outcome == "finished":
            return value
        finished = [
            [self._score(rung) for rung in other.rungs]
            for other in self._of("search")
            if other.outcome == "finished"
        ]
        return impute(len(trial.rungs) - 1, value, finished)

    def _on_all(self, rung: RungResult, peers: list[RungResult], index: int) -> Verdict:
        controls = self._of("control")
        further = [
            noise_to_stop_by(each, controls, self._num_controls) for each in self._objectives[1:]
        ]
        return decide_on_all(
            self._spec.stopping.rule,
            self._objectives,
            values=values_at(rung, self._objectives),
            peers=[values_at(peer, self._objectives) for peer in peers],
            noises=[self._noise(), *further],
            val_share=self._fidelities[index][1],
        )

    def _noise(self) -> float | None:
        return noise_for_stopping(
            self._spec.objective.noise, self._of("control"), self._num_controls
        )

    def _score(self, rung: RungResult) -> float:
        return rung.metrics[self._spec.objective.key]

    def _of(self, role: Role) -> list[TrialRecord]:
        return [trial for trial in self._trials.values() if trial.role == role]
