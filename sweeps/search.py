"""The search: which trial comes next, and what becomes of it.

`Proposer` draws points with an Optuna sampler. It works on an in-memory twin of the study, so that
a trial enters the record whole, with all its parameters. `StudySearcher` is Ray's Searcher on top
of it: it maps Tune's ids to trials and writes every score to the record before anything follows
from it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from sweeps.listeners import Audience
from sweeps.record import Ledger, ParamValue, Role, RungResult, TrialRecord
from sweeps.space import Space
from sweeps.spec import SweepSpec
from sweeps.stopping import Verdict, decide
from sweeps.trial import TASK_KEY, Ending, Task, find_rung, from_result

CONTROL_PARAMS: Mapping[str, ParamValue] = {"enable_aqr": False}


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
        """Draw a feasible point."""
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
            return sampled
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
            inner = TPESampler(seed=seed, n_startup_trials=spec.startup)
        case "random":
            inner = RandomSampler(seed=seed)
    return FeasibleSampler(inner, space, rng)


class Proposer:
    """Proposes points from what is known about earlier ones.

    A diverged trial has no value, and the record says so. The sampler is told the worst value so
    far in its place: from nothing it would learn nothing, and propose the same point again.

    Args:
        spec: The sweep.
        space: Its space.
        trials: The trials so far.
    """

    def __init__(self, spec: SweepSpec, space: Space, trials: Sequence[TrialRecord]) -> None:
        self._distributions = space.distributions()
        self._worst = min if spec.objective.mode == "max" else max
        self._study = optuna.create_study(
            direction="maximize" if spec.objective.mode == "max" else "minimize",
            sampler=build_sampler(spec, space, num_trials=len(trials)),
        )
        for trial in sorted(trials, key=lambda trial: trial.number):
            self._study.add_trial(self._frozen(trial))

    def propose(self) -> dict[str, ParamValue]:
        """Draw the next point; its number in the twin is that of the next trial."""
        return self._study.ask(self._distributions).params

    def learn(self, trial: TrialRecord) -> None:
        """Take in how a trial ended."""
        value = self._value(trial)
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        self._study.tell(trial.number, value, state=state)

    def _value(self, trial: TrialRecord) -> float | None:
        if trial.told is not None or trial.outcome != "diverged":
            return trial.told
        values = [t.value for t in self._study.trials if t.value is not None]
        return self._worst(values) if values else None

    def _frozen(self, trial: TrialRecord) -> FrozenTrial:
        value = self._value(trial)
        ended = TrialState.FAIL if value is None else TrialState.COMPLETE
        return create_trial(
            state=TrialState.RUNNING if trial.state == "running" else ended,
            value=value,
            params=dict(trial.sampled),
            distributions=self._distributions,
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


def config_hash(spec: SweepSpec, params: Mapping[str, ParamValue]) -> str:
    """Eight digits that tell one training from another."""
    content = {"params": dict(params), "train": spec.train.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(kw_only=True)
class _Running:
    """A trial under way in this driver.

    Attributes:
        verdict: On its last score.
        fault: What is wrong with what it reported.
        death: Why its process died last; it may have been replaced since.
    """

    label: str
    verdict: Verdict | None = None
    fault: str | None = None
    death: str | None = None


class StudySearcher(Searcher):
    """Suggests trials to Tune and keeps the record.

    Args:
        spec: The sweep.
        ledger: Its record.
        audience: Is told what happens.
        num_slots: How many trials may run at once, asked before each suggestion.

    Attributes:
        failure: What a call from Ray raised, if any did.
    """

    def __init__(
        self, spec: SweepSpec, ledger: Ledger, audience: Audience, num_slots: Callable[[], int]
    ) -> None:
        super().__init__()
        self._spec, self._ledger, self._audience = spec, ledger, audience
        self._num_slots = num_slots
        self.failure: Exception | None = None
        self._space = spec.build_space()
        self._fidelities = spec.stopping.fidelities
        self._add_known()
        self._settle_full()
        self._waiting = [t.label for t in ledger.trials.values() if t.state == "running"]
        # The control stands first: everything is compared with it.
        self._waiting.sort(key=lambda label: ledger.trials[label].role != "control")
        self._proposer = Proposer(spec, self._space, self._of("search", "known"))
        self._running: dict[str, _Running] = {}
        self._started_at = time.monotonic()
        self._hours_before: float = ledger.read().attrs.get("hours", 0.0)

    # Ray calls the rest, in the driver's thread.

    def suggest(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        """The next trial: an interrupted one, the control, or a new point."""
        with self._remembering():
            return self._suggest(trial_id)

    def judge(self, trial_id: str, result: Mapping[str, Any]) -> Verdict:
        """Write a score down and say whether its trial goes on."""
        with self._remembering():
            return self._judge(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Write the end of a trial down."""
        with self._remembering():
            running = self._running.pop(trial_id)
            self._end(running, self._ending(running, result, error))
            self._ledger.set_attr("hours", self._hours())

    def note_death(self, trial_id: str, reason: str) -> None:
        """Remember why a trial's process died."""
        self._running[trial_id].death = reason

    def note_restart(self, trial_id: str) -> None:
        """Count another attempt, after Ray has replaced a process that died."""
        with self._remembering():
            self._ledger.start_attempt(self._running[trial_id].label)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the study is the record."""

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Keep what is raised, since Tune passes on its text alone."""
        try:
            yield
        except Exception as error:
            self.failure = error
            raise

    def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self._running) >= self._num_slots():
            return None
        label = self._next_label()
        if label is None:
            return Searcher.FINISHED
        trial = self._ledger.start_attempt(label)
        self._running[trial_id] = _Running(label=label)
        self._audience.tell(lambda listener: listener.on_trial_start(trial))
        task = Task(
            label=label,
            params=trial.params,
            attempt=trial.attempts,
            checkpoint=trial.rungs[-1].checkpoint if trial.rungs else None,
            seconds=trial.seconds,
        )
        return {TASK_KEY: task.to_json()}

    def _judge(self, trial_id: str, result: Mapping[str, Any]) -> Verdict:
        rung = from_result(result)
        assert isinstance(rung, RungResult), "Tune ends a trial by itself at its ending"
        running = self._running[trial_id]
        trial = self._ledger.trials[running.label]
        index = find_rung(self._fidelities, rung.fraction, rung.val_share)
        assert index is not None, "the trial checks its rungs"
        if index > len(trial.rungs):
            reason = f"rung {index + 1} came before rung {len(trial.rungs) + 1}"
            running.fault = f"a trial must report every rung in order, but {reason}"
            return Verdict(stop=True, reason=running.fault)
        if index == len(trial.rungs):
            objective = rung.metrics[self._spec.objective.key]
            trial = self._ledger.append_rung(trial.label, rung, objective=objective)
        # A rung that came again after a resume keeps its first score, which has been acted upon.
        verdict = self._decide(trial, index)
        running.verdict = verdict
        rung = trial.rungs[index]
        self._audience.tell(lambda listener: listener.on_rung(trial, rung, verdict))
        return verdict

    def _next_label(self) -> str | None:
        if self._waiting:
            return self._waiting.pop(0)
        if self._spec.budget.hours is not None and self._hours() >= self._spec.budget.hours:
            return None
        if self._spec.control and not self._of("control"):
            return self._add("control", CONTROL_PARAMS, {})
        if len(self._of("search")) >= self._spec.budget.trials:
            return None
        sampled = self._proposer.propose()
        return self._add("search", self._space.resolve(sampled), sampled)

    def _add(
        self, role: Role, params: Mapping[str, ParamValue], sampled: Mapping[str, ParamValue]
    ) -> str:
        return self._enter(role, params, sampled, value=None).label

    def _enter(
        self,
        role: Role,
        params: Mapping[str, ParamValue],
        sampled: Mapping[str, ParamValue],
        *,
        value: float | None,
    ) -> TrialRecord:
        full = {**params, "seed": self._spec.seed}
        return self._ledger.add_trial(
            role=role,
            params=full,
            sampled=sampled,
            distributions={} if role == "control" else self._space.distributions(),
            seed=self._spec.seed,
            config_hash=config_hash(self._spec, full),
            value=value,
        )

    def _add_known(self) -> None:
        # All of them come before the first trial, so a kill in between leaves the first few.
        for point in self._spec.known[len(self._of("known")) :]:
            sampled = self._space.invert(point.params, {})
            self._enter("known", point.params, sampled, value=point.value)

    def _settle_full(self) -> None:
        """End trials that a kill caught between their last score and their end."""
        for trial in list(self._ledger.trials.values()):
            if trial.state == "running" and len(trial.rungs) == len(self._fidelities):
                self._finish(trial, Ending(outcome="finished", reason="", seconds=trial.seconds))

    def _decide(self, trial: TrialRecord, index: int) -> Verdict:
        if trial.role == "control":
            return Verdict(stop=False, reason="the control runs to its end")
        if index == len(self._fidelities) - 1:
            return Verdict(stop=False, reason="the full budget is spent")
        peers = [
            self._score(peer.rungs[index])
            for peer in self._of("search")
            if peer.label != trial.label and len(peer.rungs) > index
        ]
        return decide(
            self._spec.stopping.rule,
            value=self._score(trial.rungs[index]),
            peers=peers,
            noise=self._spec.objective.noise,
            val_share=self._fidelities[index][1],
            mode=self._spec.objective.mode,
        )

    def _ending(self, running: _Running, result: Mapping[str, Any] | None, error: bool) -> Ending:
        trial = self._ledger.trials[running.label]
        if error:
            reason = f"the trial's process ended: {running.death}"
            return Ending(outcome="failed", reason=reason, seconds=trial.seconds)
        if running.fault is not None:
            return Ending(outcome="failed", reason=running.fault, seconds=trial.seconds)
        assert result is not None, "a trial without an error has a result"
        event = from_result(result)
        if isinstance(event, RungResult):
            assert running.verdict is not None, "a trial that ends at a rung was judged there"
            return Ending(outcome="stopped", reason=running.verdict.reason, seconds=trial.seconds)
        if event.outcome == "finished" and len(trial.rungs) < len(self._fidelities):
            reason = (
                f"a training must report {len(self._fidelities)} rungs, "
                f"but ended after {len(trial.rungs)}"
            )
            return Ending(outcome="failed", reason=reason, seconds=event.seconds)
        return event

    def _end(self, running: _Running, ending: Ending) -> None:
        trial = self._finish(self._ledger.trials[running.label], ending)
        if trial.role == "search":
            self._proposer.learn(trial)
        self._audience.tell(lambda listener: listener.on_trial_end(trial))

    def _finish(self, trial: TrialRecord, ending: Ending) -> TrialRecord:
        return self._ledger.finish(
            trial.label,
            outcome=ending.outcome,
            reason=ending.reason,
            told=self._value_to_tell(trial, ending),
            seconds=ending.seconds,
            gpu_hours=ending.seconds / 3600 * self._spec.resources.gpus,
        )

    def _value_to_tell(self, trial: TrialRecord, ending: Ending) -> float | None:
        if ending.outcome not in ("finished", "stopped"):
            return None
        value = self._score(trial.rungs[-1])
        if ending.outcome == "finished":
            return value
        finished = [
            [self._score(rung) for rung in other.rungs]
            for other in self._of("search")
            if other.outcome == "finished"
        ]
        return impute(len(trial.rungs) - 1, value, finished)

    def _score(self, rung: RungResult) -> float:
        return rung.metrics[self._spec.objective.key]

    def _of(self, *roles: Role) -> list[TrialRecord]:
        return [trial for trial in self._ledger.trials.values() if trial.role in roles]

    def _hours(self) -> float:
        return self._hours_before + (time.monotonic() - self._started_at) / 3600
