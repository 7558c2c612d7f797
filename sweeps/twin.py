"""Optuna's samplers as a source of points, within the constraints, on a study in memory.

The study in memory is a twin of the record's, so that a trial enters the record whole, with all its
parameters. The samplers take one value for each trial, of a stopped one an estimate, and are not
told the noise.
"""

import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean, median
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
from optuna.samplers import BaseSampler, CmaEsSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from sweeps.belief import is_infeasible
from sweeps.sections import KnownPoint
from sweeps.space import Space
from sweeps.spec import SweepSpec
from sweeps.trials import ParamValue, TrialRecord

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
    """The sampler of Optuna's that a spec asks for: tpe or cmaes.

    Its seed depends on how many trials there are: after a resume it must not repeat itself.
    """
    state = np.random.SeedSequence([spec.seed, num_trials]).generate_state(2)
    seed, rng = int(state[0]), np.random.default_rng(state[1])
    inner: BaseSampler
    if spec.search.sampler == "tpe":
        # Trials of a conditional space differ in their axes: those that occur together are drawn
        # together.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            inner = TPESampler(
                seed=seed, n_startup_trials=spec.startup, group=bool(space.conditions)
            )
    else:
        assert spec.search.sampler == "cmaes", "other samplers are not Optuna's"
        inner = CmaEsSampler(
            seed=seed, n_startup_trials=spec.startup, warn_independent_sampling=False
        )
    return FeasibleSampler(inner, space, rng)


class Twin:
    """Proposes what Optuna's TPE or CMA-ES draws.

    TPE gets a constraint with every trial once one has gone wrong: it learns where such trials lie,
    and the search leaves the region. Both samplers read the values of such trials, too, so one
    without a value is told the worst so far; the record says that it has none.

    Known points of other code or of another training say to TPE in which order they are, not how
    good: see `_shifted`. CMA-ES takes nothing from points that it did not draw.

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
        self._spec = spec
        self._distributions = space.distributions()
        self._mode = spec.objective.mode
        self._sampler = build_sampler(spec, space, num_trials=len(trials))
        self._trials = {trial.number: trial for trial in trials}
        self._controls = {control.number: control for control in controls}
        self._asked: dict[int, Mapping[str, ParamValue]] = {}
        self._study = self._twin()

    def propose(self, number: int) -> dict[str, ParamValue]:
        """The point of the trial of this number, the next one."""
        asked = self._study.ask()
        assert asked.number == number, f"the twin must know all trials before {number}"
        drawn = [name for name in self._distributions if name in asked.relative_params]
        params = {name: _suggest(asked, name, self._distributions[name]) for name in drawn}
        self._asked[number] = params
        return params

    def enter(self, number: int, params: Mapping[str, ParamValue]) -> None:
        """Take in a point that was not drawn."""
        self._asked[number] = params
        self._study.add_trial(self._frozen(TrialState.RUNNING, params))

    def observe(self, trial: TrialRecord) -> None:
        """Take in how a trial ended; an early score says nothing to Optuna's samplers."""
        if trial.outcome is None:
            return
        if trial.role == "control":
            self._controls[trial.number] = trial
        else:
            self._trials[trial.number] = trial
            self._asked.pop(trial.number, None)
        if self._is_renewed():
            self._study = self._twin()
        elif trial.role != "control":
            # CMA-ES keeps its state in the trials of this very study.
            value = self._worst() if trial.told is None else trial.told
            self._study.tell(trial.number, value)

    def _is_renewed(self) -> bool:
        """Whether what earlier trials are told may change with a new one.

        Optuna wants the constraint on every trial, or on none, and never on one that ended.
        """
        if self._spec.search.sampler == "cmaes":
            return False
        return self._is_constrained() or any(self._is_foreign(point) for point in self._spec.known)

    def _twin(self) -> Study:
        study = optuna.create_study(
            direction="maximize" if self._mode == "max" else "minimize", sampler=self._sampler
        )
        told = self._told()
        asked = {n: self._frozen(TrialState.RUNNING, params) for n, params in self._asked.items()}
        ended = {n: self._known(trial, told.get(n)) for n, trial in self._trials.items()}
        study.add_trials([trial for _, trial in sorted({**asked, **ended}.items())])
        return study

    def _told(self) -> dict[int, float]:
        """The value that each trial with one stands for."""
        own = {n: t.told for n, t in self._trials.items() if t.told is not None}
        searched = [v for n, v in own.items() if self._trials[n].role == "search"]
        return {**own, **self._shifted(searched)} if searched else own

    def _shifted(self, searched: Sequence[float]) -> dict[int, float]:
        """The values of foreign known points on this sweep's level.

        They count by their gain over their own control where there is one here and there; else the
        median of those of one kind is put on the median of this sweep's own.
        """
        controls = [c.value for c in self._controls.values() if c.value is not None]
        known = [trial for _, trial in sorted(self._trials.items()) if trial.role == "known"]
        shifted: dict[int, float] = {}
        kinds: dict[tuple[str, float], dict[int, float]] = {}
        for trial, point in zip(known, self._spec.known, strict=False):
            if not self._is_foreign(point):
                continue
            if point.control is not None and controls:
                shifted[trial.number] = point.value - point.control + fmean(controls)
            else:
                kind = (point.provenance, point.share_of(self._spec.train.epochs))
                kinds.setdefault(kind, {})[trial.number] = point.value
        for values in kinds.values():
            shift = median(searched) - median(values.values())
            shifted.update({number: value + shift for number, value in values.items()})
        return shifted

    def _known(self, trial: TrialRecord, told: float | None) -> FrozenTrial:
        if trial.outcome is None:
            return self._frozen(TrialState.RUNNING, trial.sampled)
        value = self._worst() if told is None else told
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

    def _is_foreign(self, point: KnownPoint) -> bool:
        return point.is_foreign(self._spec.train.epochs)

    def _is_constrained(self) -> bool:
        return self._spec.search.sampler == "tpe" and any(
            is_infeasible(trial) for trial in self._trials.values()
        )

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
