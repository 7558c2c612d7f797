import io
from dataclasses import replace

import pytest
from rich.console import Console

from launch.results import print_result
from sweeps.forecast import forecast
from sweeps.record import RungResult, SweepRecord, TrialRecord
from sweeps.spec import parse_spec

SPEC = parse_spec(
    """
name: demo
train: {config: c.py, epochs: 2}
objective: {metric: NDS, noise: 0.004}
space:
  residual_weight: {low: 0.1, high: 0.9}
stopping: {rule: safe, rungs: [0.5, 1.0]}
finalists: {top: 2, seeds: 1}
budget: {trials: 3, hours: 2}
""",
    source="demo.yaml",
    knobs={},
    has_key=lambda key: True,
)


def trial(number, score, role="search", **changes):
    rungs = tuple(
        RungResult(
            fraction=fraction,
            val_share=1.0,
            epoch=2 * fraction,
            step=int(100 * fraction),
            metrics={"val/nds": score * fraction},
            checkpoint=None,
            seconds=60.0 * fraction,
        )
        for fraction in (0.5, 1.0)
    )
    stem = "control" if role == "control" else f"t{number:03d}"
    return replace(
        TrialRecord(
            number=number,
            label=f"{stem}-0000aaaa",
            role=role,
            params={"residual_weight": 0.2, "seed": 0},
            sampled={"residual_weight": 0.2},
            seed=0,
            config_hash="0000aaaa",
            rungs=rungs,
            outcome="finished",
            value=score,
            told=score,
            seconds=60.0,
        ),
        **changes,
    )


@pytest.fixture
def record():
    return SweepRecord(
        name="demo",
        trials=(
            trial(0, 0.42),
            trial(1, 0.43),
            trial(2, 0.41, "finalist", repeats=1, seed=1),
            trial(3, 0.415, "finalist", repeats=0, seed=1),
        ),
        control=trial(0, 0.41, "control"),
        attrs={
            "metric": "val/nds",
            "mode": "max",
            "noise": 0.004,
            "spec": SPEC.dump(),
            "forecast": forecast(SPEC, full_hours=None, slots=1).dump(),
            "spent": {"hours": 2.01, "trial_hours": 2.0},
            "ended_by": {"limit": "hours", "reason": "2.01 of 2 hours are spent"},
        },
    )


def shown(record):
    console = Console(file=io.StringIO(), width=120, highlight=False)
    print_result(console, record, SPEC)
    return " ".join(console.file.getvalue().split())


def test_the_result_is_what_survived_the_finals(record):
    text = shown(record)
    assert "Best is t000. It does not beat the control beyond the noise (+0.0050, where" in text
    assert "t000 0.4150 (mean of 1 new seed, 0.4070 to 0.4230) 0.4200" in text
    assert "t001 0.4100 (mean of 1 new seed, 0.4020 to 0.4180) 0.4300 ties with best" in text
    assert "The noise of one score is declared as 0.004" in text


def test_the_end_says_which_budget_ended_it_and_how_the_forecast_did(record):
    text = shown(record)
    assert "The search ended by budget.hours: 2.01 of 2 hours are spent." in text
    assert "forecast came" in text
    assert "searched trials 3 2" in text
    assert "hours unknown 2.01" in text


def test_without_finals_and_forecast_nothing_is_said_of_them(record):
    plain = replace(record, trials=record.trials[:2], attrs={**record.attrs, "forecast": None})
    text = shown(plain)
    assert "with new seeds" not in text
    assert "forecast" not in text
    assert "Best is t001. It beats the control by more than the noise explains" in text
