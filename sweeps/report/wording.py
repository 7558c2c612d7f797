"""What a report says in sentences, for the report and the terminal alike."""

from collections.abc import Mapping
from typing import Any

from sweeps.analysis import Leaderboard, Row
from sweeps.forecast import Comparison, Span, compare, read_forecast, rounded
from sweeps.noise import Noise
from sweeps.objectives import Objective
from sweeps.pareto import Front, Place
from sweeps.trials import ParamValue, SweepRecord

# Members of a front that a sentence names; a table has them all.
MAX_TOLD = 5


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
        return rounded(span.mean)
    return f"{rounded(span.mean)} ({rounded(span.low)} to {rounded(span.high)})"


def front_line(front: Front) -> str:
    """The trials on the front with their values, the best by the first objective first."""
    names = ", ".join(objective.name for objective in front.objectives)
    members = front.members
    if not members:
        return f"No trial has its full-budget {names} yet."
    told = [
        f"{short_label(place.trial.label)} ({', '.join(_shown(front, place))})"
        for place in members[:MAX_TOLD]
    ]
    more = f" and {len(members) - MAX_TOLD} more" if len(members) > MAX_TOLD else ""
    return f"Front of {len(members)} by {names}: {', '.join(told)}{more}."


def values(front: Front, place: Place) -> str:
    """The values of a place: `NDS 0.4310, time 93.2 s`."""
    pairs = zip(front.objectives, _shown(front, place), strict=True)
    return ", ".join(f"{objective.name} {shown}" for objective, shown in pairs)


def _shown(front: Front, place: Place) -> list[str]:
    pairs = zip(front.objectives, place.values, strict=True)
    return [objective.show(value) for objective, value in pairs]


def front_rule(front: Front) -> str:
    """What the front is, and what it owes to noise."""
    names = ", ".join(f"{each.name} ({each.mode})" for each in front.objectives)
    text = (
        f"The front by {names}: no other trial is as good on all of them and better on one. One"
        " trial beats another if it is better by more than the noise explains on one objective and"
        " worse by more than that on none: 'front by noise' is beaten so by the trial named,"
        " 'ties with front' stands beside the front and is not."
    )
    if any(place.is_repeated for place in front.places):
        text += (
            " Finalists stand by their means over new seeds; a trial that was not repeated pushes"
            " none of them from the front."
        )
    return f"{text} {front_limits(front)}"


def front_limits(front: Front) -> str:
    """Up to which differences values tie."""
    told = [_limit(o, n) for o, n in zip(front.objectives, front.noises, strict=True)]
    return f"Differences of two single values that count as ties: {'; '.join(told)}."


def _limit(objective: Objective, noise: Noise) -> str:
    if noise.deviation == 0.0:
        why = "" if noise.source == "declared" else " (its noise is neither declared nor measured)"
        return f"{objective.name} none{why}"
    return f"{objective.name} {objective.show(noise.threshold())} (noise {noise.source})"


def short_label(label: str) -> str:
    """A trial's name without its hash: `t007`, `control`."""
    return label.rsplit("-", 1)[0]


def params_line(params: Mapping[str, ParamValue]) -> str:
    """Parameters by name: `amplification=1.2, residual_weight=0.4`."""
    return ", ".join(f"{name}={short_value(params[name])}" for name in sorted(params))


def short_value(value: ParamValue) -> str:
    """A parameter's value, its first digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
