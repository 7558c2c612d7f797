"""What the terminal shows: tables of trials, the leaderboard, problems of a spec.

Colours carry no meaning that the text does not say, so that plain output loses nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sweeps.analysis import Leaderboard, Row
    from sweeps.pareto import Front
    from sweeps.record import ParamValue, TrialRecord
    from sweeps.section import SpecError

STYLES = {
    "finished": "green",
    "stopped": "yellow",
    "diverged": "red",
    "failed": "red",
    "training": "cyan",
    "waiting": "dim",
}
RUNG_TOLERANCE = 1e-6
MAX_WORD = 9
# Widths in a table of trials: all but parameters and rungs, a rung, a parameter.
FIXED_WIDTH, RUNG_WIDTH, AXIS_WIDTH, AXIS_PADDING = 40, 8, 6, 2
# The same of a further objective, whose header has a word a line.
OBJECTIVE_WIDTH = 11


def output() -> Console:
    """The console of results; wide enough for a table where there is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def errors() -> Console:
    """The console of errors."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def problems(error: "SpecError") -> RenderableType:
    """Every mistake of a spec, one a line, as editors and people read them."""
    count = len(error.problems)
    lines: list[RenderableType] = []
    for problem in error.problems:
        line = Text(f"{error.source}:{problem.line}:{problem.column}: ", style="dim")
        line.append(problem.where, style="bold")
        line.append(f": {problem.message}", style="default not dim")
        lines.append(line)
    closing = "1 mistake" if count == 1 else f"{count} mistakes"
    lines.append(Text(f"{closing}; nothing was started.", style="red"))
    return Group(*lines)


def idle_settings(warnings: Sequence[str]) -> RenderableType:
    """Settings of a config that change nothing, or less than they seem to; empty without any."""
    if not warnings:
        return Group()
    title = Text("Settings of the config that do nothing, or not what they say:", style="yellow")
    return Group(title, *(Padding(Text(text), (0, 0, 0, 2)) for text in warnings))


def table(*headers: str, title: str | None = None) -> Table:
    """An empty table in the style of this program; a header that ends with > is of numbers."""
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    made.padding = (0, 1, 0, 0)
    for header in headers:
        right = header.endswith(">")
        justify = "right" if right else "left"
        made.add_column(header.removesuffix(">"), justify=justify, vertical="bottom")
    return made


def trials_table(
    rows: "Sequence[TrialRecord]",
    *,
    metric_key: str,
    axes: Sequence[str],
    fidelities: Sequence[tuple[float, float]],
    states: Mapping[str, str],
    width: int,
    best: str | None = None,
    control: float | None = None,
    front: "Front | None" = None,
) -> Table:
    """Trials with their parameters, the score at each rung and what became of them.

    Args:
        rows: The trials to show, in order.
        metric_key: Key of the objective.
        axes: Parameters to show.
        fidelities: (share of the budget, share of the scenes) of each rung.
        states: What to say of a trial that has no outcome yet, by label.
        width: Columns of the terminal; parameters for which there is no room are left out.
        best: Label of the best trial.
        control: The control's result, which the last column is compared with.
        front: Of several objectives; those on it are marked, with all of their values.
    """
    made = table("trial")
    made.columns[0].no_wrap = True
    further = () if front is None else front.objectives[1:]
    taken = RUNG_WIDTH * len(fidelities) + OBJECTIVE_WIDTH * len(further)
    axes, hidden = fitting(axes, width - FIXED_WIDTH - taken)
    if hidden:
        made.caption = f"No room for {', '.join(hidden)}."
        made.caption_justify = "left"
    for axis in axes:
        made.add_column(short_name(axis), justify="right", no_wrap=True, vertical="bottom")
    for fraction, _ in fidelities:
        made.add_column(f"{fraction:.0%}", justify="right", no_wrap=True, vertical="bottom")
    for objective in further:
        made.add_column(
            objective_header(objective.name), justify="right", no_wrap=True, vertical="bottom"
        )
    made.add_column("to\ncontrol", justify="right", no_wrap=True, vertical="bottom")
    made.add_column("state", no_wrap=True, overflow="ellipsis", ratio=1, vertical="bottom")
    made.expand = True
    for trial in rows:
        state = trial.outcome or states.get(trial.label, "waiting")
        is_best = trial.label == best
        cells = [Text(f"{name_of(trial)}{' *' if is_best else ''}{_front_mark(front, trial)}")]
        cells += [Text(number(trial.params.get(axis), digits=3)) for axis in axes]
        cells += _rung_cells(trial, metric_key, fidelities)
        cells += _further_cells(front, trial)
        # The repeats have other seeds than the control at hand: only the finals compare them.
        if trial.role != "search" or trial.value is None or control is None:
            cells.append(Text(""))
        else:
            cells.append(Text(f"{trial.value - control:+.4f}"))
        cells.append(_state(state, trial.reason))
        made.add_row(*cells, style="bold" if is_best else "")
    return made


def leaderboard_table(board: "Leaderboard", axes: Sequence[str]) -> Table:
    """The finished trials against the control, best first, differences inside the noise marked."""
    made = table("", "trial", f"{board.metric}>", "to control>", "")
    if board.front is not None:
        for objective in board.front.objectives[1:]:
            made.add_column(objective_header(objective.name), justify="right", vertical="bottom")
        made.add_column("front", vertical="bottom")
    for axis in axes:
        made.add_column(short_name(axis), justify="right", no_wrap=True, vertical="bottom")
    if board.control is not None:
        shown = "" if board.control.score is None else f"{board.control.score:.4f}"
        state = "" if board.control.score is not None else board.control.trial.outcome or "running"
        cells = [*_front_cells(board, board.control), *_params(board.control, axes)]
        made.add_row("", "control", shown, "", state, *cells, style="cyan")
    for row in board.finished:
        made.add_row(
            str(row.rank),
            name_of(row.trial),
            f"{row.score:.4f}",
            "" if row.delta is None else f"{row.delta:+.4f}",
            comparison(row),
            *_front_cells(board, row),
            *_params(row, axes),
            style="bold" if row.rank == 1 else "",
        )
    return made


def comparison(row: "Row") -> Text:
    """What a finished trial's difference to the control and to the best means."""
    if row.delta is None:
        against = Text("")
    elif row.tied_with_control:
        against = Text("within noise", style="yellow")
    elif row.delta > 0:
        against = Text("above control", style="green")
    else:
        against = Text("below control", style="red")
    if row.tied_with_best and row.rank != 1:
        against.append(", ties with best" if against.plain else "ties with best", style="dim")
    return against


