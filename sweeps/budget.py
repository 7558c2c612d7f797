"""What a sweep does next, and which budget ends it. Pure.

The control comes first, then the search, then the finals. The search ends at the first limit; of
GPU-hours and hours it leaves what the finals will take, as far as trainings so far tell. What runs
when a limit is reached goes on to its own end. GPU-hours that running trials have yet to spend are
spoken for, so that a sweep goes past its limit by one training at most. Finals begin when the last
searched trial has ended, so before them none begins that may not end within the hours left to it.
"""

import math
from dataclasses import dataclass
from typing import Literal

from sweeps.spec import SweepSpec

Limit = Literal["trials", "gpu_hours", "hours"]
Next = Literal["control", "search", "finals", "wait", "end"]


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a spec asks for.

    Attributes:
        num_controls: Seeds of the control that come first.
        num_finals: Trainings of the finals, the control's among them.
        gpus: Of one trial.
    """

    num_controls: int
    num_finals: int
    gpus: int
    trials: int | None = None
    gpu_hours: float | None = None
    hours: float | None = None

    @property
    def num_trainings(self) -> int | None:
        """All trainings; None if the number of trials has no limit."""
        return None if self.trials is None else self.num_controls + self.trials + self.num_finals


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a sweep is.

    Attributes:
        num_controls: Trainings of the control that have begun; likewise the others.
        num_search_running: Searched trials that have not ended.
        trial_hours: Wall hours that trials have taken, each counted by itself.
        rest_hours: The same that running trials will take if they run to their end.
        hours: Wall hours of the sweep.
        full_hours: Wall hours of a full training; None while none has ended.
        slots: Trials at once.
    """

    num_controls: int = 0
    num_searched: int = 0
    num_search_running: int = 0
    num_finals: int = 0
    trial_hours: float = 0.0
    rest_hours: float = 0.0
    hours: float = 0.0
    full_hours: float | None = None
    slots: int = 1


@dataclass(frozen=True, kw_only=True)
class Step:
    """What comes next.

    Attributes:
        limit: What ended the search, once it has ended.
        reason: The same in words.
    """

    next: Next
    limit: Limit | None = None
    reason: str = ""


def course_of(spec: SweepSpec) -> Course:
    """The course that a spec asks for."""
    finals = 0
    if spec.finalists is not None:
        finals = spec.finalists.top * spec.finalists.seeds
        if spec.control_seeds:  # those of its seeds that the noise did not need
            finals += max(0, spec.finalists.seeds - (spec.control_seeds - 1))
    return Course(
        num_controls=spec.control_seeds,
        num_finals=finals,
        gpus=spec.resources.gpus,
        trials=spec.budget.trials,
        gpu_hours=spec.budget.gpu_hours,
        hours=spec.budget.hours,
    )


def next_step(course: Course, now: Progress) -> Step:
    """Decide what the next free slot is for."""
    if now.num_controls < course.num_controls:
        return Step(next="control")
    if now.num_finals:
        return _finals(course, now)
    limit, reason = _limit_of_search(course, now)
    if limit is None:
        return Step(next="wait" if _is_spoken_for(course, now) else "search")
    if not course.num_finals:
        return Step(next="end", limit=limit, reason=reason)
    if now.num_search_running:
        return Step(next="wait", limit=limit, reason=reason)
    last = _finals(course, now)
    return last if last.limit else Step(next=last.next, limit=limit, reason=reason)


def _limit_of_search(course: Course, now: Progress) -> tuple[Limit | None, str]:
    full = now.full_hours or 0.0
    if course.trials is not None and now.num_searched >= course.trials:
        return "trials", f"all {course.trials} trials have begun"
    if course.gpu_hours is not None:
        spent = now.trial_hours * course.gpus
        kept = course.num_finals * full * course.gpus
        if spent + kept >= course.gpu_hours:
            return "gpu_hours", _told(spent, kept, course.gpu_hours, "GPU-hours")
    if course.hours is not None:
        kept = math.ceil(course.num_finals / now.slots) * full
        # Without a searched trial the finals have nothing to repeat.
        last = full if course.num_finals and now.num_searched else 0.0
        if now.hours + kept >= course.hours or now.hours + last + kept > course.hours:
            told = _told(now.hours, kept, course.hours, "hours")
            return "hours", f"{told}, and a trial takes {last:.3g}" if last else told
    return None, ""


def _is_spoken_for(course: Course, now: Progress) -> bool:
    """Whether running trials will take what is left of the GPU-hours."""
    if course.gpu_hours is None or not now.num_search_running:
        return False
    finals = course.num_finals * (now.full_hours or 0.0)
    return (now.trial_hours + now.rest_hours + finals) * course.gpus >= course.gpu_hours


def _finals(course: Course, now: Progress) -> Step:
    spent = now.trial_hours * course.gpus
    if course.gpu_hours is not None and spent >= course.gpu_hours:
        told = _told(spent, 0.0, course.gpu_hours, "GPU-hours")
        return Step(next="end", limit="gpu_hours", reason=f"{told}, before the finals ended")
    if course.hours is not None and now.hours >= course.hours:
        told = _told(now.hours, 0.0, course.hours, "hours")
        return Step(next="end", limit="hours", reason=f"{told}, before the finals ended")
    return Step(next="finals")


def _told(spent: float, kept: float, limit: float, unit: str) -> str:
    held = f", {kept:.3g} kept for the finals" if kept else ""
    return f"{spent:.3g} of {limit:g} {unit} are spent{held}"
