"""Where the next trial lies, where there are several objectives: Optuna's samplers on all of them.

`ParetoProposer` builds an in-memory study with a direction for each objective from what is known of
the trials, asks it for one point and forgets it. A study of hours has time for that.
"""

import warnings
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeps.objectives import Objective, objectives_of, values_at, values_of
from sweeps.proposing import FeasibleSampler, is_infeasible
from sweeps.space import Space
from sweeps.spec import SweepSpec
from sweeps.trials import ParamValue, TrialRecord

Values = tuple[float, ...]
# The name of the one constraint that trials carry in the study: above 0, it is broken.
SOUND = "sound"
_DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}


class ParetoProposer:
    """Proposes points that may widen the front.

    What holds for a single objective holds here (`sweeps.proposing.Proposer`): starting points come
    first, infeasible trials carry a constraint, and one without values has the worst of each
    objective.

    Args:
        spec: A sweep with several objectives.
        space: Its space.
        trials: Its searched trials so far.
    """

    def __init__(self, spec: SweepSpec, space: Space, trials: Sequence[TrialRecord]) -> None:
        self._objectives = objectives_of(spec)
        self._distributions = space.distributions()
        self._is_grid = spec.search.sampler == "grid"
        self._listed = (
            space.grid() if self._is_grid else [space.invert(point, {}) for point in spec.start]
        )
        self._sampler = build_sampler(spec, space, num_trials=len(trials))
        self._trials = {trial.number: trial for trial in trials}
        self._asked: dict[int, dict[str, ParamValue]] = {}

    def propose(self) -> dict[str, ParamValue]:
        """The next point."""
        place = len(self._trials.keys() | self._asked.keys())
        if place < len(self._listed):
            params = self._listed[place]
        else:
            assert not self._is_grid, "a spec asks for no more trials than its grid has points"
            drawn = self._ask()
            params = {name: drawn[name] for name in self._distributions if name in drawn}
        self._asked[place] = params
        return params

    def observe(self, trial: TrialRecord) -> None:
        """Take in a score of a running trial, or the control's; Optuna's samplers ask for none."""

    def learn(self, trial: TrialRecord) -> None:
        """Take in how a trial ended."""
        self._trials[trial.number] = trial
        self._asked.pop(trial.number, None)

    def _ask(self) -> Mapping[str, ParamValue]:
        directions = [_DIRECTIONS[objective.mode] for objective in self._objectives]
        study = optuna.create_study(directions=directions, sampler=self._sampler)
        asked = {n: _frozen(p, self._distributions) for n, p in self._asked.items()}
        study.add_trials([t for _, t in sorted({**asked, **self._ended()}.items())])
        return study.ask().relative_params

    def _ended(self) -> dict[int, FrozenTrial]:
        """The trials as the samplers see them."""
        trials = list(self._trials.values())
        values = full_values(trials, self._objectives)
        worst = _worst(list(values.values()), self._objectives)
        # Optuna wants the constraint on every trial, or on none.
        is_constrained = any(is_infeasible(trial) for trial in trials)
        frozen = {}
        for trial in trials:
            told = values.get(trial.number)
            if told is None and trial.outcome is not None:
                told = worst
            violation = 1.0 if is_infeasible(trial) else -1.0
            frozen[trial.number] = _frozen(
                trial.sampled,
                self._distributions,
                outcome=None if trial.outcome is None else told or (),
                constraints={SOUND: violation} if is_constrained and told is not None else None,
            )
        return frozen


def build_sampler(spec: SweepSpec, space: Space, *, num_trials: int) -> FeasibleSampler:
    """The sampler of a spec with several objectives; not cmaes, which knows a single one.

    Its seed depends on how many trials there are: after a resume it must not repeat itself.
    """
    state = np.random.SeedSequence([spec.seed, num_trials]).generate_state(2)
    seed, rng = int(state[0]), np.random.default_rng(state[1])
    inner: BaseSampler
    match spec.search.sampler:
        case "gp":  # by the expected gain in hypervolume
            inner = GPSampler(
                seed=seed, n_startup_trials=spec.startup, warn_independent_sampling=False
            )
        case "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                # All axes are drawn together, since constraints may join them.
                inner = TPESampler(
                    seed=seed,
                    n_startup_trials=spec.startup,
                    multivariate=True,
                    group=bool(space.conditions),
                )
        case "random" | "grid":
            inner = RandomSampler(seed=seed)
        case other:
            raise ValueError(
                f"several objectives must have sampler gp, tpe, random or grid: {other}"
            )
    return FeasibleSampler(inner, space, rng)


def full_values(
    trials: Sequence[TrialRecord], objectives: Sequence[Objective]
) -> dict[int, Values]:
    """The values of trials at full budget, by number: of finished ones as they are.

    Those of a trial that was stopped at a rung are estimated: a metric gains what finished trials
    gained from there to the end, in the median; the training time grows with the budget. The first
    objective has the estimate that the record holds.
    """
    finished = [trial for trial in trials if values_of(trial, objectives) is not None]
    known = {trial.number: values_at(trial.rungs[-1], objectives) for trial in finished}
    for trial in trials:
        if trial.outcome == "stopped" and trial.rungs and trial.told is not None:
            rest = [_estimate(trial, objective, finished) for objective in objectives[1:]]
            known[trial.number] = (trial.told, *rest)
    return known


def _estimate(trial: TrialRecord, objective: Objective, finished: Sequence[TrialRecord]) -> float:
    last = trial.rungs[-1]
    if objective.is_time:
        return last.seconds / last.fraction
    here = len(trial.rungs) - 1
    gaps = [objective.value(t.rungs[-1]) - objective.value(t.rungs[here]) for t in finished]
    return objective.value(last) + (median(gaps) if gaps else 0.0)


def _worst(rows: Sequence[Values], objectives: Sequence[Objective]) -> Values | None:
    """The worst value of each objective; None while there are no values."""
    if not rows:
        return None
    columns = zip(*rows, strict=True)
    return tuple(
        min(column) if objective.mode == "max" else max(column)
        for objective, column in zip(objectives, columns, strict=True)
    )


def _frozen(
    params: Mapping[str, ParamValue],
    distributions: Mapping[str, BaseDistribution],
    *,
    outcome: Values | None = None,
    constraints: dict[str, float] | None = None,
) -> FrozenTrial:
    """A trial for the study: running without an outcome, failed with an empty one."""
    states = {None: TrialState.RUNNING, (): TrialState.FAIL}
    return create_trial(
        state=states.get(outcome, TrialState.COMPLETE),
        values=list(outcome) if outcome else None,
        params=dict(params),
        distributions={name: distributions[name] for name in params},
        constraints=constraints,
    )
