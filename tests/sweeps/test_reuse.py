from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.execution.tune_controller import TuneController

from sweeps.reuse import starting_processes_are_kept


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
