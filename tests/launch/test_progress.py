import io
from dataclasses import replace

import pytest
from rich.console import Console

from launch import progress as progress_module
from launch.display import duration
from launch.progress import Picture, Progress, render, seconds_left
from sweeps import analysis
from sweeps.listeners import SweepContext
from sweeps.record import RungResult, TrialRecord
from sweeps.sections import FinalistsSpec
from sweeps.spec import parse_spec

SPEC = parse_spec(
    """
name: demo
train: {config: c.py, epochs: 2}
objective: {metric: NDS, noise: 0.005}
space:
  residual_weight: {low: 0.1, high: 0.9}
  optimizer.lr: {low: 1.0e-5, high: 1.0e-3, log: true}
stopping: {rule: safe, rungs: [0.5, 1.0], val_shares: [0.5, 1.0]}
budget: {trials: 3}
""",
    source="demo.yaml",
    knobs={},
    has_key=lambda key: True,
)


def trial(number=0, role="search", **changes):
    params = {"residual_weight": 0.1 * (number + 1), "optimizer.lr": 1e-4, "seed": 0}
    label = "control-0000aaaa" if role == "control" else f"t{number:03d}-0000aaaa"
    return replace(
        TrialRecord(
            number=number,
            label=label,
            role=role,
            params={"enable_aqr": False, "seed": 0} if role == "control" else params,
            sampled={} if role == "control" else params,
            seed=0,
            config_hash="0000aaaa",
            attempts=1,
        ),
        **changes,
    )


def rung(fraction, score, seconds):
    share = 1.0 if fraction == 1 else 0.5
    return RungResult(
        fraction=fraction,
        val_share=share,
        epoch=2 * fraction,
        step=int(100 * fraction),
        metrics={"val/nds": score},
        checkpoint=None,
        seconds=seconds,
    )


def at_rungs(given, *scores, outcome=None, reason=""):
    rungs = tuple(rung(0.5 * (i + 1), s, 30.0 * (i + 1)) for i, s in enumerate(scores))
    value = scores[-1] if outcome == "finished" else None
    return replace(
        given, rungs=rungs, outcome=outcome, reason=reason, value=value, seconds=rungs[-1].seconds
    )


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Ledger:
    def __init__(self, *trials):
        self.trials = {each.label: each for each in trials}


def play(progress, clock):
    """A control that finishes, a better trial, one that is stopped, one that runs."""
    control, first, second, third = trial(role="control"), trial(0), trial(1), trial(2)
    context = SweepContext(spec=SPEC, directory=None, ledger=Ledger(), resumed=False)
    progress.on_start(context)
    progress.on_trial_start(control)
    progress.on_trial_start(first)
    clock.now = 30.0
    progress.on_rung(at_rungs(control, 0.30), rung(0.5, 0.30, 30.0), None)
    clock.now = 60.0
    progress.on_trial_end(at_rungs(control, 0.30, 0.40, outcome="finished"))
    progress.on_trial_start(second)
    clock.now = 61.0
    progress.on_trial_end(at_rungs(first, 0.31, 0.43, outcome="finished"))
    progress.on_trial_start(third)
    clock.now = 90.0
    stopped = at_rungs(second, 0.2, outcome="stopped", reason="0.2000 is below the median\nmore")
    progress.on_trial_end(stopped)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=110, height=40, record=True, highlight=False)


def test_plain_lines_tell_each_event(console, clock):
    play(Progress(SPEC, console, live=False, clock=clock), clock)
    lines = console.export_text().splitlines()
    assert lines[0] == "[0:00:00]  sweep demo starts"
    assert lines[1] == "[0:00:00]  control starts: enable_aqr=False, seed=0"
    assert "[0:00:30]  control at 50% of the budget: NDS 0.3000 on 50% of the scenes" in lines
    assert any(line.startswith("[0:01:30]  t001 stopped: 0.2000 is below") for line in lines)
    assert "3 of 4 trials done, about 21 s left. Best so far * t000: NDS 0.4300" in lines[-1]


def test_the_table_shows_rungs_stops_and_the_best(console, clock):
    progress = Progress(SPEC, console, live=False, clock=clock)
    play(progress, clock)
    console.export_text()
    console.print(render(progress.picture, width=110))
    text = console.export_text()
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "0.3000  0.4000" in rows["control"]
    assert "t000 *" in rows["t000"]
    assert "+0.0300  finished" in rows["t000"]
    assert "stopped  0.2000 is below the median" in rows["t001"]
    assert "training 29 s" in rows["t002"]
    assert "3 of 4 trials, 1:30 min elapsed, about 21 s left" in text
    assert "(+0.0300 to the control)  residual_weight=0.1, lr=0.0001" in text


FINALS = SPEC.model_copy(
    update={
        "finalists": FinalistsSpec(top=1, seeds=2),
        "budget": SPEC.budget.model_copy(update={"trials": 1}),
    }
)


def test_finals_are_told_as_what_they_are(console, clock):
    progress = Progress(FINALS, console, live=False, clock=clock)
    context = SweepContext(spec=FINALS, directory=None, ledger=Ledger(), resumed=False)
    progress.on_start(context)
    for each in (trial(role="control"), trial(0)):
        progress.on_trial_start(each)
        progress.on_trial_end(at_rungs(each, 0.30, 0.40, outcome="finished"))
    control = trial(1, role="control", label="control2-0000aaaa", seed=1)
    final = trial(1, role="finalist", repeats=0, seed=1)
    for each, score in ((control, 0.41), (final, 0.43)):
        progress.on_trial_start(each)
        progress.on_trial_end(at_rungs(each, 0.31, score, outcome="finished"))
    text = console.export_text()
    assert "control2 (seed 1) starts:" in text
    assert "t001 (t000 with seed 1) starts:" in text
    # The control, one trial, and two rounds of both.
    assert "4 of 6 trials done" in text
    assert "Best so far * t000: NDS 0.4300 over 1 new seed (+0.0200 to the control" in text


