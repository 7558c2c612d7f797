"""What the report, the export and MLflow say of several objectives."""

import csv
import re
from pathlib import Path

import pytest
from mmcv import Config
from pareto_samples import THREE, TIME, pareto_record, pareto_spec, scored
from sweep_samples import make_record, make_spec, make_trial

from sweeps.export import export_config
from sweeps.pareto import front_of
from sweeps.report import FRONT_NAME, TABLE_NAME, render_report, write_report
from sweeps.report.wording import MAX_TOLD, front_limits, front_line
from sweeps.tracking import _objective_points, _progress

CONTROL = scored(0, 0.41, 80.0, role="control")


def record_of(path: Path, also: str = TIME, **sections: str):
    spec = pareto_spec(path, also, **sections)
    record = pareto_record(
        spec,
        scored(0, 0.430, 100.0),
        scored(1, 0.429, 100.5),
        scored(2, 0.410, 99.5),
        scored(3, 0.400, 60.0),
        scored(4, 0.390, 70.0, (0.2, 0.1)),
        scored(5, 0.410, 50.0, outcome="stopped"),
        controls=[CONTROL],
    )
    return spec, record


def line_with(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_the_report_tells_the_front_before_the_leaderboard(tmp_path: Path) -> None:
    spec, record = record_of(tmp_path)
    text = render_report(record, spec=spec)
    assert "Best trial: **t000-abcd1234**, NDS **0.4300**" in text
    line = "Front of 3 by NDS, time: t000 (0.4300, 100.00 s), t002 (0.4100, 99.50 s), t003 ("
    assert line_with(text, "Front of").startswith(line)
    assert text.index("## Front") < text.index("## Leaderboard")
    assert "| control | 0.4100 | 80.00 s | control | |" in text
    assert "| 0.4300 | 100.00 s | front |" in line_with(text, "| t000 |")
    assert "| front by noise: beaten by t000 |" in line_with(text, "| t002 |")
    assert "| ties with front |" in line_with(text, "| t001 |")
    assert not [line for line in text.splitlines() if line.startswith("| t004 |")]
    assert "NDS 0.0057 (noise declared); time 1.41 s (noise declared)." in text


@pytest.mark.parametrize("also", [TIME, THREE])
def test_every_table_row_has_the_columns_of_its_head(tmp_path: Path, also: str) -> None:
    spec, record = record_of(tmp_path, also)
    columns = None
    for line in render_report(record, spec=spec).splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        count = line.replace("\\|", "").count("|")
        columns = columns or count
        assert count == columns, line


def test_the_table_has_all_objectives(tmp_path: Path) -> None:
    spec, record = record_of(tmp_path, THREE)
    write_report(record, tmp_path, spec=spec)
    with (tmp_path / TABLE_NAME).open() as file:
        rows = {row["label"].split("-")[0]: row for row in csv.DictReader(file)}
    assert (rows["t003"]["time"], rows["t003"]["ap_pedestrian_bicycle"]) == ("60.0", "0.2")
    assert rows["t003"]["front"] == "front"
    assert (rows["t002"]["front"], rows["t002"]["beaten_by"]) == ("front by noise", "t000-abcd1234")
    assert (rows["t005"]["time"], rows["t005"]["front"]) == ("", "")
    assert (rows["control"]["time"], rows["control"]["front"]) == ("80.0", "")


@pytest.mark.parametrize("also", [TIME, THREE])
def test_the_page_needs_no_network_and_names_all(tmp_path: Path, also: str) -> None:
    spec, record = record_of(tmp_path, also)
    write_report(record, tmp_path, spec=spec)
    page = (tmp_path / FRONT_NAME).read_text()
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)
    assert "<td>front by noise: beaten by t000</td>" in page
    assert "hypervolume" in page
    assert page.count('"showlegend":true') == len({"front", "noise", "ties", "behind", "control"})


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    spec, record = record_of(tmp_path)
    (tmp_path / "x").mkdir()
    record = pareto_record(spec, *record.trials)
    object.__setattr__(record, "name", "<b>&")
    write_report(record, tmp_path / "x", spec=spec)
    assert "<h1>Front of &lt;b&gt;&amp;</h1>" in (tmp_path / "x" / FRONT_NAME).read_text()


