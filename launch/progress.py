"""A running sweep in the terminal: a live table, or plain lines where there is no terminal."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from launch.display import duration, name_of, shortest, trials_table, values
from sweeps.listeners import Listener, SweepContext
from sweeps.record import RungResult, SweepRecord, TrialRecord

if TYPE_CHECKING:
    from sweeps.analysis import Leaderboard
    from sweeps.spec import SweepSpec
    from sweeps.stopping import Verdict

BAR_WIDTH = 40
# Lines of a live display besides the rows of its table.
FRAME_LINES = 12
MIN_ROWS = 4
MANY_TRIALS, SUM_UP_S = 50, 1.0


def num_trials(spec: "SweepSpec") -> int | None:
    """Trainings of a whole sweep, control and finals included; None if only time limits them."""
    from sweeps.budget import course_of

    return course_of(spec).num_trainings


def seconds_left(
    trials: Sequence[TrialRecord], elapsed: Mapping[str, float], *, total: int | None
) -> float | None:
    """Wall seconds until all trials have ended, as those so far went.

    Args:
        trials: All that have begun.
        elapsed: Training seconds so far of those that run, by label.
        total: Trainings of the whole sweep; None if only time limits them.

    Returns:
        None while there is nothing to go by.
    """
    if total is None:
        return None
    ended = [trial.seconds for trial in trials if trial.outcome is not None and trial.seconds > 0]
    if ended:
        expected = fmean(ended)
    else:
        # Before the first end, a rung tells the speed.
        rates = [t.rungs[-1].seconds / t.rungs[-1].fraction for t in trials if t.rungs]
        if not rates:
            return None
        expected = fmean(rates)
    running = [max(0.0, expected - seconds) for seconds in elapsed.values()]
    waiting = expected * max(0, total - len(trials))
    slots = max(1, len(elapsed))
    return max((sum(running) + waiting) / slots, max(running, default=0.0))


class Picture:
    """The sweep as its events tell it.

    The driver's thread changes it while another draws it, which therefore reads copies.

    Attributes:
        trials: The newest record of each trial, by label.
        notes: Messages to show.
        idle: What a trial without an outcome does if no event has told that it runs.

    Args:
        spec: The sweep.
        clock: Seconds.
    """

    def __init__(self, spec: "SweepSpec", clock: Callable[[], float] = time.monotonic) -> None:
        self.spec = spec
        self._plain_spec = spec.dump()
        self._num_taken = 0
        self._board: tuple[int, Leaderboard] | None = None  # with the events it knows of
        self.trials: dict[str, TrialRecord] = {}
        self.notes: list[str] = []
        self.idle = "waiting"
        self._clock = clock
        self._begun = clock()
        self._running_since: dict[str, float] = {}

    def take(self, trial: TrialRecord) -> None:
        """Keep the newest state of a trial."""
        self.trials[trial.label] = trial
        self._num_taken += 1
        if trial.outcome is not None:
            self._running_since.pop(trial.label, None)

    def start(self, trial: TrialRecord) -> None:
        """A trial begins, or goes on."""
        self._running_since[trial.label] = self._clock() - trial.seconds
        self.take(trial)

    def note(self, text: str) -> None:
        """Show a message below the table."""
        self.notes.append(text)

    @property
    def elapsed(self) -> float:
        """Seconds since the sweep started or resumed."""
        return self._clock() - self._begun

    @property
    def left(self) -> float | None:
        """Seconds until the end, estimated."""
        since = self._running_since.copy()
        running = {label: self._clock() - begun for label, begun in since.items()}
        return seconds_left(self.started, running, total=num_trials(self.spec))

    @property
    def started(self) -> tuple[TrialRecord, ...]:
        """Trials trained here, the control first."""
        ours = [trial for trial in list(self.trials.values()) if trial.role != "known"]
        return tuple(sorted(ours, key=lambda trial: (trial.role != "control", trial.number)))

    @property
    def num_ended(self) -> int:
        """Trainings that are over."""
        return sum(trial.outcome is not None for trial in self.started)

    def states(self) -> dict[str, str]:
        """What running trials do."""
        now = self._clock()
        running = {
            label: f"training {duration(now - since)}"
            for label, since in self._running_since.copy().items()
        }
        return {**dict.fromkeys(list(self.trials), self.idle), **running}

    def record(self) -> SweepRecord:
        """The same as a record."""
        started = self.started
        controls = [trial for trial in started if trial.role == "control"]
        objective = self.spec.objective
        return SweepRecord(
            name=self.spec.name,
            trials=tuple(trial for trial in started if trial.role != "control"),
            control=controls[0] if controls else None,
            control_repeats=tuple(controls[1:]),
            attrs={
                "metric": objective.key,
                "mode": objective.mode,
                "noise": objective.noise,
                "spec": self._plain_spec,
            },
        )

    def board(self) -> "Leaderboard":
        """The leaderboard so far."""
        num_taken, board = self._num_taken, self._board
        # Drawn four times a second, while trials take their time.
        if board is None or board[0] != num_taken:
            from sweeps.analysis import leaderboard

            board = self._board = (num_taken, leaderboard(self.record()))
        return board[1]


def render(
    picture: Picture, *, width: int, max_rows: int | None = None, with_time: bool = True
) -> RenderableType:
    """The table of trials and what there is to say about the sweep as a whole."""
    spec, board = picture.spec, picture.board()
    control = board.control.trial.value if board.control else None  # with the search's seed
    rows = _most_telling(picture.started, max_rows, board)
    shown = trials_table(
        rows,
        metric_key=spec.objective.key,
        axes=list(spec.build_space().parameters),
        fidelities=spec.stopping.fidelities,
        states=picture.states(),
        width=width,
        best=board.best.trial.label if board.best else None,
        control=control,
        front=board.front,
    )
    if not rows:
        return Group(_headline(spec), Text("Starting Ray and the first trials ...", style="dim"))
    parts: list[RenderableType] = [_headline(spec), shown]
    if hidden := len(picture.started) - len(rows):
        parts.append(Text(f"  and {hidden} more", style="dim"))
    parts.append(Text(best_line(board)))
    if board.front is not None:
        parts.append(Text(f"  * best {board.metric}, + on the front", style="dim"))
    if with_time:
        parts.append(_progress_line(picture))
        parts.append(Text(f"MLflow: {where_tracked(spec)}", style="dim"))
    parts += [Text(note, style="yellow") for note in picture.notes]
    return Group(*parts)


def where_tracked(spec: "SweepSpec") -> str:
    """The tracking server, or the file that stands for one."""
    return spec.tracking.uri or f"embedded, {shortest(spec.directory.parent)}/mlflow.db"


def best_line(board: "Leaderboard") -> str:
    """The best trial so far, against the control; of several objectives, the front as well."""
    best = board.best
    if best is None or best.score is None:
        return f"No trial has its full-budget {board.metric} yet."
    plural = "" if best.num_scores == 1 else "s"
    seeds = f" over {best.num_scores} new seed{plural}" if best.is_finalist else ""
    line = f"Best so far * {name_of(best.trial)}: {board.metric} {best.score:.4f}{seeds}"
    if best.delta is not None:
        noise = ", within noise" if best.tied_with_control else ""
        line += f" ({best.delta:+.4f} to the control{noise})"
    line += f"  {values(best.trial.sampled)}"
    if board.front is None:
        return line
    from sweeps.report.wording import front_line

    return f"{line}. {front_line(board.front)}"


class Progress(Listener):
    """Shows a sweep while it runs.

    Use it as a context manager around the sweep.

    Args:
        spec: The sweep.
        console: Where to.
        live: A table that moves; else a line for each event.
        clock: Seconds.
    """

    def __init__(
        self,
        spec: "SweepSpec",
        console: Console,
        *,
        live: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.picture = Picture(spec, clock)
        self._console = console
        self._summed_up_at = -SUM_UP_S
        self._live = Live(get_renderable=self._render, console=console) if live else None

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def warn(self, text: str) -> None:
        """Show a message that is not about a trial."""
        if self._live is None:
            self._say(text)
        else:
            self.picture.note(text)

    def on_start(self, sweep: SweepContext) -> None:
        """Take over what the study holds."""
        for trial in sweep.ledger.trials.values():
            self.picture.take(trial)
        self._say(f"sweep {sweep.spec.name} {'resumes' if sweep.resumed else 'starts'}")
        if self.picture.num_ended:
            self._say(f"{self.picture.num_ended} trials of before stand")

    def on_trial_start(self, trial: TrialRecord) -> None:
        """Show the trial."""
        self.picture.start(trial)
        begins = "starts" if trial.attempts < 2 else "goes on"
        self._say(f"{name_of(trial)}{_repeated(trial)} {begins}: {values(trial.params)}")

    def on_rung(self, trial: TrialRecord, rung: RungResult, verdict: "Verdict") -> None:
        """Show the score."""
        self.picture.take(trial)
        spec = self.picture.spec
        objective = spec.objective
        scenes = "" if rung.val_share == 1 else f" on {rung.val_share:.0%} of the scenes"
        self._say(
            f"{name_of(trial)} at {rung.fraction:.0%} of the budget:"
            f" {objective.metric} {rung.metrics[objective.key]:.4f}{_further(spec, rung)}{scenes}"
        )

    def on_trial_end(self, trial: TrialRecord) -> None:
        """Show the end, and how far the sweep is."""
        self.picture.take(trial)
        reason = f": {trial.reason}" if trial.reason else ""
        self._say(f"{name_of(trial)} {trial.outcome}{reason}")
        if self._live is None:  # else the table shows the rest
            self._sum_up()

    def _sum_up(self) -> None:
        """Say how far the sweep is; where many trials end at once, once a second."""
        now = time.monotonic()
        if len(self.picture.trials) > MANY_TRIALS and now - self._summed_up_at < SUM_UP_S:
            return
        self._summed_up_at = now
        left, total = self.picture.left, num_trials(self.picture.spec)
        self._say(
            f"{self.picture.num_ended}{f' of {total}' if total else ''} trials done"
            + (f", about {duration(left)} left" if left else "")
            + f". {best_line(self.picture.board())}"
        )

    def on_end(self, record: SweepRecord, *, interrupted: bool) -> None:
        """Show the last state."""
        for trial in record.started:
            self.picture.take(replace(trial))

    def _render(self) -> RenderableType:
        rows = self._console.height - FRAME_LINES - len(self.picture.notes)
        return render(self.picture, width=self._console.width, max_rows=max(MIN_ROWS, rows))

    def _say(self, text: str) -> None:
        if self._live is None:
            line = f"{_clock_time(self.picture.elapsed)}  {text}"
            # Lines of a log are as long as they are.
            colours = None if self._console.is_terminal else False
            self._console.print(line, markup=False, highlight=colours, soft_wrap=True)


def _most_telling(
    trials: Sequence[TrialRecord], max_rows: int | None, board: "Leaderboard"
) -> list[TrialRecord]:
    """All trials, or the control, the running and the best ones where there is no room for all."""
    if max_rows is None or len(trials) <= max_rows:
        return list(trials)
    ranks = {row.trial.label: row.rank or 0 for row in board.finished}

    def interest(trial: TrialRecord) -> tuple[int, int]:
        if trial.role == "control":
            return 0, 0
        if trial.outcome is None:
            return 1, trial.number
        return 2 if trial.label in ranks else 3, ranks.get(trial.label, -trial.number)

    kept = {trial.label for trial in sorted(trials, key=interest)[:max_rows]}
    return [trial for trial in trials if trial.label in kept]


def _headline(spec: "SweepSpec") -> Text:
    text = Text(f"Sweep {spec.name}", style="bold")
    control = "the control + " if spec.control_seeds else ""
    trials = "trials" if spec.budget.trials is None else f"{spec.budget.trials} trials"
    finals = f", finals of {spec.finalists.top}" if spec.finalists else ""
    details = (
        f"  {_goals(spec)} of {control}{trials}, {spec.train.epochs:g} epochs each,"
        f" stopping {spec.stopping.rule}{finals}"
    )
    return text.append(details, style="not bold dim")


def _further(spec: "SweepSpec", rung: RungResult) -> str:
    """The values of the objectives after the first."""
    from sweeps.objectives import objectives_of

    further = objectives_of(spec)[1:]
    return "".join(f", {each.name} {each.show(each.value(rung))}" for each in further)


def _goals(spec: "SweepSpec") -> str:
    from sweeps.objectives import objectives_of

    return ", ".join(objective.name for objective in objectives_of(spec))


def _repeated(trial: TrialRecord) -> str:
    if trial.role == "finalist":
        return f" (t{trial.repeats:03d} with seed {trial.seed})"
    return f" (seed {trial.seed})" if trial.role == "control" and trial.number else ""


def _progress_line(picture: Picture) -> Table:
    total, done = num_trials(picture.spec), picture.num_ended
    left = picture.left
    line = Table.grid(padding=(0, 1))
    if total is None:
        line.add_row(Text(f"{done} trials, {duration(picture.elapsed)} elapsed"))
        return line
    words = f" {done} of {total} trials, {duration(picture.elapsed)} elapsed, "
    words += "time left known after the first scores" if left is None else f"{_about(left)} left"
    line.add_row(ProgressBar(total=total, completed=done, width=BAR_WIDTH), Text(words))
    return line


def _about(seconds: float) -> str:
    return f"about {duration(seconds)}"


def _clock_time(seconds: float) -> str:
    whole = round(seconds)
    return f"[{whole // 3600:d}:{whole // 60 % 60:02d}:{whole % 60:02d}]"
