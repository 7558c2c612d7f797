"""Which trainings the finals still lack, as the search's model sees the trials at the moment."""

from collections.abc import Mapping

from sweeps.belief import expected_scores
from sweeps.finalists import Repeat, best_trials, new_seeds, planned_repeats, repeats_left
from sweeps.objectives import objectives_of
from sweeps.pareto import best_of_front
from sweeps.space import Space
from sweeps.spec import SweepSpec
from sweeps.trials import Role, TrialRecord


class Finals:
    """The finals of a sweep.

    Args:
        spec: Of the sweep.
        space: Its space.
        trials: All of its trials by label, kept up to date by whoever has the record.
    """

    def __init__(self, spec: SweepSpec, space: Space, trials: Mapping[str, TrialRecord]) -> None:
        self._spec, self._space, self._trials = spec, space, trials
        self._expectation: tuple[frozenset[str], Mapping[int, float]] | None = None

    def best(self, top: int) -> tuple[TrialRecord, ...]:
        """The finished trials that are the first to be repeated, the best first.

        By the scores that the sampler's model expects of them, where it has one.
        """
        trials = list(self._trials.values())
        if self._spec.objective.also:
            return best_of_front(trials, top, objectives_of(self._spec))
        expected = self._expected() if self._spec.search.sampler == "gp" else None
        return best_trials(trials, top, self._spec.objective.mode, expected)

    def left(self) -> tuple[Repeat, ...]:
        """Those that have not begun, in their order."""
        finals = self._spec.finalists
        assert finals is not None, "the course has no finals without them"
        planned = planned_repeats(
            self.best(finals.top),
            new_seeds(self._spec.seed, finals.seeds),
            with_control=self._spec.control_seeds > 0,
        )
        return repeats_left(planned, list(self._trials.values()))

    def _expected(self) -> Mapping[int, float]:
        """What the model expects of each finished trial; it is fitted anew when one has ended."""
        trials = self._of("search", "known")
        ended = frozenset(trial.label for trial in trials if trial.outcome is not None)
        if self._expectation is None or self._expectation[0] != ended:
            expected = expected_scores(self._spec, self._space, trials, self._of("control"))
            self._expectation = (ended, expected)
        return self._expectation[1]

    def _of(self, *roles: Role) -> list[TrialRecord]:
        return [trial for trial in self._trials.values() if trial.role in roles]
