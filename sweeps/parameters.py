"""The kinds of parameters in a space: intervals, lists, constants, derivations, schedules."""

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field

from sweeps.expressions import Expression, parse
from sweeps.record import ParamValue
from sweeps.section import Section, got

# A grid finer than this makes no difference to a trained model, and floats cannot keep it.
GRID_TOLERANCE = 1e-9
SCHEDULE_SUFFIX = "_schedule"


class Conditional(Section):
    """What every parameter may have: a condition without which a trial does not have it."""

    when: str | None = Field(
        default=None,
        description="Condition on other parameters; where it is false a trial lacks this one.",
    )

    def rules(self) -> Iterator[tuple[str, str]]:
        """A condition must be one."""
        if self.when is None:
            return
        try:
            if not parse(self.when).is_condition:
                yield "when", f"must compare, as in `a == 'text'`, {got(self.when)}"
        except ValueError as error:
            yield "when", str(error)

    @cached_property
    def condition(self) -> Expression | None:
        """The parsed condition."""
        return None if self.when is None else parse(self.when)


class Range(Conditional):
    """An interval, searched linearly or by its logarithm, whole or in steps.

    Its unit coordinate is what the sampler sees as near and far.
    """

    low: float
    high: float
    log: bool = Field(default=False, description="Search by the logarithm.")
    step: float | None = Field(default=None, gt=0, description="Only low, low + step, ...")
    whole: bool = Field(default=False, alias="int", description="Whole numbers only.")
    points: int | None = Field(
        default=None, ge=2, description="Values that sampler grid takes, both ends among them."
    )

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what breaks the interval."""
        yield from super().rules()
        if self.low > self.high:
            yield "low", f"`low <= high` must hold, but got (low={self.low:g}, high={self.high:g})"
        if self.log and self.low <= 0:
            yield "low", f"`low > 0` must hold with log, but got (low={self.low:g})"
        if self.log and self.step is not None:
            yield "step", f"must not be given with log, but got (step={self.step:g})"
        if self.points is not None and self.step is not None:
            yield "points", f"must not be given with step, but got (points={self.points})"
        if self.whole:
            for name in ("low", "high", "step"):
                value = getattr(self, name)
                if value is not None and not value.is_integer():
                    yield name, f"must be whole with int, but got ({name}={value:g})"
        on_grid = self.step is None or self._fits_grid(self.high)
        if not self.log and self.low <= self.high and not on_grid:
            yield (
                "step",
                (
                    f"`high - low` must be a multiple of step, but got (low={self.low:g}, "
                    f"high={self.high:g}, step={self.step:g})"
                ),
            )

    @property
    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    @property
    def grid(self) -> tuple[ParamValue, ...] | None:
        """The values that a grid takes, ascending; None if nothing says which."""
        if self.low == self.high:
            return (self.at(0.0),)
        if self.points is not None:
            count = self.points
        elif self._grid is not None:
            count = round((self.high - self.low) / self._grid) + 1
            # Steps are even in the value, not in the logarithm.
            values = (self.low + i * self._grid for i in range(count))
            return tuple(int(v) if self.whole else min(v, self.high) for v in values)
        else:
            return None
        return tuple(dict.fromkeys(self.at(i / (count - 1)) for i in range(count)))

    def contains(self, value: Any) -> bool:
        """Whether the value can be drawn."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and self._fits_grid(float(value))

    def at(self, unit: float) -> ParamValue:
        """The value at a coordinate in [0, 1]."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + unit * (high - low))
        else:
            value = self.low + unit * (self.high - self.low)
        if self._grid is not None:
            value = self.low + round((value - self.low) / self._grid) * self._grid
        value = min(max(value, self.low), self.high)
        return int(value) if self.whole else value

    def unit(self, value: Any) -> float:
        """The coordinate of a value in [0, 1]."""
        if self.low == self.high:
            return 0.0
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @property
    def _grid(self) -> float | None:
        return 1.0 if self.whole and self.step is None else self.step

    def _fits_grid(self, value: float) -> bool:
        if self._grid is None:
            return True
        steps = (value - self.low) / self._grid
        return abs(steps - round(steps)) <= GRID_TOLERANCE * max(1.0, abs(steps))


class Choices(Conditional):
    """A list of values without order."""

    choices: tuple[float | int | bool | str, ...] = Field(strict=False)

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what breaks the list."""
        yield from super().rules()
        if not self.choices:
            yield "choices", "must not be empty, but got []"
        repeated = [
            value for i, value in enumerate(self.choices) if index(self.choices[:i], value) >= 0
        ]
        if repeated:
            yield "choices", f"must differ from each other, but got {repeated[0]!r} twice"

    @property
    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        return CategoricalDistribution(self.choices)

    @property
    def grid(self) -> tuple[ParamValue, ...]:
        """The values that a grid takes."""
        return self.choices

    def contains(self, value: Any) -> bool:
        """Whether the value can be drawn."""
        return index(self.choices, value) >= 0

    def at(self, unit: float) -> ParamValue:
        """The value at a coordinate in [0, 1]."""
        return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]

    def unit(self, value: Any) -> float:
        """A coordinate of a value in [0, 1]."""
        return (index(self.choices, value) + 0.5) / len(self.choices)


