import heapq
import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.budget import Course, Progress, next_step

PLAIN = Course(num_controls=1, num_finals=0, gpus=1, trials=4)
FINALS = replace(PLAIN, num_finals=6)


@pytest.mark.parametrize(
    ("course", "now", "expected"),
    [
        (PLAIN, {}, ("control", None)),
        (PLAIN, {"num_controls": 1}, ("search", None)),
        (PLAIN, {"num_controls": 1, "num_searched": 3, "num_search_running": 3}, ("search", None)),
        (PLAIN, {"num_controls": 1, "num_searched": 4}, ("end", "trials")),
        (PLAIN, {"num_controls": 1, "num_searched": 4, "num_search_running": 1}, ("end", "trials")),
        (
            FINALS,
            {"num_controls": 1, "num_searched": 4, "num_search_running": 1},
            ("wait", "trials"),
        ),
        (FINALS, {"num_controls": 1, "num_searched": 4}, ("finals", "trials")),
        (FINALS, {"num_controls": 1, "num_searched": 3, "num_finals": 1}, ("finals", None)),
        # GPU-hours: spent, and the finals' share of what is left.
        (replace(PLAIN, gpu_hours=10), {"num_controls": 1, "trial_hours": 9.9}, ("search", None)),
        (
            replace(PLAIN, gpu_hours=10),
            {"num_controls": 1, "trial_hours": 10},
            ("end", "gpu_hours"),
        ),
        (
            replace(PLAIN, gpu_hours=10, gpus=8),
            {"num_controls": 1, "trial_hours": 1.25},
            ("end", "gpu_hours"),
        ),
        (
            replace(FINALS, gpu_hours=10),
            {"num_controls": 1, "num_searched": 1, "trial_hours": 4, "full_hours": 0.9},
            ("search", None),
        ),
        (
            replace(FINALS, gpu_hours=10),
            {"num_controls": 1, "num_searched": 1, "trial_hours": 4, "full_hours": 1.0},
            ("finals", "gpu_hours"),
        ),
        (
            replace(FINALS, gpu_hours=10),
            {"num_controls": 1, "num_finals": 2, "trial_hours": 10},
            ("end", "gpu_hours"),
        ),
        # What running trials will take is spoken for; it may come back if they are stopped.
        (
            replace(PLAIN, gpu_hours=10),
            {"num_controls": 1, "trial_hours": 8, "rest_hours": 2, "num_search_running": 2},
            ("wait", None),
        ),
        (
            replace(PLAIN, gpu_hours=10),
            {"num_controls": 1, "trial_hours": 8, "rest_hours": 1, "num_search_running": 2},
            ("search", None),
        ),
        # Hours: finals go side by side.
        (replace(PLAIN, hours=5), {"num_controls": 1, "hours": 5}, ("end", "hours")),
        (
            replace(FINALS, hours=5),
            {"num_controls": 1, "num_searched": 1, "hours": 2, "full_hours": 1.0, "slots": 3},
            ("search", None),
        ),
        # They wait for the last searched trial, which takes its time too.
        (
            replace(FINALS, hours=5),
            {"num_controls": 1, "num_searched": 1, "hours": 2.1, "full_hours": 1.0, "slots": 3},
            ("finals", "hours"),
        ),
        (
            replace(PLAIN, hours=5),
            {"num_controls": 1, "num_searched": 1, "hours": 4.9, "full_hours": 1.0, "slots": 3},
            ("search", None),
        ),
        # Nothing is to be repeated yet.
        (
            replace(FINALS, hours=5),
            {"num_controls": 1, "hours": 2.9, "full_hours": 1.0, "slots": 3},
            ("search", None),
        ),
        (
            replace(FINALS, hours=5),
            {"num_controls": 1, "hours": 3, "full_hours": 1.0, "slots": 3},
            ("finals", "hours"),
        ),
        (
            replace(FINALS, hours=5),
            {"num_controls": 1, "num_finals": 1, "hours": 5},
            ("end", "hours"),
        ),
        # The control comes first whatever has been spent.
        (replace(PLAIN, hours=5), {"hours": 9}, ("control", None)),
    ],
)
def test_what_comes_next(course, now, expected):
    step = next_step(course, Progress(**now))
    assert (step.next, step.limit) == expected
    assert bool(step.reason) == (step.limit is not None)