def test_without_a_number_of_trials_there_is_no_share_of_it(console, clock):
    budget = SPEC.budget.model_copy(update={"trials": None, "hours": 5.0})
    progress = Progress(
        SPEC.model_copy(update={"budget": budget}), console, live=False, clock=clock
    )
    play(progress, clock)
    assert "3 trials done. Best so far * t000" in console.export_text()
    console.print(render(progress.picture, width=110))
    assert "3 trials, 1:30 min elapsed" in console.export_text()


def test_trials_may_begin_while_another_thread_draws(clock, monkeypatch):
    numbers = iter(range(2, 1000))

    def meanwhile():
        monkeypatch.setattr(picture, "_clock", clock)
        picture.start(trial(next(numbers)))

    class Busy(TrialRecord):
        def __getattribute__(self, name):
            if name == "role":
                meanwhile()
            return super().__getattribute__(name)

    def busy_clock():
        meanwhile()
        return 60.0

    def busy_duration(seconds):
        meanwhile()
        return duration(seconds)

    picture = Picture(SPEC, clock)
    picture.start(at_rungs(trial(0), 0.3))
    picture.start(Busy(**vars(trial(1))))
    assert [each.number for each in picture.started][:2] == [0, 1]
    monkeypatch.setattr(picture, "_clock", busy_clock)
    assert picture.left is not None
    monkeypatch.setattr(progress_module, "duration", busy_duration)
    assert picture.states()["t000-0000aaaa"].startswith("training")
    assert len(picture.trials) > 4


def test_what_ends_while_the_board_is_made_is_on_the_next_one(clock, monkeypatch):
    picture = Picture(SPEC, clock)
    picture.take(at_rungs(trial(0), 0.3, 0.4, outcome="finished"))
    leaderboard = analysis.leaderboard

    def slow(record):
        board = leaderboard(record)
        picture.take(at_rungs(trial(1), 0.3, 0.5, outcome="finished"))
        return board

    monkeypatch.setattr(analysis, "leaderboard", slow)
    assert picture.board().best.trial.number == 0
    monkeypatch.setattr(analysis, "leaderboard", leaderboard)
    assert picture.board().best.trial.number == 1
    assert picture.board() is picture.board()


def test_a_small_terminal_keeps_the_control_the_running_and_the_best(console, clock):
    progress = Progress(SPEC, console, live=False, clock=clock)
    play(progress, clock)
    console.export_text()
    console.print(render(progress.picture, width=110, max_rows=3))
    text = console.export_text()
    assert "t001" not in text
    assert "and 1 more" in text
    assert all(name in text for name in ("control", "t000", "t002"))


def test_a_narrow_terminal_keeps_the_state_rather_than_the_parameters(console, clock):
    progress = Progress(SPEC, console, live=False, clock=clock)
    play(progress, clock)
    console.export_text()
    console.width = 66
    console.print(render(progress.picture, width=66))
    text = console.export_text()
    assert "No room for lr." in text
    assert "stopped  0.2000 is" in text


def test_before_the_first_trial_it_says_what_is_awaited(console, clock):
    console.print(render(Picture(SPEC, clock), width=110))
    assert "Starting Ray" in console.export_text()


def test_a_resume_shows_what_stands(console, clock):
    progress = Progress(SPEC, console, live=False, clock=clock)
    done = at_rungs(trial(0), 0.3, 0.4, outcome="finished")
    known = replace(trial(1), role="known", outcome="finished", value=0.5)
    progress.on_start(
        SweepContext(spec=SPEC, directory=None, ledger=Ledger(done, known), resumed=True)
    )
    assert "1 trials of before stand" in console.export_text()
    assert [each.label for each in progress.picture.started] == [done.label]


def test_the_live_table_draws_and_shows_warnings(clock):
    console = Console(
        file=io.StringIO(), width=110, height=40, force_terminal=True, highlight=False
    )
    with Progress(SPEC, console, live=True, clock=clock) as progress:
        play(progress, clock)
        progress.warn("MLflow cannot be written")
    text = console.file.getvalue()
    assert "MLflow cannot be written" in text
    assert "t002" in text


@pytest.mark.parametrize(
    ("trials", "elapsed", "total", "expected"),
    [
        ([], {}, 4, None),
        ([trial(0)], {"a": 5.0}, 4, None),
        # A rung at half the budget after 30 s: a trial takes 60 s, one runs, two wait.
        ([at_rungs(trial(0), 0.3)], {"a": 30.0}, 3, 30 + 120),
        # Two run at once, four wait.
        ([at_rungs(trial(i), 0.3, 0.4, outcome="finished") for i in range(2)]
         + [trial(2), trial(3)], {"a": 0.0, "b": 60.0}, 8, (60 + 240) / 2),
        # The last one decides.
        ([at_rungs(trial(0), 0.3, 0.4, outcome="finished"), trial(1)], {"a": 20.0}, 2, 40),
    ],
)  # fmt: skip
def test_time_left(trials, elapsed, total, expected):
    assert seconds_left(trials, elapsed, total=total) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1:00 min"), (3599, "59:59 min"), (8100, "2:15 h")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
