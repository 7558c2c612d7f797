"""Where the next trial lies: starting points, a grid, or Optuna's samplers within the constraints.

`Proposer` works on an in-memory twin of the study, so that a trial enters the record whole, with
all its parameters. The samplers are not told the noise: the GP fits its own from the scores, which
holds more than the spread between seeds.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from sweeps.space import Space
from sweeps.spec import SweepSpec
from sweeps.trials import ParamValue, TrialRecord

HEALTH_PREFIX = "health: "
# The name of the one constraint that trials carry in the twin: above 0, it is broken.
SOUND = "sound"


class FeasibleSampler(BaseSampler):
    """Draws from another sampler, and meets the constraints.

    A random draw that breaks them gives way to one that does not. A draw from the sampler's model,
    which would come again, moves to the edge of what the constraints allow (`Space.nearest`). So a
    constraint costs no trial, and the sampler's intention is kept where it can be.
    """

    def __init__(self, inner: BaseSampler, space: Space, rng: np.random.Generator) -> None:
        self._inner, self._space, self._rng = inner, space, rng

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All axes: they are drawn together, since constraints join them."""
        return self._space.distributions()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw a feasible point, of active axes alone."""
        relative = self._inner.infer_relative_search_space(study, trial)
        modelled = self._inner.sample_relative(study, trial, relative)
        # The inner sampler leaves out what it has no model for yet.
        sampled = {
            name: modelled[name]
            if name in modelled
            else self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }
        if self._space.is_feasible(sampled):
            return self._space.active(sampled)
        return self._space.nearest(sampled, self._rng) if modelled else self._space.draw(self._rng)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Draw one axis."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Pass on."""
        self._inner.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Pass on."""
        self._inner.after_trial(study, trial, state, values)


def build_sampler(spec: SweepSpec, space: Space, *, num_trials: int) -> FeasibleSampler:
    """The sampler a spec asks for.

    Its seed depends on how many trials there are: after a resume it must not repeat itself.
    """
    state = np.random.SeedSequence([spec.seed, num_trials]).generate_state(2)
    seed, rng = int(state[0]), np.random.default_rng(state[1])
    inner: BaseSampler
    match spec.search.sampler:
        case "gp":
            inner = GPSampler(
                seed=seed, n_startup_trials=spec.startup, warn_independent_sampling=False
            )
        case "tpe":
            # Trials of a conditional space differ in their axes: those that occur together are
            # drawn together.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                inner = TPESampler(
                    seed=seed, n_startup_trials=spec.startup, group=bool(space.conditions)
                )
        case "cmaes":
            inner = CmaEsSampler(
                seed=seed, n_startup_trials=spec.startup, warn_independent_sampling=False
            )
        case "random" | "grid":
            inner = RandomSampler(seed=seed)
    return FeasibleSampler(inner, space, rng)


def is_infeasible(trial: TrialRecord) -> bool:
    """Whether a trial ended in a way that speaks against its region: it went wrong."""
    if trial.outcome in ("diverged", "failed"):
        return True
    return trial.outcome == "stopped" and trial.reason.startswith(HEALTH_PREFIX)


class Proposer:
    """Proposes points from what is known about earlier ones.

    A trial that diverged, failed or was stopped for its health is infeasible: Optuna's GP and TPE
    learn where such trials lie, and the search leaves the region. They read the values of
    infeasible trials, too, so one without a value is told the worst so far; the record says that it
    has none. Without any such trial the samplers see no constraint at all.

    Args:
        spec: The sweep.
        space: Its space.
        trials: The trials so far, known points among them.
    """

    def __init__(self, spec: SweepSpec, space: Space, trials: Sequence[TrialRecord]) -> None:
        self._distributions = space.distributions()
        self._is_grid = spec.search.sampler == "grid"
        self._listed = (
            space.grid() if self._is_grid else [space.invert(point, {}) for point in spec.start]
        )
        self._mode = spec.objective.mode
        self._sampler = build_sampler(spec, space, num_trials=len(trials))
        self._trials = {trial.number: trial for trial in trials}
        self._asked: dict[int, dict[str, ParamValue]] = {}
        self._study = self._twin()

    def propose(self) -> dict[str, ParamValue]:
        """The next point; its number in the twin is that of the next trial.

        Starting points come first, and a grid has no others. Which is next follows from how many
        trials there are, so that a resume goes on where the last driver stopped.
        """
        searched = sum(trial.role == "search" for trial in self._trials.values())
        place = searched + len(self._asked)
        if place < len(self._listed):
            number, params = len(self._study.get_trials(deepcopy=False)), self._listed[place]
            self._study.add_trial(self._frozen(TrialState.RUNNING, params))
        else:
            assert not self._is_grid, "a spec asks for no more trials than its grid has points"
            asked = self._study.ask()
            drawn = [name for name in self._distributions if name in asked.relative_params]
            params = {name: _suggest(asked, name, self._distributions[name]) for name in drawn}
            number = asked.number
        self._asked[number] = params
        return params

    def learn(self, trial: TrialRecord) -> None:
        """Take in how a trial ended."""
        self._trials[trial.number] = trial
        self._asked.pop(trial.number, None)
        if self._is_constrained():
            # Optuna wants the constraint on every trial, or on none, and never on one that ended.
            self._study = self._twin()
        else:
            self._study.tell(trial.number, trial.told)

    def _twin(self) -> Study:
        study = optuna.create_study(
            direction="maximize" if self._mode == "max" else "minimize", sampler=self._sampler
        )
        asked = {n: self._frozen(TrialState.RUNNING, params) for n, params in self._asked.items()}
        ended = {number: self._known(trial) for number, trial in self._trials.items()}
        study.add_trials([trial for _, trial in sorted({**asked, **ended}.items())])
        return study

    def _known(self, trial: TrialRecord) -> FrozenTrial:
        if trial.outcome is None:
            return self._frozen(TrialState.RUNNING, trial.sampled)
        value = self._worst() if trial.told is None else trial.told
        if value is None:
            return self._frozen(TrialState.FAIL, trial.sampled)
        violation = 1.0 if is_infeasible(trial) else -1.0
        constraints = {SOUND: violation} if self._is_constrained() else None
        return self._frozen(TrialState.COMPLETE, trial.sampled, value, constraints)

    def _frozen(
        self,
        state: TrialState,
        params: Mapping[str, ParamValue],
        value: float | None = None,
        constraints: dict[str, float] | None = None,
    ) -> FrozenTrial:
        return create_trial(
            state=state,
            value=value,
            params=dict(params),
            distributions={name: self._distributions[name] for name in params},
            constraints=constraints,
        )

    def _is_constrained(self) -> bool:
        return any(is_infeasible(trial) for trial in self._trials.values())

    def _worst(self) -> float | None:
        values = [trial.told for trial in self._trials.values() if trial.told is not None]
        worst = min if self._mode == "max" else max
        return worst(values, default=None)


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> ParamValue:
    """Enter the value that was drawn for an axis into Optuna's trial."""
    match distribution:
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step)
        case CategoricalDistribution(choices=choices):
            return cast(ParamValue, trial.suggest_categorical(name, choices))
        case _:
            raise AssertionError(f"no axis has a {type(distribution).__name__}")
