"""What has come out of a sweep: status, leaderboard, report, exported config, MLflow's UI."""

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from launch.display import leaderboard_table, name_of, shortest, table
from launch.opening import (
    DEFAULT_STORAGE,
    TargetError,
    driver_of,
    find_sweep,
    open_sweep,
    read_record,
    read_spec,
)
from launch.provenance import COMMIT_TAG, commit
from launch.workplace import Workplace

if TYPE_CHECKING:
    from launch.opening import Opened
    from sweeps.analysis import Leaderboard
    from sweeps.record import SweepRecord, TrialRecord
    from sweeps.spec import SweepSpec

UI_LOG = "mlflow-ui.log"


def next_commands(spec: "SweepSpec", record: "SweepRecord") -> list[str]:
    """What a user does after a sweep, as typed."""
    directory = shortest(spec.directory)
    has_result = any(trial.value is not None for trial in record.searched)
    return [
        *([f"aqr-sweep export {directory}"] if has_result else []),
        f"aqr-sweep ui {directory}",
    ]


def print_result(console: Console, record: "SweepRecord", spec: "SweepSpec") -> None:
    """The leaderboard, the finals, what was spent, where the report is, and how to go on."""
    from sweeps.analysis import leaderboard
    from sweeps.report import REPORT_NAME, wording

    board = leaderboard(record)
    console.print(f"\nLeaderboard of {record.name}", style="bold")
    console.print(leaderboard_table(board, list(spec.build_space().parameters)))
    counts = [
        f"{len(board.finished)} finished",
        f"{len(board.stopped)} stopped early",
        *([f"{len(board.ended)} diverged or failed"] if board.ended else []),
        *([f"{len(board.running)} unfinished"] if board.running else []),
    ]
    console.print(f"{', '.join(counts)}. {wording.noise(board)}")
    if board.front is not None:
        console.print(f"{wording.front_rule(board.front)}")
        console.print(wording.front_line(board.front))
    _print_finals(console, board)
    if board.best is not None and (survival := wording.survival(board)):
        by = "" if board.front is None else f" by {board.metric}"
        console.print(f"Best{by} is {name_of(board.best.trial)}. {survival}")
    for row in board.ended:
        first = (row.trial.reason.splitlines() or [""])[0]
        console.print(f"  {name_of(row.trial)} {row.trial.outcome}: {first}", markup=False)
    _print_costs(console, record)
    console.print(f"\nReport   {shortest(spec.directory / REPORT_NAME)}")
    for command in next_commands(spec, record):
        console.print(f"Next     {command}")


def _print_finals(console: Console, board: "Leaderboard") -> None:
    from sweeps.report.wording import standing

    if not board.finalists:
        return
    made = table("finals", f"{board.metric} with new seeds", "when chosen>", "")
    for row in board.finalists:
        tie = "ties with best" if row.tied_with_best else ""
        made.add_row(name_of(row.trial), standing(row), f"{row.trial.value:.4f}", tie)
    if board.control is not None:
        made.add_row("control", standing(board.control), "", "")
    console.print(made)


def _print_costs(console: Console, record: "SweepRecord") -> None:
    """Which budget ended the sweep, and the forecast against what came."""
    from sweeps.forecast import rounded
    from sweeps.report import wording

    if ending := wording.ending(record.attrs):
        console.print(f"\n{ending}")
    rows = wording.comparisons(record)
    if not rows:
        return
    made = table("", "forecast>", "came>")
    for row in rows:
        made.add_row(row.what, wording.expected(row.expected), rounded(row.actual))
    console.print(made)


def show_status(console: Console, target: str, workplace: Workplace) -> None:
    """How far a sweep is, from its study alone."""
    from launch.progress import Picture, num_trials, render
    from sweeps.report import wording

    directory = find_sweep(target, workplace)
    spec = read_spec(directory)
    record = read_record(spec)
    driver = driver_of(directory)
    picture = Picture(spec)
    picture.idle = "training" if driver else "waiting"
    for trial in record.started:
        picture.take(trial)
    console.print(render(picture, width=console.width, with_time=False))
    total = num_trials(spec)
    of_all = "" if total is None else f" of {total}"
    over = f"{picture.num_ended}{of_all} trials have ended."
    if ending := wording.ending(record.attrs):
        over += f" {ending}"
    # A budget may end a sweep before all of its trials, and finals may be fewer than planned.
    is_over = all(t.outcome for t in record.started) and (ending or picture.num_ended == total)
    if driver is not None:
        console.print(f"{over} Driven by {driver}.")
    elif not is_over:
        again = f"aqr-sweep resume {shortest(directory)}"
        console.print(f"{over} Nobody drives it: go on with  {again}")
    else:
        console.print(over)


def rewrite_report(console: Console, target: str, workplace: Workplace) -> None:
    """Write the report from the study and send to MLflow what waits."""
    from sweeps.report import write_report
    from sweeps.tracker import flush_spools

    directory = find_sweep(target, workplace)
    spec = read_spec(directory)
    record = read_record(spec)
    write_report(
        record,
        directory,
        spec=spec,
        commit=_commit_of(record),
        commands=next_commands(spec, record),
    )
    # The driver of a running sweep sends everything itself.
    if driver_of(directory) is None and (left := flush_spools(directory)):
        console.print(f"MLflow has not taken {left} lines; they stay in the spools.")
    print_result(console, record, spec)


