"""What becomes of a trial whose process has died: tried again, or ended where that is hopeless.

Ray counts deaths and replaces processes, at most so often; here is what Ray does not do: lack of
memory is told apart, and the next process learns how far the last one came.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.experiment import Trial

from sweeps.gang import kills_since
from sweeps.memory import LESS_AT_ONCE, advice_for_death
from sweeps.silence import account_of
from sweeps.task import EVENT_KEY, TASK_KEY, Mark, Task, from_result
from sweeps.trials import RungResult

_LOST = "ProcessLost: "  # of `sweeps.training`, where Ray puts it into a traceback's text


class Retries:
    """Prepares the next attempt at trials whose processes died.

    Args:
        trials_dir: Holds one directory a trial.
        note_death: Takes Tune's trial id and the reason.
        note_restart: Takes Tune's trial id when another attempt is made.
    """

    def __init__(
        self,
        trials_dir: Path,
        *,
        note_death: Callable[[str, str], None],
        note_restart: Callable[[str], None],
    ) -> None:
        self._trials_dir = trials_dir
        self._note_death, self._note_restart = note_death, note_restart
        self._deaths: dict[str, str] = {}

    def take_death(self, trial: Trial, said: str) -> None:
        """Take in what Ray said about a process that died, and what it left itself."""
        task = Task(**json.loads(trial.config[TASK_KEY]))
        _, _, lost = said.rpartition(_LOST)
        hung = account_of(self._trials_dir / task.label, task.attempt)
        reason = hung or advice_for_death(lost) or lost.strip()
        self._deaths[trial.trial_id] = reason
        self._note_death(trial.trial_id, reason)

    def prepare(self, trial: Trial) -> None:
        """Give the trial's next process its task; Tune has found that there may be one."""
        task = Task(**json.loads(trial.config[TASK_KEY]))
        doom = self._doom(task, self._deaths.get(trial.trial_id, ""))
        attempt = task.attempt
        if doom is None:
            self._note_restart(trial.trial_id)
            attempt += 1
        event = from_result(trial.last_result) if EVENT_KEY in trial.last_result else None
        task = replace(task, attempt=attempt, doom=doom)
        if isinstance(event, RungResult):
            task = replace(task, checkpoint=event.checkpoint, seconds=event.seconds)
        trial.set_config({**trial.config, TASK_KEY: task.to_json()})

    def _doom(self, task: Task, said: str) -> str | None:
        """Why the trial must not be tried again: it would take as much memory again."""
        if said.startswith(LESS_AT_ONCE):
            return said
        mark = Mark.read(self._trials_dir / task.label)
        if mark is None or (count := kills_since(mark.node, mark.num_killed)) == 0:
            return None
        return f"{LESS_AT_ONCE}. The kernel has killed {count} for memory there meanwhile. {said}"


@contextmanager
def memory_kills_are_deaths() -> Iterator[None]:
    """Let Tune take a process that Ray's memory monitor killed for one that died.

    Reason: Ray 2.60's monitor raises an exception of its own, which Tune's actor manager does not
    expect; it ends the whole experiment with it.
    Goes when: `RayActorManager` takes OutOfMemoryError for the end of an actor.
    """
    kept: Any = RayActorManager._actor_task_failed

    def take(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        kept(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = take  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = kept
