import csv
from pathlib import Path

import pytest
from sweep_samples import make_record, make_spec, make_trial

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
