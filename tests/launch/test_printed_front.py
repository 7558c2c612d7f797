"""What the terminal shows of several objectives."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from launch.display import objective_header
from launch.plan import _further_objectives, _risk_of
from launch.progress import Picture, Progress, best_line, render
from launch.results import _others_on_front, print_result
from sweeps.forecast import forecast
from sweeps.listeners import SweepContext
from sweeps.record import Ledger, RungResult, SweepRecord, TrialRecord
from sweeps.spec import SweepSpec, parse_spec
from sweeps.stopping import Verdict

TEXT = """
name: demo
train: {{config: c.py, epochs: 2}}
objective: {objective}
space:
  residual_weight: {{low: 0.1, high: 0.9}}
stopping: {{rule: safe, rungs: [0.5, 1.0]}}
control: {control}
budget: {{trials: 4}}
storage: {{path: runs}}
"""
SEVERAL = (
    "{metric: NDS, noise: 0.004, also: [{metric: time, noise: 1.0}, "
    "{metric: AP, classes: [car, bus], noise: 0.01}]}"
)


def spec_of(objective: str = SEVERAL, control: str = "true") -> SweepSpec:
    text = TEXT.format(objective=objective, control=control)
    return parse_spec(text, source="demo.yaml", knobs={}, has_key=lambda key: True)


SPEC = spec_of()


def trial(number: int, nds: float, seconds: float, ap: float, **changes) -> TrialRecord:
    rungs = tuple(
        RungResult(
            fraction=fraction,
            val_share=1.0,
            epoch=2 * fraction,
            step=int(100 * fraction),
            metrics={"val/nds": nds * fraction, "val/ap/car": ap - 0.1, "val/ap/bus": ap + 0.1},
            checkpoint=None,
            seconds=seconds * fraction,
        )
        for fraction in (0.5, 1.0)
    )
    made = TrialRecord(
        number=number,
        label=f"t{number:03d}-0000aaaa",
        role="search",
        params={"residual_weight": 0.2, "seed": 0},
        sampled={"residual_weight": 0.2},
        seed=0,
        config_hash="0000aaaa",
        rungs=rungs,
        outcome="finished",
        value=nds,
        told=nds,
        seconds=seconds,
        attempts=1,
    )
    return replace(made, **changes)


CONTROL = trial(0, 0.41, 50.0, 0.3, label="control-0000aaaa", role="control", sampled={})
TRIALS = (
    trial(0, 0.42, 60.0, 0.31),
    trial(1, 0.43, 80.0, 0.30),
    trial(2, 0.40, 90.0, 0.25),
    trial(3, 0.30, 90.0, 0.25, outcome=None, value=None, told=None, rungs=()),
)


@pytest.fixture
def record() -> SweepRecord:
    attrs = {"metric": "val/nds", "mode": "max", "noise": 0.004, "spec": SPEC.dump()}
    return SweepRecord(name="demo", trials=TRIALS, control=CONTROL, attrs=attrs)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=120, record=True, highlight=False)


def row(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if name in line.split()[:2])


def test_the_leaderboard_has_all_objectives_and_the_front(
    record: SweepRecord, console: Console
) -> None:
    print_result(console, record, SPEC)
    text = console.export_text()
    assert row(text, "t001")[:4] == ["1", "t001", "0.4300", "+0.0200"]
    assert "80.00 s" in next(line for line in text.splitlines() if "t001  " in line)
    assert row(text, "t000")[-3:] == ["0.3100", "front", "0.2"]
    assert row(text, "control")[-4:] == ["50.00", "s", "0.3000", "0.2"]
    assert "front" not in row(text, "t002")
    plain = " ".join(text.split())
    assert "Front of 2 by NDS, time, AP(car, bus): t001 (0.4300, 80.00 s, 0.3000), t000 (" in plain
    assert "Best by NDS is t001." in plain
    assert "Differences of two single values that count as ties: NDS 0.0113" in plain


def test_the_table_of_trials_marks_the_front(console: Console) -> None:
    picture = Picture(SPEC, lambda: 0.0)
    for each in (CONTROL, *TRIALS):
        picture.take(each)
    console.print(render(picture, width=120))
    text = console.export_text()
    assert row(text, "t001")[:3] == ["t001", "*", "+"]
    assert row(text, "t000")[:2] == ["t000", "+"]
    assert row(text, "t002")[1] != "+"
    assert row(text, "t001")[-5:] == ["80.00", "s", "0.3000", "+0.0200", "finished"]
    assert "* best NDS, + on the front" in text
    assert "NDS, time, AP(car, bus) of the control + 4 trials" in text
    assert "Front of 2 by NDS" in text


def test_a_narrow_terminal_keeps_the_objectives(console: Console) -> None:
    picture = Picture(SPEC, lambda: 0.0)
    for each in (CONTROL, *TRIALS):
        picture.take(each)
    console.width = 80
    console.print(render(picture, width=80))
    text = console.export_text()
    assert "No room for residual_weight." in text
    assert "80.00 s" in text


def test_plain_lines_tell_all_objectives(console: Console) -> None:
    progress = Progress(SPEC, console, live=False, clock=lambda: 0.0)

    ledger = cast(Ledger, SimpleNamespace(trials={}))
    progress.on_start(SweepContext(spec=SPEC, directory=Path(), ledger=ledger, resumed=False))
    progress.on_rung(TRIALS[1], TRIALS[1].rungs[0], Verdict(stop=False, reason="first"))
    progress.on_trial_end(TRIALS[1])
    text = console.export_text()
    assert "t001 at 50% of the budget: NDS 0.2150, time 40.00 s, AP(car, bus) 0.3000" in text
    assert "Front of 1 by NDS, time, AP(car, bus): t001 (0.4300, 80.00 s, 0.3000)." in text


def test_before_the_first_result_there_is_no_front() -> None:
    picture = Picture(SPEC, lambda: 0.0)
    picture.take(TRIALS[3])
    assert best_line(picture.board()) == "No trial has its full-budget NDS yet."


def test_an_export_says_what_else_is_on_the_front(record: SweepRecord) -> None:
    told = _others_on_front(record, TRIALS[1], "demo").splitlines()
    assert told[1] == "t001 is the best NDS of the front. Also on it:"
    line = "  t000  NDS 0.4200, time 60.00 s, AP(car, bus) 0.3100  aqr-sweep export demo --trial 0"
    assert told[2:] == [line]
    assert "t000 is on the front. Also on it:" in _others_on_front(record, TRIALS[0], "demo")
    assert "t002 is not on the front. Also" in _others_on_front(record, TRIALS[2], "demo")
    alone = replace(record, trials=TRIALS[1:2])
    assert _others_on_front(alone, TRIALS[1], "x") == "\nt001 is the best NDS of the front, alone."
    single = replace(record, attrs={"metric": "val/nds", "mode": "max", "noise": 0.004})
    assert _others_on_front(single, TRIALS[1], "demo") == ""


def test_the_plan_names_all_objectives_with_their_noise() -> None:
    assert list(_further_objectives(SPEC)) == [
        ("also", "time, training seconds, min; noise 1.00 s"),
        ("also", "AP(car, bus), max; noise 0.0100"),
        ("best", "the Pareto front of all 3; where one trial is asked for, its best NDS"),
    ]
    unknown = spec_of("{noise: 0.004, also: [{metric: time}]}")
    told = dict(_further_objectives(unknown))["also"]
    assert told.endswith("min; noise neither given nor measured: every difference counts")
    measured = spec_of("{noise: 0.004, also: [{metric: mAP}]}")
    told = dict(_further_objectives(measured))["also"]
    assert told == "mAP, max; noise measured by 3 seeds of the control"
    assert list(_further_objectives(spec_of("{noise: 0.004}"))) == []


def test_the_plan_says_what_its_risk_is_of() -> None:
    expected = forecast(SPEC, full_hours=None, slots=1)
    assert "by NDS; a trial ends early only where it is behind on all" in _risk_of(SPEC, expected)
    assert "objectives" not in _risk_of(spec_of("{noise: 0.004}"), expected)


def test_a_header_has_a_word_a_line() -> None:
    assert objective_header("AP(car, bus)") == "AP\ncar\nbus"
    assert objective_header("AP(construction_vehicle)") == "AP\nconstr-\nuction\nvehicle"
