"""The report of a sweep: `report.md` and `leaderboard.csv`, every number from the record."""

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
from sweeps.importance import IMPORTANCE_MIN_TRIALS, importance
from sweeps.noise import selection_gain
from sweeps.report import wording
from sweeps.report.wording import verdict
from sweeps.spec import SweepSpec
from sweeps.trials import ParamValue, SweepRecord, TrialRecord

REPORT_NAME, TABLE_NAME = "report.md", "leaderboard.csv"


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
        importance_min_trials=IMPORTANCE_MIN_TRIALS,
        num_told=sum(trial.told is not None for trial in record.searched),
        classes=classes,
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
        params=_params,
        cell=_cell,
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


def _params(params: Mapping[str, ParamValue]) -> str:
    return ", ".join(f"{name}={_short(params[name])}" for name in sorted(params))


def _short(value: ParamValue) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    """Text that cannot break a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def _write_table(board: Leaderboard, path: Path) -> None:
    """All trials with all parameters, the control first, as comma-separated values."""
    rows = [*board.finished, *board.stopped, *board.ended, *board.running]
    lines = [*([board.control] if board.control else []), *rows]
    names = sorted({name for row in lines for name in row.trial.params})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, *names])
        for row in lines:
            params = [row.trial.params.get(name, "") for name in names]
            writer.writerow([*_cells(row), *params])


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
