"""The search as Ray sees it: which trial comes next, and what becomes of it.

`StudySearcher` is Ray's Searcher on top of `Proposer`: it maps Tune's ids to trials and writes
every score to the record before anything follows from it.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ray.tune.search import Searcher

from sweeps.budget import Progress, Step, course_of, next_step
from sweeps.decisions import Decisions
from sweeps.finalists import Repeat, new_seeds
from sweeps.listeners import Audience
from sweeps.objectives import missing_keys, objectives_of
from sweeps.pareto_proposing import ParetoProposer
from sweeps.proposing import Proposer
from sweeps.record import Ledger
from sweeps.repeating import Finals
from sweeps.spec import SweepSpec, config_hash
from sweeps.spending import Spending
from sweeps.stopping import Verdict
from sweeps.task import TASK_KEY, Ending, Task, flags_of, from_result
from sweeps.trial import find_rung
from sweeps.trials import ParamValue, Role, RungResult, TrialRecord

CONTROL_PARAMS: Mapping[str, ParamValue] = {"enable_aqr": False}
# Attribute of the sweep: which budget ended its search.
ENDED_BY = "ended_by"


# So many trainings in a row that fail before their first score end a sweep.
MOST_FAILED = 8


class TrialsFail(RuntimeError):
    """Training after training has failed before its first score; says how the last one did."""


@dataclass(kw_only=True)
class _Running:
    """A trial under way in this driver.

    Attributes:
        verdict: On its last score.
        fault: What is wrong with what it reported.
        death: Why its process died last; it may have been replaced since.
        since: When it took its place on the cluster; None while it has none.
    """

    label: str
    since: float | None = None
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
        self._objectives = objectives_of(spec)
        self._fidelities = spec.stopping.fidelities
        self._course = course_of(spec)
        self._decisions = Decisions(spec, ledger.trials, num_controls=self._course.num_controls)
        self._add_known()
        self._settle_full()
        self._waiting = [t.label for t in ledger.trials.values() if t.state == "running"]
        # The control stands first: everything is compared with it.
        self._waiting.sort(key=lambda label: ledger.trials[label].role != "control")
        so_far = self._of("search", "known")
        self._proposer = (
            ParetoProposer(spec, self._space, so_far)
            if spec.objective.also
            else Proposer(spec, self._space, so_far, self._of("control"))
        )
        self._finals = Finals(spec, self._space, ledger.trials)
        self._running: dict[str, _Running] = {}
        self._spending = Spending(ledger, self._begun)
        self._num_failed_at_once = 0
        self._ended_by: Mapping[str, str] | None = ledger.read().attrs.get(ENDED_BY)

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
            self._leave_place(running)
            self._end(running, self._ending(running, result, error))
            self.save_spent()

    def best_so_far(self, top: int) -> tuple[TrialRecord, ...]:
        """The finished trials that would be repeated now, the best first."""
        return self._finals.best(top)

    def note_start(self, trial_id: str) -> None:
        """Count a trial's time from when it has its place; until then it waits for one."""
        running = self._running[trial_id]
        self._leave_place(running)  # of a process that has been replaced
        running.since = time.monotonic()

    def save_spent(self, *, at_once: bool = False) -> None:
        """Write down what has been spent, now and then."""
        with self._remembering():
            self._spending.save(at_once=at_once)

    def catch_up(self) -> None:
        """See that all that was written is on the disk."""
        with self._remembering():
            self._ledger.catch_up()

    def note_death(self, trial_id: str, reason: str) -> None:
        """Remember why a trial's process died."""
        running = self._running[trial_id]
        running.death = reason
        self._leave_place(running)

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
        if not label:
            return None
        trial = self._ledger.start_attempt(label)
        self._running[trial_id] = _Running(label=label)
        self._audience.tell(lambda listener: listener.on_trial_start(trial))
        task = Task(
            label=label,
            params=trial.params,
            attempt=trial.attempts,
            checkpoint=trial.rungs[-1].checkpoint if trial.rungs else None,
            seconds=trial.seconds,
            role=trial.role,
        )
        return {TASK_KEY: task.to_json()}

    def _judge(self, trial_id: str, result: Mapping[str, Any]) -> Verdict:
        rung = from_result(result)
        assert isinstance(rung, RungResult), "Tune ends a trial by itself at its ending"
        running = self._running[trial_id]
        trial = self._take_flags(running.label, result)
        index = find_rung(self._fidelities, rung.fraction, rung.val_share)
        assert index is not None, "the trial checks its rungs"
        if index > len(trial.rungs):
            reason = f"rung {index + 1} came before rung {len(trial.rungs) + 1}"
            running.fault = f"a trial must report every rung in order, but {reason}"
            return Verdict(stop=True, reason=running.fault)
        if missing := missing_keys(rung, self._objectives):
            running.fault = f"a trial must report {', '.join(missing)} at every rung, but did not"
            return Verdict(stop=True, reason=running.fault)
        if index == len(trial.rungs):
            objective = rung.metrics[self._spec.objective.key]
            trial = self._ledger.append_rung(trial.label, rung, objective=objective)
            if trial.role == "search":
                self._proposer.observe(trial)
        # A rung that came again after a resume keeps its first score, which has been acted upon.
        verdict = self._decisions.at_rung(trial, index)
        running.verdict = verdict
        rung = trial.rungs[index]
        self._audience.tell(lambda listener: listener.on_rung(trial, rung, verdict))
        return verdict

    def _next_label(self) -> str | None:
        """The trial for a free slot; None for nothing more, an empty text for not yet."""
        if self._waiting:
            return self._waiting.pop(0)
        progress = self._progress()
        if progress.num_finals and not self._finals.left():
            return None
        step = next_step(self._course, progress)
        self._note_end(step)
        if step.next == "search" and self._ended_by is not None:  # the budget has been raised
            self._ended_by = None
            self._ledger.set_attr(ENDED_BY, None)
        match step.next:
            case "control":
                seed = new_seeds(self._spec.seed, len(self._of("control")))[-1:]
                return self._add_control(seed[0] if seed else self._spec.seed)
            case "search":
                sampled = self._proposer.propose()
                return self._add("search", self._space.resolve(sampled), sampled)
            case "finals":
                return self._add_repeat()
            case "wait":
                return ""
            case "end":
                return None

    def _progress(self) -> Progress:
        controls, searched = self._of("control"), self._of("search")
        finished = [t.seconds for t in self._ledger.trials.values() if t.value is not None]
        trained = [seconds for seconds in finished if seconds > 0]  # known points took none here
        full = fmean(trained) / 3600 if trained else None
        num_more_controls = max(0, len(controls) - self._course.num_controls)
        elapsed = self._spending.running_hours()
        elapsed += [0.0] * (len(self._running) - len(elapsed))  # of those that wait for a place
        return Progress(
            num_controls=len(controls),
            num_searched=len(searched),
            num_search_running=sum(trial.outcome is None for trial in searched),
            num_finals=len(self._of("finalist")) + num_more_controls,
            trial_hours=self._spending.trial_hours,
            rest_hours=sum(max(0.0, (full or 0.0) - hours) for hours in elapsed),
            hours=self._spending.hours,
            full_hours=full,
            slots=max(1, self._num_slots()),
        )

    def _note_end(self, step: Step) -> None:
        """Keep which budget ended the search; what ends the finals early is said as well."""
        if step.limit is None or step.next == "wait":
            return
        ended_by = {"limit": step.limit, "reason": step.reason}
        if ended_by != self._ended_by:
            self._ended_by = ended_by
            self._ledger.set_attr(ENDED_BY, ended_by)
            self.save_spent(at_once=True)

    def _add_repeat(self) -> str | None:
        """Enter the next training of the finals; None if there are none."""
        left = self._finals.left()
        return self._enter_repeat(left[0]) if left else None

    def _begun(self) -> list[float]:
        return [r.since for r in self._running.values() if r.since is not None]

    def _leave_place(self, running: _Running) -> None:
        if running.since is not None:
            self._spending.end(running.since)
            running.since = None

    def _enter_repeat(self, repeat: Repeat) -> str:
        if repeat.of is None:
            return self._add_control(repeat.seed)
        (first,) = (t for t in self._of("search") if t.number == repeat.of)
        params = {name: value for name, value in first.params.items() if name != "seed"}
        return self._enter(
            "finalist", params, first.sampled, seed=repeat.seed, repeats=repeat.of
        ).label

    def _add_control(self, seed: int) -> str:
        return self._enter("control", CONTROL_PARAMS, {}, seed=seed).label

    def _add(
        self, role: Role, params: Mapping[str, ParamValue], sampled: Mapping[str, ParamValue]
    ) -> str:
        return self._enter(role, params, sampled).label

    def _enter(
        self,
        role: Role,
        params: Mapping[str, ParamValue],
        sampled: Mapping[str, ParamValue],
        *,
        value: float | None = None,
        seed: int | None = None,
        repeats: int | None = None,
    ) -> TrialRecord:
        seed = self._spec.seed if seed is None else seed
        full = {**params, "seed": seed}
        return self._ledger.add_trial(
            role=role,
            params=full,
            sampled=sampled,
            distributions={} if role == "control" else self._space.distributions(sampled),
            seed=seed,
            config_hash=config_hash(self._spec, full),
            value=value,
            repeats=repeats,
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

    def _ending(self, running: _Running, result: Mapping[str, Any] | None, error: bool) -> Ending:
        ending = self._how_it_ended(running, result, error)
        has_result = len(self._ledger.trials[running.label].rungs) == len(self._fidelities)
        if has_result and ending.outcome != "finished":  # what came after it takes nothing back
            reason = f"after its last score: {ending.reason}"
            return Ending(outcome="finished", reason=reason, seconds=ending.seconds)
        return ending

    def _how_it_ended(
        self, running: _Running, result: Mapping[str, Any] | None, error: bool
    ) -> Ending:
        trial = self._ledger.trials[running.label]
        if error:
            reason = f"the trial's process ended: {running.death}"
            return Ending(outcome="failed", reason=reason, seconds=trial.seconds)
        if running.fault is not None:
            return Ending(outcome="failed", reason=running.fault, seconds=trial.seconds)
        assert result is not None, "a trial without an error has a result"
        self._take_flags(running.label, result)
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
        elif trial.role == "control":
            self._proposer.observe(trial)
        self._audience.tell(lambda listener: listener.on_trial_end(trial))
        self._see_that_some_train(trial)

    def _see_that_some_train(self, trial: TrialRecord) -> None:
        """End a sweep in which nothing gets as far as its first score: each would fail likewise."""
        failed = trial.outcome == "failed" and not trial.rungs
        self._num_failed_at_once = self._num_failed_at_once + 1 if failed else 0
        if self._num_failed_at_once >= max(MOST_FAILED, 3 * self._num_slots()):
            raise TrialsFail(
                f"the last {self._num_failed_at_once} trainings failed before their first score, "
                f"the last one so: {trial.reason}\nMend that and resume: what has failed stays so, "
                "the rest of the budget is left"
            )

    def _finish(self, trial: TrialRecord, ending: Ending) -> TrialRecord:
        return self._ledger.finish(
            trial.label,
            outcome=ending.outcome,
            reason=ending.reason,
            told=self._decisions.value_to_tell(trial, ending.outcome),
            seconds=ending.seconds,
            gpu_hours=ending.seconds / 3600 * self._spec.resources.gpus,
        )

    def _take_flags(self, label: str, result: Mapping[str, Any]) -> TrialRecord:
        """Write down what the health rules have said, if it is more than before."""
        flags = flags_of(result)
        trial = self._ledger.trials[label]
        return self._ledger.set_flags(label, flags) if flags != trial.flags else trial

    def _of(self, *roles: Role) -> list[TrialRecord]:
        return [trial for trial in self._ledger.trials.values() if trial.role in roles]
