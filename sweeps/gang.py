"""The processes of one trial on several GPUs: Ray actors in the placement group of the trial.

The trainable leads: it starts one worker in each bundle and asks each for its next event. Rank 0's
reports come to it as events, are carried out there, and their answer (which may be to stop) goes
back. When a worker dies or fails, the others are ended with it.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from sweeps.memory import LESS_AT_ONCE, OutOfMemory, advice_for_death, num_killed
from sweeps.seat import Seat, must_leave
from sweeps.training import GangFailed, ProcessLost, Report, TrialStopped
from sweeps.worker import Call, End, Place, Training, Worker

# Processes start and import within this time, or the gang is given up.
START_TIMEOUT_S = 300.0
# After one has ended, the others may take so long to notice.
END_TIMEOUT_S = 45.0
POLL_S = 0.5
PROBE_TIMEOUT_S = 10.0


class Gang:
    """The workers of a trial, led from its trainable; they serve its next trial as well.

    Args:
        group: The placement group of the trial; each bundle holds one worker.
        num_threads: For the numerical libraries of one worker.
    """

    def __init__(self, group: PlacementGroup, num_threads: int) -> None:
        self._group, self._num_threads = group, num_threads
        self._bundles = group.bundle_specs
        self._workers: list[Any] = []
        self._places: list[Place] = []
        self._has_passed_on = False

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self._bundles)

    def train(self, training: Training, report: Report, check: Callable[[], None]) -> None:
        """Train in all workers to the end.

        Args:
            training: What each is called with.
            report: Takes what rank 0 reports.
            check: Called now and then; what it raises ends the training at once.

        Raises:
            TrialStopped: If the report or `check` said so.
            TrialPreempted: If a process was told to leave; the state is saved.
            FloatingPointError: If the training diverged.
            OutOfMemory: If a process ran out of memory.
            ProcessLost: If a process died, did not start, or did not end.
            GangFailed: If the training failed; says in which rank, and how.
        """
        ends: dict[int, End] = {}
        try:
            self._start()
            self._begin(training)
            self._lead(ends, report, check)
        except RayTaskError as error:
            raise GangFailed(str(error)) from error
        except RayError as error:
            raise ProcessLost(f"the gang could not start: {error}") from error
        finally:
            # Workers that have ended by themselves can train again.
            if not _all_well(ends, self.size):
                self.close()
        _raise_for(ends, self.size)

    def close(self) -> None:
        """End all workers at once."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers, self._places = [], []

    def _start(self) -> None:
        """See that there is a worker in each bundle."""
        if not self._workers:
            self._workers = [self._new_worker(rank) for rank in range(self.size)]
        refs = [worker.place.remote() for worker in self._workers]
        self._places = ray.get(refs, timeout=START_TIMEOUT_S)

    def _new_worker(self, rank: int) -> Any:
        bundle = dict(self._bundles[rank])
        options: dict[str, Any] = {
            "num_cpus": bundle.pop("CPU", 0),
            "num_gpus": bundle.pop("GPU", 0),
            "resources": bundle,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=rank
            ),
        }
        return ray.remote(Worker).options(**options).remote(self._num_threads)

    def _begin(self, training: Training) -> None:
        port: Any = ray.get(self._workers[0].listen.remote(), timeout=START_TIMEOUT_S)
        begun = []
        for rank, (worker, place) in enumerate(zip(self._workers, self._places, strict=True)):
            visible = visible_gpus(self._places, place.node)
            seat = Seat(
                rank=rank,
                size=self.size,
                local_rank=visible.index(place.gpus[0]) if place.gpus else 0,
                address=self._places[0].address,
                port=port,
            )
            begun.append(worker.begin.remote(training, seat, ",".join(visible)))
        ray.get(begun, timeout=START_TIMEOUT_S)

    def _lead(self, ends: dict[int, End], report: Report, check: Callable[[], None]) -> None:
        """Carry out what rank 0 says, until all have ended, or one has in a way that ends all."""
        waiting = {worker.next.remote(): rank for rank, worker in enumerate(self._workers)}
        deadline: float | None = None
        while waiting and not any(end.is_cause for end in ends.values()):
            if deadline is None:
                check()
            elif time.monotonic() > deadline:
                return
            self._pass_on_notice()
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_S)
            is_told = False
            for ref in ready:
                rank = waiting.pop(ref)
                event = self._take(ref, rank)
                if isinstance(event, Call):
                    answer = _carry_out(report, event)
                    is_told = isinstance(answer, TrialStopped)
                    waiting[self._workers[rank].next.remote(answer, is_answer=True)] = rank
                else:
                    ends[rank] = event
            # Others may end before rank 0, which has a state to save; after it, or with an error
            # that another caused, all of them end soon, and so they do when rank 0 is told to stop.
            is_over = is_told or 0 in ends or any(end.is_echo for end in ends.values())
            if deadline is None and is_over:
                deadline = time.monotonic() + END_TIMEOUT_S

    def _take(self, ref: Any, rank: int) -> Call | End:
        """A worker's event, or what became of the worker."""
        try:
            return ray.get(ref)
        except OutOfMemoryError as error:
            advice = advice_for_death(str(error)) or f"{LESS_AT_ONCE}. {error}"
            raise OutOfMemory(f"rank {rank} of {self.size}: {advice}") from error
        except RayTaskError:
            raise
        except RayError as error:
            place = self._places[rank]
            who = f"rank {rank} of {self.size} on {place.address} (process {place.pid})"
            if (count := kills_since(place.node, place.num_killed)) > 0:
                raise OutOfMemory(
                    f"{who} died, {LESS_AT_ONCE}. The kernel has killed {count} for memory there "
                    f"meanwhile. {error}"
                ) from error
            raise ProcessLost(f"{who} died: {error}") from error

    def _pass_on_notice(self) -> None:
        """Tell rank 0 what this process was told; it stands on the same node, in bundle 0."""
        if must_leave() and not self._has_passed_on:
            self._has_passed_on = True
            os.kill(self._places[0].pid, signal.SIGTERM)