def trainings_until(hours: float, num_finals: int, *, spread: float, seed: int) -> list[str]:
    """What begins on 8 slots, where a training takes 2.3 hours on average."""
    course = Course(num_controls=1, num_finals=num_finals, gpus=1, hours=hours)
    rng = np.random.default_rng(seed)
    kinds: list[str] = []
    ends: list[tuple[float, str, float]] = []  # (when, what, how long)
    took: list[float] = []
    now = 0.0
    while True:
        while len(ends) < 8 and kinds.count("finals") < max(1, num_finals):
            running = [kind for _, kind, _ in ends]
            step = next_step(
                course,
                Progress(
                    num_controls=kinds.count("control"),
                    num_searched=kinds.count("search"),
                    num_search_running=running.count("search"),
                    num_finals=kinds.count("finals"),
                    hours=now,
                    full_hours=fmean(took) if took else None,
                    slots=8,
                ),
            )
            if step.next in ("wait", "end"):
                break
            length = 2.3 * (1 + spread * rng.standard_normal())
            kinds.append(step.next)
            heapq.heappush(ends, (now + length, step.next, length))
        if not ends:
            return kinds
        now, _, length = heapq.heappop(ends)
        took.append(length)


@pytest.mark.parametrize("spread", [0.05, 0.1])
@pytest.mark.parametrize("num_finals", [6, 12])
def test_the_last_searched_trials_do_not_take_the_hours_of_the_finals(
    spread: float, num_finals: int
) -> None:
    sweeps = [trainings_until(72, num_finals, spread=spread, seed=seed) for seed in range(100)]
    assert {kinds.count("finals") for kinds in sweeps} == {num_finals}
    # A slot holds 31 trainings one after the other; the search leaves no more than it must.
    rounds = math.ceil(num_finals / 8)
    assert all(kinds.count("search") >= 8 * (29 - rounds) for kinds in sweeps)


@given(
    trials=st.none() | st.integers(1, 5),
    gpu_hours=st.none() | st.floats(0.5, 30),
    hours=st.none() | st.floats(0.5, 30),
    num_finals=st.integers(0, 6),
    slots=st.integers(1, 4),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_every_sweep_with_a_limit_ends_and_keeps_its_order(
    trials, gpu_hours, hours, num_finals, slots, data
):
    if trials is None and gpu_hours is None and hours is None:
        trials = 3
    course = Course(
        num_controls=1,
        num_finals=num_finals,
        gpus=2,
        trials=trials,
        gpu_hours=gpu_hours,
        hours=hours,
    )
    # Trials of one hour, some of which end halfway; time goes in half hours.
    kinds: list[str] = []
    running: list[list] = []
    spent = clock = 0.0
    has_full = False
    for _ in range(1000):
        while len(running) < slots:
            now = Progress(
                num_controls=kinds.count("control"),
                num_searched=kinds.count("search"),
                num_search_running=sum(kind == "search" for kind, _ in running),
                num_finals=kinds.count("finals"),
                trial_hours=spent,
                rest_hours=sum(left for _, left in running) if has_full else 0.0,
                hours=clock,
                full_hours=1.0 if has_full else None,
                slots=slots,
            )
            step = next_step(course, now)
            if step.next in ("wait", "end"):
                break
            if step.next == "finals" and now.num_finals == num_finals:
                break
            kinds.append(step.next)
            running.append([step.next, data.draw(st.sampled_from([0.5, 1.0]))])
        if not running:
            assert step.next != "wait"
            break
        clock += 0.5
        spent += 0.5 * len(running)
        for each in running:
            each[1] -= 0.5
        has_full = has_full or any(left <= 0 for _, left in running)
        running = [each for each in running if each[1] > 0]
    else:
        pytest.fail("the sweep never ends")
    order = ["control", "search", "finals"]
    assert kinds == sorted(kinds, key=order.index)
    if trials is not None:
        assert kinds.count("search") <= trials
    assert kinds.count("finals") <= num_finals
    if gpu_hours is not None:
        # Before the first end nobody knows what a training takes: all slots may have begun.
        assert 2 * spent <= max(gpu_hours, 2.0 * (slots + 1)) + 2.0 * slots
