"""What a report says in sentences, for the report and the terminal alike."""

from collections.abc import Mapping
from typing import Any

from sweeps.analysis import Leaderboard, Row
from sweeps.forecast import Comparison, Span, compare, read_forecast
from sweeps.trials import SweepRecord


def verdict(row: Row) -> str:
    """What a delta to the control means, in words."""
    if row.delta is None:
        return ""
    if row.tied_with_control:
        return "within noise"
    return "above control" if row.delta > 0 else "below control"


def standing(row: Row) -> str:
    """A score with what it is the mean of: `0.4310 (mean of 2 new seeds, 0.4288 to 0.4332)`."""
    if row.score is None or row.interval is None:
        return ""
    if row.num_scores < 2 and not row.is_finalist:
        return f"{row.score:.4f}"
    what = "new seed" if row.is_finalist else "seed"
    seeds = f"{row.num_scores} {what}{'' if row.num_scores == 1 else 's'}"
    low, high = row.interval
    return f"{row.score:.4f} (mean of {seeds}, {low:.4f} to {high:.4f})"


def survival(board: Leaderboard) -> str:
    """Whether the best trial holds against the control; empty without both."""
    best = board.best
    if best is None or best.delta is None or best.limit is None:
        return ""
    better = best.delta > 0 if board.mode == "max" else best.delta < 0
    if better and not best.tied_with_control:
        return f"It beats the control by more than the noise explains ({best.limit:.4f})."
    how = f"{best.delta:+.4f}, where the noise alone gives up to {best.limit:.4f}"
    return f"It does not beat the control beyond the noise ({how})."


def noise(board: Leaderboard) -> str:
    """Where the noise of one score comes from, and what follows from it."""
    spread = board.spread
    if spread.source == "declared":
        origin = f"is declared as {spread.deviation:g}"
    elif spread.source == "measured":
        freedom = spread.degrees_of_freedom
        origin = f"is {spread.deviation:.4f}, measured on repeats ({freedom:g} degrees of freedom)"
    else:
        origin = f"has not been measured yet and is taken as {spread.deviation:g}"
    return (
        f"The noise of one score {origin}; differences of two scores up to {board.threshold:.4f}"
        f" ({spread.sigmas:.3g} standard deviations) count as ties."
    )


def ending(attrs: Mapping[str, Any]) -> str:
    """Which budget ended the search; empty while none has."""
    ended_by = attrs.get("ended_by")
    if ended_by is None:
        return ""
    return f"The search ended by budget.{ended_by['limit']}: {ended_by['reason']}."


def comparisons(record: SweepRecord) -> tuple[Comparison, ...]:
    """The forecast against what came; empty if none was made."""
    made = record.attrs.get("forecast")
    return () if made is None else compare(read_forecast(made), record)


def expected(span: Span | None) -> str:
    """A forecast number: its mean, and where four of five lie."""
    if span is None:
        return "unknown"
    if span.low == span.high:
        return f"{span.mean:.3g}"
    return f"{span.mean:.3g} ({span.low:.3g} to {span.high:.3g})"