def test_before_the_first_result_it_says_so(tmp_path: Path) -> None:
    spec = pareto_spec(tmp_path)
    record = pareto_record(spec, scored(0, 0.4, 10.0, outcome="stopped"))
    write_report(record, tmp_path, spec=spec)
    assert "No trial has its full-budget NDS, time yet." in (tmp_path / FRONT_NAME).read_text()
    assert "No trial has finished yet." in render_report(record, spec=spec)
    one = pareto_record(spec, scored(0, 0.4, 10.0))
    write_report(one, tmp_path, spec=spec)
    assert "Front of 1 by NDS, time: t000 (" in (tmp_path / FRONT_NAME).read_text()


def test_a_single_objective_has_none_of_it(tmp_path: Path) -> None:
    record = make_record(make_trial(0, 0.4, sampled={"amplification": 1.2}))
    write_report(record, tmp_path, spec=make_spec(tmp_path))
    assert not (tmp_path / FRONT_NAME).exists()
    assert "ront" not in (tmp_path / "report.md").read_text()
    with (tmp_path / TABLE_NAME).open() as file:
        assert "front" not in next(csv.reader(file))
    assert _objective_points(record.trials[0], record, time_ms=1) == []


def test_a_sentence_names_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    spec = pareto_spec(tmp_path)
    trials = [scored(i, 0.4 + i / 100, 100.0 + i) for i in range(MAX_TOLD + 2)]
    front = front_of(pareto_record(spec, *trials))
    assert front is not None
    told = front_line(front)
    assert told.startswith("Front of 7 by NDS, time: t006 (0.4600, 106.00 s), ")
    assert told.endswith("t002 (0.4200, 102.00 s) and 2 more.")


def test_a_noise_that_nobody_knows_is_said_to_be_none(tmp_path: Path) -> None:
    _, record = record_of(tmp_path, "[{metric: time}]")
    front = front_of(record)
    assert front is not None
    told = "NDS 0.0057 (noise declared); time none (its noise is neither declared nor measured)."
    assert front_limits(front).endswith(told)


def test_means_are_told_as_such(tmp_path: Path) -> None:
    spec, record = record_of(tmp_path, finalists="{top: 1, seeds: 1}")
    final = scored(6, 0.42, 101.0, role="finalist", repeats=0, seed=1)
    repeated = pareto_record(spec, *record.trials, final, controls=[CONTROL])
    text = render_report(repeated, spec=spec)
    assert "| 0.4200 | 101.00 s | front |" in line_with(text, "| t000 |")
    assert "Finalists stand by their means over new seeds; a trial that was not repeated" in text


def test_an_exported_config_carries_all_objectives(tmp_path: Path) -> None:
    _, record = record_of(tmp_path, THREE)
    base = tmp_path / "base.py"
    base.write_text("lr = 1\n")
    path = export_config(
        record,
        record.trials[3],
        base_config=base,
        base={"lr": 1},
        overrides={"lr": 2},
        out=tmp_path / "out.py",
    )
    origin = Config.fromfile(str(path)).provenance
    assert dict(origin["objectives"]) == pytest.approx(
        {"NDS": 0.4, "time": 60.0, "AP(pedestrian, bicycle)": 0.2}
    )
    assert origin["front"] == ["t000-abcd1234", "t002-abcd1234", "t003-abcd1234"]
    assert origin["on_front"] is True


def test_mlflow_gets_the_front_and_the_values_that_are_no_metrics(tmp_path: Path) -> None:
    _, record = record_of(tmp_path, THREE)
    values, tags = _progress(record)
    assert tags["best_trial"] == "t000-abcd1234"
    assert tags["front"] == "t000-abcd1234, t002-abcd1234, t003-abcd1234"
    assert values["front/size"] == 3
    assert (values["front/nds"], values["front/time"]) == (0.43, 60.0)
    points = _objective_points(record.trials[3], record, time_ms=7)
    assert {point.key: point.value for point in points} == pytest.approx(
        {"final/time": 60.0, "final/ap_pedestrian_bicycle": 0.2}
    )
    assert _objective_points(record.trials[5], record, time_ms=7) == []
    none, no_tags = _progress(make_record())
    assert (no_tags, "front/size" in none) == ({}, False)
