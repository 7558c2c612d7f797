"""Signals in the curves of a trial, beside those of the control: each test says what it sees.

A test takes one metric at a time and returns words where the signal is there, else None. Where a
comparison lacks its other side, nothing is said.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal

Points = Sequence[tuple[int, float]]
Test = Literal[
    "above",
    "below",
    "at_most",
    "off_neutral",
    "saturated",
    "rising",
    "flat",
    "above_control",
    "diverging",
    "times_control",
]

NEUTRAL = 1.0
MIN_NEIGHBOURS = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """One metric before one test.

    Attributes:
        points: All finite values by rising step.
        recent: The last of them, those that are judged.
        control: Finite values of the metric in each run of the control.
        clamp: The clamp of the weight maps, if it was reported.
    """

    metric: str
    threshold: float
    points: Points
    recent: Points
    control: tuple[Points, ...] = ()
    clamp: float | None = None


def finite(points: Points) -> Points:
    """Without what is not a number, which is no report."""
    return [(step, value) for step, value in points if math.isfinite(value)]


def _above(case: Case) -> str | None:
    holds = all(value > case.threshold for _, value in case.recent)
    return _told(case, f"above {case.threshold:g}") if holds else None


def _below(case: Case) -> str | None:
    holds = all(value < case.threshold for _, value in case.recent)
    return _told(case, f"below {case.threshold:g}") if holds else None


def _at_most(case: Case) -> str | None:
    holds = all(value <= case.threshold for _, value in case.recent)
    return _told(case, f"not above {case.threshold:g}") if holds else None


def _off_neutral(case: Case) -> str | None:
    threshold = case.threshold
    holds = all(abs(value - NEUTRAL) > threshold for _, value in case.recent)
    return _told(case, f"more than {threshold:g} from neutral {NEUTRAL:g}") if holds else None


def _saturated(case: Case) -> str | None:
    # At a clamp of 1 the neutral background itself stands at the clamp.
    return None if case.clamp is not None and case.clamp <= NEUTRAL else _above(case)


def _rising(case: Case) -> str | None:
    num = len(case.recent)
    earlier = case.points[:-num]
    blocks = [earlier[start : start + num] for start in range(0, len(earlier) - num + 1, num)]
    if not blocks:
        return None
    best = min(blocks, key=_mean)
    if _mean(best) <= 0:  # a share of nothing
        return None
    rise = _mean(case.recent) / _mean(best) - 1
    allowed, at_control = case.threshold, ""
    before, now = _control_at(case.control, best), _control_at(case.control, case.recent)
    if before and now and fmean(before) > 0:
        own = fmean(now) / fmean(before) - 1
        allowed += max(0.0, own)
        at_control = f"; the control's changed by {own:+.1%}"
    if rise <= allowed:
        return None
    return (
        f"{case.metric} rose by {rise:.1%}, from {_mean(best):.4g} at steps {_span(best)} to "
        f"{_mean(case.recent):.4g} at steps {_span(case.recent)} (allowed {allowed:.1%}"
        f"{at_control})"
    )


def _flat(case: Case) -> str | None:
    num = len(case.recent)
    first = case.points[:num]
    if len(case.points) < 2 * num:
        return None
    before, now = _control_at(case.control, first), _control_at(case.control, case.recent)
    sigma = _scatter(case.control, case.recent[-1][0])
    if before is None or now is None or sigma is None:
        return None
    fall, own = _mean(first) - _mean(case.recent), fmean(before) - fmean(now)
    least = case.threshold * sigma
    if own <= least or fall > sigma:
        return None
    return (
        f"{case.metric} fell by {fall:.4g} from steps {_span(first)} to {_span(case.recent)}, the "
        f"control's by {own:.4g} (more than {case.threshold:g} x {sigma:.4g}, its scatter)"
    )


def _above_control(case: Case) -> str | None:
    excess = _excess(case)
    if excess is None:
        return None
    gaps, sigma = excess
    limit = case.threshold * sigma
    return _beside(case, fmean(gaps), sigma) if fmean(gaps) > limit else None


def _diverging(case: Case) -> str | None:
    excess = _excess(case)
    if excess is None:
        return None
    gaps, sigma = excess
    half = len(gaps) // 2
    growth = fmean(gaps[-half:]) - fmean(gaps[:half])
    if min(gaps) <= case.threshold * sigma or growth <= sigma:
        return None
    return f"{_beside(case, fmean(gaps), sigma)}, and {growth:.4g} more at their end"


def _times_control(case: Case) -> str | None:
    beside = _control_at(case.control, case.recent)
    if beside is None or fmean(beside) <= 0:
        return None
    ratio = _mean(case.recent) / fmean(beside)
    if ratio <= case.threshold:
        return None
    return (
        f"{case.metric} is {_mean(case.recent):.4g} at steps {_span(case.recent)}, {ratio:.2f} "
        f"times the control's {fmean(beside):.4g} (allowed {case.threshold:g})"
    )


TESTS: Mapping[Test, Callable[[Case], str | None]] = {
    "above": _above,
    "below": _below,
    "at_most": _at_most,
    "off_neutral": _off_neutral,
    "saturated": _saturated,
    "rising": _rising,
    "flat": _flat,
    "above_control": _above_control,
    "diverging": _diverging,
    "times_control": _times_control,
}


def _excess(case: Case) -> tuple[list[float], float] | None:
    """By how much the recent values exceed the control's, and the control's scatter there."""
    beside = _control_at(case.control, case.recent)
    sigma = _scatter(case.control, case.recent[-1][0])
    if beside is None or sigma is None:
        return None
    own = [value for _, value in case.recent]
    return [mine - its for mine, its in zip(own, beside, strict=True)], sigma


def _control_at(control: Sequence[Points], points: Points) -> list[float] | None:
    """The control's mean curve at the steps of some points; None where it does not reach them."""
    curves = [
        values
        for run in control
        if None not in (values := [_at(run, step) for step, _ in points]) and values
    ]
    if not curves:
        return None
    columns = zip(*curves, strict=True)
    return [fmean(value for value in column if value is not None) for column in columns]


