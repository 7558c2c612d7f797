"""Where the next trial lies: starting points, a grid, and then what the spec's sampler says.

Sampler gp is the sweep's own (`sweeps.gp_proposing`); tpe and cmaes are Optuna's (`sweeps.twin`).
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from sweeps.belief import is_infeasible as is_infeasible
from sweeps.gp_proposing import GpProposer
from sweeps.space import Space
from sweeps.spec import SweepSpec
from sweeps.trials import ParamValue, TrialRecord
from sweeps.twin import FeasibleSampler as FeasibleSampler
from sweeps.twin import Twin


class Source(Protocol):
    """What draws points."""

    def propose(self, number: int) -> dict[str, ParamValue]:
        """The point of the trial of this number, the next one."""
        ...

    def enter(self, number: int, params: Mapping[str, ParamValue]) -> None:
        """Take in a point that was not drawn."""
        ...

    def observe(self, trial: TrialRecord) -> None:
        """Take in what a trial has scored so far, or how it ended."""
        ...


class Uniform:
    """Proposes feasible points, each as likely as any other.

    Its seed depends on how many trials there are: after a resume it must not repeat itself.
    """

    def __init__(self, spec: SweepSpec, space: Space, *, num_trials: int) -> None:
        self._space, self._rng = space, np.random.default_rng([spec.seed, num_trials])

    def propose(self, number: int) -> dict[str, ParamValue]:
        """Draw a point."""
        return self._space.draw(self._rng)

    def enter(self, number: int, params: Mapping[str, ParamValue]) -> None:
        """Learn nothing."""

    def observe(self, trial: TrialRecord) -> None:
        """Learn nothing."""


class Proposer:
    """Proposes points from what is known about earlier ones.

    Starting points come first, and a grid has no others. Which is next follows from how many trials
    there are, so that a resume goes on where the last driver stopped.

    Args:
        spec: The sweep.
        space: Its space.
        trials: The trials so far, known points among them.
        controls: Trainings with AQR off.
    """

    def __init__(
        self,
        spec: SweepSpec,
        space: Space,
        trials: Sequence[TrialRecord],
        controls: Sequence[TrialRecord] = (),
    ) -> None:
        self._is_grid = spec.search.sampler == "grid"
        self._listed = (
            space.grid() if self._is_grid else [space.invert(point, {}) for point in spec.start]
        )
        self._num_known = sum(trial.role == "known" for trial in trials)
        self._num_trials = len(trials)
        self._source = build_source(spec, space, trials, controls)

    def propose(self) -> dict[str, ParamValue]:
        """The point of the next trial, which takes the next number."""
        number, place = self._num_trials, self._num_trials - self._num_known
        self._num_trials += 1
        if place < len(self._listed):
            self._source.enter(number, self._listed[place])
            return dict(self._listed[place])
        assert not self._is_grid, "a spec asks for no more trials than its grid has points"
        return self._source.propose(number)

    def observe(self, trial: TrialRecord) -> None:
        """Take in what a trial has scored so far; the control's counts, too."""
        self._source.observe(trial)

    def learn(self, trial: TrialRecord) -> None:
        """Take in how a trial ended."""
        self._source.observe(trial)


def build_source(
    spec: SweepSpec,
    space: Space,
    trials: Sequence[TrialRecord],
    controls: Sequence[TrialRecord],
) -> Source:
    """What a spec's sampler is."""
    match spec.search.sampler:
        case "gp":
            return GpProposer(spec, space, trials, controls)
        case "tpe" | "cmaes":
            return Twin(spec, space, trials, controls)
        case "random" | "grid":
            return Uniform(spec, space, num_trials=len(trials))
