import csv
from dataclasses import replace
from pathlib import Path

import pytest
from sweep_samples import make_record, make_spec, make_trial

from sweeps.forecast import forecast
from sweeps.report import render_report, write_report

CLASSES = {"val/ap/car": 0.6, "val/ap/bus": 0.2}


@pytest.fixture
def spec(tmp_path: Path):
    return make_spec(tmp_path)


def sampled(number):
    return {"amplification": 1 + number / 10, "aqr_lr_mult": 0.5, "residual_weight": 0.4}


@pytest.fixture
def record():
    return make_record(
        make_trial(0, 0.4123, sampled=sampled(0)),
        make_trial(1, 0.4300, sampled=sampled(1), **CLASSES),
        make_trial(
            2, 0.3, outcome="stopped", sampled=sampled(2), reason="below the | cut\nat 50 %"
        ),
        make_trial(3, None, outcome="diverged", sampled=sampled(3), reason="loss is nan"),
        control=make_trial(0, 0.41, role="control", **{"val/ap/car": 0.5, "val/ap/bus": 0.3}),
    )


def line_with(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if start in line)


def test_says_what_was_found(record, spec):
    text = render_report(record, spec=spec, commit="abc123", commands=["aqr-sweep export demo"])
    assert "**t001-abcd1234**, NDS **0.4300**, +0.0200 to the control (above control)." in text
    assert "2 finished, 1 stopped early, 1 diverged or failed, 0 unfinished." in text
    assert "`aqr_lr_mult`: 0.1 to 10, logarithmic" in text
    assert "`residual_weight`: one of 0.4, 0.9" in text
    assert "subject to `amplification <= 1.8`" in text
    assert "| 0.4123 | +0.0023 | within noise |" in line_with(text, "| 2 | t000")
    assert "| 0.6000 | 0.5000 | +0.1000 |" in line_with(text, "| car |")
    assert "loss is nan" in line_with(text, "| t003")
    assert "Not computed" in text
    assert "`abc123`" in text
    assert "aqr-sweep export demo" in text


def test_a_reason_cannot_break_the_table(record, spec):
    line = line_with(render_report(record, spec=spec), "| t002")
    assert "below the \\| cut at 50 %" in line


def test_every_table_row_has_the_columns_of_its_head(record, spec):
    columns = None
    for line in render_report(record, spec=spec).splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        count = line.replace("\\|", "").count("|")
        columns = columns or count
        assert count == columns, line


@pytest.fixture
def finals(spec):
    """Trial 2 was chosen first; with new seeds, trial 1 is better."""

    def repeat(number, of, nds, seed, **changes):
        made = make_trial(number, nds, role="finalist", seed=seed, sampled=sampled(of))
        return replace(made, repeats=of, **changes)

    attrs = {
        "spec": spec.dump(),
        "forecast": forecast(spec, full_hours=1.0, slots=2).dump(),
        "spent": {"hours": 3.5, "trial_hours": 6.25},
        "ended_by": {"limit": "trials", "reason": "all 3 trials have begun"},
    }
    record = make_record(
        make_trial(1, 0.430, sampled=sampled(1)),
        make_trial(2, 0.440, sampled=sampled(2)),
        repeat(3, 2, 0.420, 1),
        repeat(4, 1, 0.431, 1),
        repeat(5, 2, None, 2, outcome="diverged", flags={"loss_rising": "it | rises"}),
        repeat(6, 1, 0.435, 2),
        control=make_trial(0, 0.410, role="control"),
        **attrs,
    )
    repeats = tuple(make_trial(seed, 0.412, role="control", seed=seed) for seed in (1, 2))
    return replace(record, control_repeats=repeats)


def test_the_finals_say_what_survives(finals, spec):
    text = render_report(finals, spec=spec)
    assert "**t001-abcd1234**, NDS **0.4330**, +0.0210 to the control (above control)." in text
    assert "It beats the control by more than the noise explains (0.0040)." in text
    assert "| 0.4300 | 0.4310, 0.4350 | 0.4330 (mean of 2 new seeds, 0.4302 to 0.4358) |" in text
    lost = next(line for line in text.splitlines() if line.startswith("| t002") and "," in line)
    assert "| 0.4400 | 0.4200, diverged | 0.4200 (mean of 1 new seed, 0.4160 to 0.4240) |" in lost
    assert "| control-abcd1234 | | | 0.4113 (mean of 3 seeds, 0.4090 to 0.4136) |" in text
    assert "| t005-abcd1234 | loss_rising | it \\| rises |" in text


def test_a_best_that_does_not_beat_the_control_is_said_so(finals, spec):
    lower = [
        replace(trial, value=trial.value - 0.021)
        if trial.role == "finalist" and trial.value
        else trial
        for trial in finals.trials
    ]
    text = render_report(replace(finals, trials=tuple(lower)), spec=spec)
    assert "It does not beat the control beyond the noise (+0.0000" in text


def test_the_end_and_the_forecast_stand_against_what_came(finals, spec):
    text = render_report(finals, spec=spec)
    assert "3.5 hours on the clock. The search ended by budget.trials: all 3 trials" in text
    assert "| searched trials | 8 | 2 |" in text
    assert "| that reach 100% | " in text
    # Two searched, three of the control, three finals to their end and one to nothing.
    assert line_with(text, "| full trainings").endswith("| 8 |")


def test_an_unknown_noise_is_not_called_declared(record, spec):
    unknown = replace(record, attrs={**record.attrs, "noise": None})
    text = render_report(unknown, spec=spec)
    assert "has not been measured yet and is taken as 0.002" in text
    assert "declared as" not in text.replace("declared noise", "")


def test_an_empty_sweep_has_a_report(spec):
    text = render_report(make_record(), spec=spec)
    assert "No trial has finished yet." in text
    assert "## Stopped" not in text


def test_importance_with_enough_trials(spec):
    trials = []
    for number in range(24):
        point = {**sampled(number % 8), "aqr_lr_mult": 0.1 + number % 5}
        trials.append(make_trial(number, 0.4 - (number % 8) / 100, sampled=point))
    text = render_report(make_record(*trials), spec=spec)
    assert "| `amplification` |" in text
    assert "PED-ANOVA, 24 trials" in text


def test_writes_the_table_with_full_precision(record, spec, tmp_path):
    path = write_report(record, tmp_path / "demo", spec=spec)
    assert path == tmp_path / "demo" / "report.md"
    with (tmp_path / "demo" / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"].split("-")[0] for row in rows] == [
        *("control", "t001", "t000", "t002", "t003")
    ]
    assert rows[1]["rank"] == "1"
    assert float(rows[1]["score"]) == 0.43
    assert rows[2]["verdict"] == "within noise"
    assert rows[3]["score"] == ""
    assert rows[3]["outcome"] == "stopped"
    assert rows[3]["reason"] == "below the | cut\nat 50 %"
    assert float(rows[3]["amplification"]) == 1.2


def test_is_the_same_each_time(record, spec, tmp_path):
    first = write_report(record, tmp_path, spec=spec).read_bytes()
    assert write_report(record, tmp_path, spec=spec).read_bytes() == first