class Fixed(Conditional):
    """A constant: the same in every trial, and told with its parameters."""

    fixed: float | int | bool | str


class Derived(Conditional):
    """A quantity computed from others, such as the clamp from amplification and residual weight."""

    derive: str

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what breaks the expression."""
        yield from super().rules()
        try:
            parse(self.derive)
        except ValueError as error:
            yield "derive", str(error)

    @cached_property
    def expression(self) -> Expression:
        """The parsed expression."""
        return parse(self.derive)


Axis = Range | Choices
Single = Range | Choices | Fixed | Derived
Part = float | Range | Choices | Fixed | Derived

_NEEDED = {
    "constant": ("value",),
    "cosine": ("start_value", "end_value"),
    "staged": ("stages",),
}
_POSSIBLE = {**_NEEDED, "cosine": ("start_value", "end_value", "warmup_epochs", "end_epoch")}


class Schedule(Conditional):
    """A value that follows the training; each of its numbers may be searched.

    Numbers become parameters of their own, named behind a dot: `x.start_value`, and of stage 2
    `x.from_epoch_2` and `x.value_2`.
    """

    schedule: Literal["constant", "cosine", "staged"]
    value: Part | None = None
    start_value: Part | None = None
    end_value: Part | None = None
    warmup_epochs: Part | None = None
    end_epoch: Part | None = None
    stages: tuple[tuple[Part, Part], ...] | None = Field(
        default=None, strict=False, description="(from_epoch, value) of each, the first from 0."
    )

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what the kind of schedule lacks, or does not take."""
        yield from super().rules()
        for key in PART_KEYS:
            is_given = getattr(self, key) is not None
            if key in _NEEDED[self.schedule] and not is_given:
                yield key, f"must be given in a {self.schedule} schedule"
            if is_given and key not in _POSSIBLE[self.schedule]:
                possible = ", ".join(_POSSIBLE[self.schedule])
                yield (
                    key,
                    f"must not be given in a {self.schedule} schedule, which takes {possible}",
                )
        for key, part in self._given():
            if isinstance(part, Conditional) and part.when is not None:
                yield key, "must not have a condition of its own: `when` stands by `schedule`"
        if self.stages is not None:
            starts = [_number(start) for start, _ in self.stages]
            if not starts or starts[0] != 0:
                yield "stages", f"must begin at epoch 0, {got(starts[0] if starts else [])}"
            elif any(a is not None and b is not None and a >= b for a, b in pairwise(starts)):
                yield "stages", f"must begin one after the other, {got(starts)}"
        start, end = _number(self.warmup_epochs), _number(self.end_epoch)
        if end is not None and end <= (start or 0.0):
            yield "end_epoch", f"must lie behind the warm-up, {got(end)}"

    def parts(self) -> Iterator[tuple[str, Single]]:
        """Its numbers as parameters, by their names behind the dot."""
        yield "type", Fixed(fixed=self.schedule, when=self.when)
        for key in _POSSIBLE[self.schedule]:
            if key != "stages" and (part := getattr(self, key)) is not None:
                yield key, self._single(part)
        for number, (start, value) in enumerate(self.stages or (), 1):
            yield f"from_epoch_{number}", self._single(start)
            yield f"value_{number}", self._single(value)

    def order(self, name: str) -> Iterator[str]:
        """The conditions on its epochs where some of them are searched."""
        starts = [start for start, _ in self.stages or ()]
        for number, pair in enumerate(pairwise(starts), 1):
            if None in map(_number, pair):
                yield f"{name}.from_epoch_{number} < {name}.from_epoch_{number + 1}"
        ends = (self.warmup_epochs, self.end_epoch)
        if None not in ends and None in map(_number, ends):
            yield f"{name}.warmup_epochs < {name}.end_epoch"

    def _given(self) -> Iterator[tuple[str, Part]]:
        for key in PART_KEYS:
            part = getattr(self, key)
            if key != "stages" and part is not None:
                yield key, part
        for start, value in self.stages or ():
            yield from (("stages", start), ("stages", value))

    def _single(self, part: Part) -> Single:
        if isinstance(part, int | float):
            return Fixed(fixed=part, when=self.when)
        return part if self.when is None else part.model_copy(update={"when": self.when})


Parameter = Range | Choices | Fixed | Derived | Schedule
PART_KEYS = tuple(key for key in Schedule.model_fields if key not in ("schedule", "when"))


def is_epoch(part: str) -> bool:
    """Whether a part of a schedule counts epochs; else it is a value, or the type."""
    return "epoch" in part


def index(choices: tuple[Any, ...], value: Any) -> int:
    """Where the value stands; true is not 1 here, as it is not in a config file."""
    for i, choice in enumerate(choices):
        if choice == value and isinstance(choice, bool) == isinstance(value, bool):
            return i
    return -1


def _number(part: Part | None) -> float | None:
    """The number of a part that is not searched."""
    if isinstance(part, Fixed):
        part = part.fixed if isinstance(part.fixed, int | float) else None
    return float(part) if isinstance(part, int | float) else None