def objective_header(name: str) -> str:
    """An objective as a column header, a word a line: `AP`, `pedestrian`, `bicycle`."""
    words = name.replace("(", " ").replace(")", "").replace(",", "").split()
    return "\n".join(line for word in words for line in short_name(word).split("\n"))


def name_of(trial: "TrialRecord") -> str:
    """A trial's name without its hash: `t007`, `control`."""
    return trial.label.rsplit("-", 1)[0]


def fitting(axes: Sequence[str], width: int) -> tuple[list[str], list[str]]:
    """The first parameters whose columns fit into a width, and the names of the others."""
    shown: list[str] = []
    for axis in axes:
        width -= AXIS_PADDING + max(AXIS_WIDTH, *map(len, short_name(axis).split("\n")))
        if width < 0:
            break
        shown.append(axis)
    return shown, [axis.rsplit(".", 1)[-1] for axis in axes[len(shown) :]]


def short_name(axis: str) -> str:
    """A parameter as a column header: the last part of a dotted key, a word a line."""
    words = axis.rsplit(".", 1)[-1].split("_")
    return "\n".join(_hyphenated(word) for word in words)


def _hyphenated(word: str) -> str:
    half = (len(word) + 1) // 2
    return word if len(word) <= MAX_WORD else f"{word[:half]}-\n{word[half:]}"


def number(value: Any, *, digits: int = 4) -> str:
    """A parameter's value, its first digits."""
    if value is None:
        return ""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def values(params: "Mapping[str, ParamValue]") -> str:
    """Parameters in a line: `residual_weight=0.64, aqr_lr_mult=2.1`."""
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={number(value)}" for key, value in params.items())


def duration(seconds: float) -> str:
    """A time span: `45 s`, `6:05 min`, `2:15 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def shortest(path: Path) -> Path:
    """A path as one would type it from here."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _params(row: "Row", axes: Sequence[str]) -> list[str]:
    return [number(row.trial.params.get(axis)) for axis in axes]


def _front_cells(board: "Leaderboard", row: "Row") -> list[str | Text]:
    """The values of the further objectives, and what they say together."""
    if board.front is None:
        return []
    if row.place is None:
        return [""] * len(board.front.objectives)
    pairs = list(zip(board.front.objectives, row.place.values, strict=True))[1:]
    shown: list[str | Text] = [*(objective.show(value) for objective, value in pairs)]
    if row.trial.role == "control":
        return [*shown, ""]
    style = "green" if row.place.standing == "front" else "yellow"
    return [*shown, Text(row.place.standing, style=style)]


def _front_mark(front: "Front | None", trial: "TrialRecord") -> str:
    place = None if front is None else front.place(trial)
    return " +" if place is not None and place.on_front else ""


def _further_cells(front: "Front | None", trial: "TrialRecord") -> list[Text]:
    """The further objectives of a trial that has finished."""
    if front is None:
        return []
    from sweeps.objectives import values_of

    values = values_of(trial, front.objectives)
    if values is None:
        return [Text("·", style="dim")] * (len(front.objectives) - 1)
    pairs = list(zip(front.objectives, values, strict=True))[1:]
    return [Text(objective.show(value)) for objective, value in pairs]


def _rung_cells(
    trial: "TrialRecord", key: str, fidelities: Sequence[tuple[float, float]]
) -> list[Text]:
    scores = {rung.fraction: rung.metrics.get(key) for rung in trial.rungs}
    cells = []
    for fraction, share in fidelities:
        score = next((s for f, s in scores.items() if abs(f - fraction) < RUNG_TOLERANCE), None)
        full = fraction == 1 and share == 1
        shown = "·" if score is None else f"{score:.4f}"
        cells.append(Text(shown, style="default" if full and score is not None else "dim"))
    return cells


def _state(state: str, reason: str) -> Text:
    text = Text(state, style=STYLES.get(state.split()[0], ""))
    lines = reason.splitlines()
    if lines:
        text.append(f"  {lines[0]}", style="dim")
    return text