def visible_gpus(places: Sequence[Place], node: str) -> list[str]:
    """The GPUs that a gang has on a node."""
    return sorted({gpu for place in places if place.node == node for gpu in place.gpus})


def kills_since(node: str, before: int | None) -> int:
    """How many processes the kernel has killed for memory on a node since it had killed some."""
    if before is None:
        return 0
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    probe: Any = ray.remote(num_killed).options(num_cpus=0, scheduling_strategy=strategy)
    try:
        now: Any = ray.get(probe.remote(), timeout=PROBE_TIMEOUT_S)
    except RayError:  # the node is gone, too: it was not the memory of one process
        return 0
    return max(0, (now or 0) - before)


def _carry_out(report: Report, call: Call) -> Exception | None:
    """Report what rank 0 says; what this raises is raised there."""
    try:
        getattr(report, call.method)(*call.args, **call.named)
    except Exception as error:  # noqa: BLE001
        return error
    return None


def _all_well(ends: Mapping[int, End], size: int) -> bool:
    """Whether all workers have ended as they should: at their end, or told to stop."""
    first = ends.get(0)
    if first is None or len(ends) < size:
        return False
    is_stopped = isinstance(first.error, TrialStopped)
    return all(end.error is None or is_stopped for end in ends.values())


def _raise_for(ends: Mapping[int, End], size: int) -> None:
    """Raise what ended a training: its first cause, in the order in which they came."""
    errors = [end for end in ends.values() if end.error is not None]
    for end in sorted(errors, key=lambda end: (end.is_echo, not end.is_cause)):
        if end.is_echo:
            # Nobody failed by itself: the processes have lost each other.
            raise ProcessLost(str(end.error))
        assert end.error is not None
        raise end.error
    if late := sorted(set(range(size)) - set(ends)):
        raise ProcessLost(f"rank {', '.join(map(str, late))} of {size} did not end with the others")
