"""The report of a sweep: `report.md` and `leaderboard.csv`, every number from the record.

With several objectives `front.html` shows the front.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from optuna.distributions import BaseDistribution

from sweeps.analysis import (
    Leaderboard,
    Row,
    class_differences,
    costs,
    leaderboard,
    measured_noise,
    rung_table,
)
from sweeps.importance import IMPORTANCE_MIN_TRIALS, conditional_importance, importance
from sweeps.noise import selection_gain
from sweeps.report import wording
from sweeps.report.wording import verdict
from sweeps.spec import SweepSpec
from sweeps.trials import SweepRecord, TrialRecord

REPORT_NAME, TABLE_NAME, FRONT_NAME = "report.md", "leaderboard.csv", "front.html"


def write_report(
    record: SweepRecord,
    directory: Path,
    *,
    spec: SweepSpec,
    commit: str | None = None,
    commands: Sequence[str] = (),
) -> Path:
    """Write the report and the table of a sweep, finished or not.

    Args:
        record: The sweep.
        directory: Where the files go.
        spec: The sweep's spec.
        commit: Commit of the code that trained.
        commands: How to go on from here, as users type it.

    Returns:
        The report.
    """
    directory.mkdir(parents=True, exist_ok=True)
    board = leaderboard(record)
    _write_table(board, directory / TABLE_NAME)
    if board.front is not None:
        from sweeps.report.front import write_front  # plotly takes its time to load

        write_front(record, board.front, directory / FRONT_NAME)
    path = directory / REPORT_NAME
    text = render_report(record, spec=spec, commit=commit, commands=commands)
    path.write_text(text, encoding="utf-8")
    return path


def render_report(
    record: SweepRecord,
    *,
    spec: SweepSpec,
    commit: str | None = None,
    commands: Sequence[str] = (),
) -> str:
    """The report as Markdown."""
    board = leaderboard(record)
    axes = spec.build_space().distributions()
    best, control = board.best, board.control
    classes = ()
    if best and control and best.trial.rungs and control.score is not None:
        classes = class_differences(best.trial, control.trial)
    template = _environment().get_template("report.md.j2")
    return template.render(
        spec=spec,
        board=board,
        axes=_ordered(axes),
        measured=measured_noise(record),
        gain=selection_gain(len(board.finished), board.noise),
        survival=wording.survival(board),
        noise=wording.noise(board),
        ending=wording.ending(record.attrs),
        spent=record.attrs.get("spent"),
        comparisons=wording.comparisons(record),
        repeats=_repeats(record),
        flagged=[trial for trial in record.started if trial.flags],
        rungs=rung_table(record),
        costs=costs(record),
        importance=importance(record, axes),
        within=conditional_importance(record, axes),
        importance_min_trials=IMPORTANCE_MIN_TRIALS,
        num_told=sum(trial.told is not None for trial in record.searched),
        classes=classes,
        front_rule="" if board.front is None else wording.front_rule(board.front),
        front_line="" if board.front is None else wording.front_line(board.front),
        commit=commit,
        commands=commands,
    )


def _ordered(axes: Mapping[str, BaseDistribution]) -> list[tuple[str, str]]:
    return [(name, _range(axes[name])) for name in sorted(axes)]


def _range(axis: BaseDistribution) -> str:
    choices = getattr(axis, "choices", None)
    if choices is not None:
        return "one of " + ", ".join(str(choice) for choice in choices)
    low, high = getattr(axis, "low"), getattr(axis, "high")  # noqa: B009  float and int axes
    return f"{low:g} to {high:g}{', logarithmic' if getattr(axis, 'log', False) else ''}"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sweeps.report", "."),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        score=_score,
        signed=_signed,
        params=wording.params_line,
        cell=_cell,
        short_label=wording.short_label,
        verdict=verdict,
        standing=wording.standing,
        expected=wording.expected,
    )
    return environment


def _repeats(record: SweepRecord) -> dict[int, list[TrialRecord]]:
    """The repeats of each finalist, by its number."""
    return {
        number: [trial for trial in record.finalists if trial.repeats == number]
        for number in {trial.repeats for trial in record.finalists}
        if number is not None
    }


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _cell(text: str) -> str:
    """Text that cannot break a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def _write_table(board: Leaderboard, path: Path) -> None:
    """All trials with all parameters, the control first, as comma-separated values."""
    rows = [*board.finished, *board.stopped, *board.ended, *board.running]
    lines = [*([board.control] if board.control else []), *rows]
    names = sorted({name for row in lines for name in row.trial.params})
    further = [] if board.front is None else [o.key for o in board.front.objectives[1:]]
    columns = [*further, "front", "beaten_by"] if further else []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, *columns, *names])
        for row in lines:
            params = [row.trial.params.get(name, "") for name in names]
            writer.writerow([*_cells(row), *_front_cells(row, len(columns)), *params])


def _front_cells(row: Row, count: int) -> list[object]:
    """The further objectives of a row, where it stands by all, and what beats it."""
    if row.place is None:
        return [""] * count
    standing = "" if row.trial.role == "control" else row.place.standing
    return [*row.place.values[1:], standing, row.place.beaten_by or ""]


_COLUMNS = (
    "rank",
    "label",
    "role",
    "outcome",
    "score",
    "num_scores",
    "low",
    "high",
    "single_score",
    "delta_to_control",
    "verdict",
    "tied_with_best",
    "reached",
    "score_there",
    "reason",
    "seconds",
    "gpu_hours",
)


def _cells(row: Row) -> list[object]:
    trial = row.trial
    return [
        "" if row.rank is None else row.rank,
        trial.label,
        trial.role,
        trial.outcome or "running",
        "" if row.score is None else row.score,
        row.num_scores,
        *(("", "") if row.interval is None else row.interval),
        "" if trial.value is None else trial.value,
        "" if row.delta is None else row.delta,
        verdict(row),
        row.tied_with_best,
        row.reached,
        "" if row.reached_score is None else row.reached_score,
        trial.reason,
        round(trial.seconds, 1),
        trial.gpu_hours,
    ]