def _at(points: Points, step: int) -> float | None:
    """A curve's value at a step, between two reports by a straight line."""
    if not points or not points[0][0] <= step <= points[-1][0]:
        return None
    after = bisect_left(points, step, key=lambda point: point[0])
    (right, high), (left, low) = points[after], points[max(0, after - 1)]
    share = (step - left) / (right - left) if right > left else 1.0
    return low + share * (high - low)


def _scatter(control: Sequence[Points], step: int) -> float | None:
    """How much a report of the control scatters about its own curve around a step.

    From differences of neighbours, which the curve's slope hardly touches.
    """
    squares: list[float] = []
    for run in control:
        near = sorted(run, key=lambda point: abs(point[0] - step))[: 4 * MIN_NEIGHBOURS + 1]
        near.sort()
        squares += [(b - a) ** 2 / 2 for (_, a), (_, b) in pairwise(near)]
    if len(squares) < MIN_NEIGHBOURS:
        return None
    return math.sqrt(fmean(squares)) or None


def _mean(points: Points) -> float:
    return fmean(value for _, value in points)


def _span(points: Points) -> str:
    first, last = points[0][0], points[-1][0]
    return str(first) if first == last else f"{first}-{last}"


def _told(case: Case, limit: str) -> str:
    values = [value for _, value in case.recent]
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    shown = low if low == high else f"{low} to {high}"
    return f"{case.metric} is {shown} at steps {_span(case.recent)}, {limit}"


def _beside(case: Case, gap: float, sigma: float) -> str:
    return (
        f"{case.metric} is {_mean(case.recent):.4g} at steps {_span(case.recent)}, {gap:.4g} above "
        f"the control's: {gap / sigma:.1f} times its scatter {sigma:.4g} "
        f"(allowed {case.threshold:g})"
    )