def export_trial(
    target: str, workplace: Workplace, *, trial: str = "best", out: Path | None = None
) -> str:
    """Write the config of a trial; returns what to tell the user.

    Raises:
        TargetError: If there is no such trial, or its base config has changed since.
        ExportError: If it has no result.
    """
    from sweeps.export import export_config

    opened = open_sweep(target, workplace, starts=False)
    spec, training = opened.spec, opened.training
    record = read_record(spec)
    chosen = _choose(record, trial)
    overrides = training.trial_overrides(chosen.params)
    _refuse_drift(opened, chosen, overrides)
    path = out or spec.directory / f"{name_of(chosen)}.py"
    train_command = f"python -m aqr_model.train {shortest(path)}"
    written = export_config(
        record,
        chosen,
        base_config=opened.config,
        base=training.base,
        overrides=overrides,
        out=path,
        provenance={"commit": _commit_of(record), "command": train_command},
    )
    return (
        f"{name_of(chosen)}, {spec.objective.metric} {chosen.value:.4f}, is in"
        f" {shortest(written)}\nTrain from it with  {train_command}"
        f"{_others_on_front(record, chosen, target)}"
    )


def serve_ui(console: Console, target: str, workplace: Workplace, *, host: str, port: int) -> None:
    """Serve MLflow's UI on a store until Ctrl-C.

    Args:
        console: Where the link goes.
        target: A storage path, or a sweep.
        workplace: Where relative paths lead.
        host: Interface to listen on.
        port: Wished port.

    Raises:
        TargetError: If there is nothing to show.
        ServerError: If MLflow does not come up.
    """
    from launch.stack import mlflow_ui
    from sweeps.record import sqlite_url
    from sweeps.tracking import ARTIFACTS_NAME, DATABASE_NAME

    workplace.enter()
    store = Path(target)
    if not (store / DATABASE_NAME).is_file() and store != DEFAULT_STORAGE:
        directory = find_sweep(target, workplace)
        if (uri := read_spec(directory).tracking.uri) is not None:
            console.print(f"This sweep is tracked at  {uri}")
            return
        store = directory.parent
    if not (store / DATABASE_NAME).is_file():
        raise TargetError(
            f"There is nothing to show yet: {shortest(store)} has no {DATABASE_NAME}. `aqr-sweep"
            " run SPEC` makes one with its first trial."
        )
    serving = mlflow_ui(
        sqlite_url(store / DATABASE_NAME),
        store / ARTIFACTS_NAME,
        log=store / UI_LOG,
        host=host,
        port=port,
    )
    with ExitStack() as stack:
        with console.status("[dim]Starting MLflow ...", spinner_style="dim"):
            server = stack.enter_context(serving)
        console.print(f"MLflow shows {shortest(store)} at  {server.url}  until Ctrl-C.")
        with suppress(KeyboardInterrupt):
            server.process.wait()
            console.print(f"MLflow ended by itself; its output is in {server.log}.")


def _choose(record: "SweepRecord", trial: str) -> "TrialRecord":
    from sweeps.analysis import leaderboard

    if trial == "best":
        best = leaderboard(record).best
        if best is None:
            raise TargetError(
                "No trial has finished on its full budget yet: wait, or resume the sweep."
            )
        return best.trial
    wanted = {name_of(each): each for each in record.started}
    by_number = f"t{int(trial):03d}" if trial.isdigit() else trial
    if by_number not in wanted:
        raise TargetError(f"There is no trial {trial!r}; there are: best, {', '.join(wanted)}.")
    return wanted[by_number]


def _others_on_front(record: "SweepRecord", chosen: "TrialRecord", target: str) -> str:
    """What else a user may want to export; empty where there is a single objective."""
    from sweeps.analysis import leaderboard
    from sweeps.report import wording

    board = leaderboard(record)
    if board.front is None:
        return ""
    place = board.front.place(chosen)
    where = "on the front" if place is not None and place.on_front else "not on the front"
    if board.best is not None and chosen.label == board.best.trial.label:
        where = f"the best {board.metric} of the front"
    others = [each for each in board.front.members if each.trial.label != chosen.label]
    lines = [f"\n{name_of(chosen)} is {where}{'. Also on it:' if others else ', alone.'}"]
    for each in others:
        command = f"aqr-sweep export {target} --trial {each.trial.number}"
        told = wording.values(board.front, each)
        lines.append(f"  {name_of(each.trial)}  {told}  {command}")
    return "\n".join(lines)


def _refuse_drift(opened: "Opened", trial: "TrialRecord", overrides: dict[str, Any]) -> None:
    """An export must say what the trial trained with, not what the base has become since."""
    from launch.training import CONFIG_NAME, load_base, resolve

    ran = opened.spec.trial_dir(trial.label) / CONFIG_NAME
    if not ran.is_file():
        return
    now = resolve(opened.training.base, overrides)._cfg_dict.to_dict()
    if load_base(ran) != now:
        raise TargetError(
            f"{opened.config} has changed since {name_of(trial)} trained: restore it, or train from"
            f" {shortest(ran)}, which holds all that the trial trained with."
        )


def _commit_of(record: "SweepRecord") -> str | None:
    """The commit that trained, which the tracker keeps in the study; else the present one."""
    tags = record.attrs.get("tracking", {}).get("tags", {})
    return tags.get(COMMIT_TAG) or commit()
