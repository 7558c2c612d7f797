"""Processes of trials that are handed on to the next trial instead of started anew."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial


@contextmanager
def starting_processes_are_kept() -> Iterator[None]:
    """Let a trial whose process is starting wait for it, rather than take over one that is free.

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
        yield
    finally:
        TuneController._maybe_reuse_cached_actor = kept
