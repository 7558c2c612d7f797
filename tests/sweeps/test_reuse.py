from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal import RayActorManager, TrackedActor
from ray.exceptions import RayActorError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from sweeps.reuse import deaths_in_a_reset_are_deaths, starting_processes_are_kept


def controller(*, own: str | None, starts: bool, resets: bool = False) -> Any:
    return SimpleNamespace(
        _trial_to_actor={} if own is None else {"trial": own},
        _resetting_trials={"trial"} if resets else set(),
        _actor_manager=SimpleNamespace(is_actor_started=lambda actor: starts),
    )


@pytest.mark.parametrize(
    ("state", "takes_the_free_one"),
    [
        (controller(own=None, starts=False), True),
        (controller(own="process", starts=True), False),
        # It waits for resources, which the free process may hold.
        (controller(own="process", starts=False), True),
        # It has taken one and is about to begin in it.
        (controller(own="process", starts=True, resets=True), True),
    ],
)
def test_only_a_process_that_starts_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, state: Any, takes_the_free_one: bool
) -> None:
    monkeypatch.setattr(TuneController, "_maybe_reuse_cached_actor", lambda self, trial: True)
    by_ray = TuneController._maybe_reuse_cached_actor
    trial: Any = "trial"
    with starting_processes_are_kept():
        assert TuneController._maybe_reuse_cached_actor(state, trial) is takes_the_free_one
    assert TuneController._maybe_reuse_cached_actor is by_ray


class PlayedTrial:
    """What Tune's controller asks of a trial."""

    placement_group_factory = "one place"
    config: dict[str, Any] = {}  # noqa: RUF012
    experiment_tag = trial_id = ""
    log_to_file = (None, None)
    is_saving = is_restoring = False
    storage = None

    def __init__(self, retries: int) -> None:
        self.status = Trial.PENDING
        self.errors: list[Exception] = []
        self.temporary_state = SimpleNamespace(saving_to=None, restoring_from=None)
        self._retries = retries

    def handle_error(self, error: Exception) -> None:
        self.errors.append(error)

    def should_recover(self) -> bool:
        return len(self.errors) <= self._retries

    def set_status(self, status: str) -> None:
        self.status = status

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None  # its setters


class PlayedController(TuneController):
    """Tune's own handling of failures, with a trial that is given a free process."""

    def __init__(self, trial: Any) -> None:
        self.told: list[str] = []
        self.tasks: list[Any] = []
        self.process = TrackedActor(1, on_error=self._actor_failed)
        self._trials, self._live_trials = [trial], {trial}
        self._trial_to_actor, self._actor_to_trial = {trial: self.process}, {self.process: trial}
        self._pending_trials, self._staged_trials = {trial}, {trial}
        self._pending_trials_list = []
        self._running_trials, self._paused_trials = set(), set()
        self._stopped_trials, self._failed_trials, self._resetting_trials = set(), set(), set()
        self._trials_to_cache, self._started_actors = set(), {self.process}
        self._stopping_actors, self._cached_trial_decisions = {}, {}
        self._resources_to_pending_trials = defaultdict(set)
        self._fail_fast = self._print_trial_errors = self._reuse_actors = False
        self._iteration = 0
        self._actor_cache: Any = SimpleNamespace(decrease_max=lambda resources: None)
        self._actor_manager: Any = SimpleNamespace(
            schedule_actor_task=lambda **named: self.tasks.append(named),
            clear_actor_task_futures=lambda tracked_actor: None,
            remove_actor=lambda tracked_actor, **named: False,  # it has failed already
        )
        self._scheduler_alg: Any = SimpleNamespace(
            on_trial_error=lambda controller, trial: self.told.append("death"),
            on_trial_add=lambda controller, trial: None,
        )
        self._search_alg: Any = SimpleNamespace(
            on_trial_complete=lambda trial_id, error: self.told.append("failed")
        )
        self._callbacks: Any = SimpleNamespace(
            on_trial_recover=lambda **named: self.told.append("retry"),
            on_trial_error=lambda **named: None,
        )

    def _wrapped(self) -> Any:
        return None

    def _remove_actor(self, tracked_actor: TrackedActor) -> None:
        pass

    def lose_process(self) -> None:
        """What Ray does when the process dies before it has answered the reset."""
        (task,) = self.tasks
        manager: Any = SimpleNamespace(
            _failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None
        )
        lost: Any = SimpleNamespace(_tracked_actor=self.process, _on_error=task["on_error"])
        RayActorManager._actor_task_failed(manager, lost, RayActorError())


@pytest.mark.parametrize(
    ("retries", "told", "status"),
    [(1, ["death", "retry"], Trial.PENDING), (0, ["death", "failed"], Trial.ERROR)],
)
def test_a_process_that_dies_as_it_takes_up_a_trial_costs_one_attempt(
    retries: int, told: list[str], status: str
) -> None:
    trial: Any = PlayedTrial(retries)
    by_ray = TuneController._actor_failed
    with starting_processes_are_kept():
        played = PlayedController(trial)
        played._schedule_trial_reset(trial, {}, "")
        played.lose_process()
    assert played.told == told
    assert trial.status == status
    assert len(trial.errors) == 1
    # Nothing is left of that process: the trial may be given another.
    assert not played._resetting_trials
    assert not played._staged_trials
    assert not played._trial_to_actor
    assert (trial in played._pending_trials) == (status == Trial.PENDING)
    assert TuneController._actor_failed is by_ray


def test_a_process_that_does_not_start_is_left_to_ray() -> None:
    trial: Any = PlayedTrial(1)
    with deaths_in_a_reset_are_deaths():
        played = PlayedController(trial)
        played._actor_failed(played.process, RayActorError())
    assert trial.status == Trial.PENDING
    assert len(trial.errors) == 1
