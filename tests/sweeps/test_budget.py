from dataclasses import replace

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
