"""Processes of trials that are handed on to the next trial instead of started anew."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal import TrackedActor
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial


@contextmanager
def starting_processes_are_kept() -> Iterator[None]:
    """Let a trial whose process is starting wait for it, rather than take over one that is free.

    With `deaths_in_a_reset_are_deaths`, for the processes that are handed on after all.

    Reason: Ray 2.60 kills the process that starts and gives its trial the free one. The trial after
    that then waits for a process that starts from nothing, and where trials are short all but one
    place on the cluster wait for ever. The free process is needed by that next trial.
    Goes when: `TuneController` gives free processes to trials that have none.
    """
    kept: Any = TuneController._maybe_reuse_cached_actor

    def reuse(self: TuneController, trial: Trial) -> bool:
        own = self._trial_to_actor.get(trial)
        # What has its resources and starts will run; what still waits for resources might not.
        if own is not None and trial not in self._resetting_trials:
            if self._actor_manager.is_actor_started(own):
                return False
        return kept(self, trial)

    TuneController._maybe_reuse_cached_actor = reuse  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with deaths_in_a_reset_are_deaths():
            yield
    finally:
        TuneController._maybe_reuse_cached_actor = kept


@contextmanager
def deaths_in_a_reset_are_deaths() -> Iterator[None]:
    """Let a trial that loses a process it has just been given lose it as one that trains does.

    Reason: Ray 2.60 calls back twice, for the process and for the reset that it does not answer.
    The first callback takes the trial, which is pending, for one whose process did not start, and
    queues it anew; the second finds it pending and ends it, whatever retries are left. A trial that
    runs is left to the second callback alone.
    Goes when: `TuneController._actor_failed` tells trials in `_resetting_trials` apart.
    """
    kept: Any = TuneController._actor_failed

    def fail(self: TuneController, tracked_actor: TrackedActor, exception: Exception) -> None:
        trial = self._actor_to_trial[tracked_actor]
        if trial in self._resetting_trials:
            self._resetting_trials.remove(trial)
            self._unstage_trial_with_resources(trial)
            self._set_trial_status(trial, Trial.RUNNING)
        kept(self, tracked_actor, exception)

    TuneController._actor_failed = fail  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        TuneController._actor_failed = kept
