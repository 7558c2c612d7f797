"""The search space: sampled axes, derived quantities, constraints. Values in, values out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field
from scipy.optimize import brentq

from sweeps.expressions import Expression, parse
from sweeps.record import ParamValue
from sweeps.section import Section

# A grid finer than this makes no difference to a trained model, and floats cannot keep it.
GRID_TOLERANCE = 1e-9
MAX_DRAWS = 5_000
NUM_CANDIDATES = 256
NUM_BISECTIONS = 20


class Range(Section):
    """An interval, searched linearly or by its logarithm, whole or in steps.

    Its unit coordinate is what the sampler sees as near and far.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = Field(default=None, gt=0)
    whole: bool = Field(default=False, alias="int")

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what breaks the interval."""
        if self.low > self.high:
            yield "low", f"`low <= high` must hold, but got (low={self.low:g}, high={self.high:g})"
        if self.log and self.low <= 0:
            yield "low", f"`low > 0` must hold with log, but got (low={self.low:g})"
        if self.log and self.step is not None:
            yield "step", f"must not be given with log, but got (step={self.step:g})"
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


class Choices(Section):
    """A list of values without order."""

    choices: tuple[float | int | bool | str, ...] = Field(strict=False)

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what breaks the list."""
        if not self.choices:
            yield "choices", "must not be empty, but got []"
        repeated = [
            value for i, value in enumerate(self.choices) if _index(self.choices[:i], value) >= 0
        ]
        if repeated:
            yield "choices", f"must differ from each other, but got {repeated[0]!r} twice"

    @property
    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        return CategoricalDistribution(self.choices)

    def contains(self, value: Any) -> bool:
        """Whether the value can be drawn."""
        return _index(self.choices, value) >= 0

    def at(self, unit: float) -> ParamValue:
        """The value at a coordinate in [0, 1]."""
        return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]

    def unit(self, value: Any) -> float:
        """A coordinate of a value in [0, 1]."""
        return (_index(self.choices, value) + 0.5) / len(self.choices)


class Derived(Section):
    """A quantity computed from others, such as the clamp from amplification and residual weight."""

    derive: str

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what breaks the expression."""
        try:
            parse(self.derive)
        except ValueError as error:
            yield "derive", str(error)

    @cached_property
    def expression(self) -> Expression:
        """The parsed expression."""
        return parse(self.derive)


Axis = Range | Choices
Parameter = Range | Choices | Derived


class Space:
    """All parameters of a sweep together.

    Args:
        parameters: By name: knobs or dotted config keys. Names in expressions must be among them.
        constraints: Conditions on parameters, derived ones included.

    Raises:
        ValueError: If derived quantities depend on each other in a circle.
    """

    def __init__(self, parameters: Mapping[str, Parameter], constraints: Sequence[str] = ()):
        self.axes = {k: p for k, p in parameters.items() if not isinstance(p, Derived)}
        derived = {k: p.expression for k, p in parameters.items() if isinstance(p, Derived)}
        self.derived = _in_order(derived)
        self.constraints = tuple(parse(text) for text in constraints)

    def distributions(self) -> dict[str, BaseDistribution]:
        """The sampled axes for Optuna."""
        return {name: axis.distribution for name, axis in self.axes.items()}

    def resolve(self, sampled: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
        """Add the derived quantities to a sampled point.

        Raises:
            ValueError: If one has no finite value there.
        """
        params = dict(sampled)
        for name, expression in self.derived.items():
            params[name] = expression.evaluate(params)
        return params

    def violations(self, params: Mapping[str, ParamValue]) -> tuple[str, ...]:
        """The constraints that resolved parameters break."""
        return tuple(c.text for c in self.constraints if not _holds(c, params))

    def is_feasible(self, sampled: Mapping[str, ParamValue]) -> bool:
        """Whether a sampled point has all its derived quantities and breaks no constraint."""
        try:
            return not self.violations(self.resolve(sampled))
        except ValueError:
            return False

    def draw(self, rng: np.random.Generator) -> dict[str, ParamValue]:
        """Draw a feasible point uniformly.

        Raises:
            ValueError: If none was found, so that the constraints leave (almost) no space.
        """
        for _ in range(MAX_DRAWS):
            sampled = {name: axis.at(rng.random()) for name, axis in self.axes.items()}
            if self.is_feasible(sampled):
                return sampled
        raise ValueError(f"none of {MAX_DRAWS} points of the space meets the constraints")

    def nearest(
        self, sampled: Mapping[str, ParamValue], rng: np.random.Generator
    ) -> dict[str, ParamValue]:
        """Move a point that breaks constraints to the edge of what they allow.

        The nearest of some feasible points is pulled towards the point as far as it stays
        feasible; so a proposal beyond an edge becomes one at that edge.
        """
        drawn = [self.draw(rng) for _ in range(NUM_CANDIDATES)]
        start = min(drawn, key=lambda candidate: self._distance(candidate, sampled))
        inside, outside, best = 0.0, 1.0, start
        for _ in range(NUM_BISECTIONS):
            middle = (inside + outside) / 2
            trial = self._between(start, sampled, middle)
            if self.is_feasible(trial):
                inside, best = middle, trial
            else:
                outside = middle
        return best

    def invert(
        self, params: Mapping[str, ParamValue], defaults: Mapping[str, ParamValue]
    ) -> dict[str, ParamValue]:
        """Find the sampled axes of a point given in resolved parameters.

        An axis comes from the point itself, from a derived quantity it gives, or from the
        defaults, in this order.

        Raises:
            ValueError: If an axis cannot be found, or a value lies outside its axis.
        """
        sampled = {name: params[name] for name in self.axes if name in params}
        while missing := [name for name in self.axes if name not in sampled]:
            if solved := self._solve_one(params, sampled, missing):
                sampled.update(solved)
                continue
            name = next((name for name in missing if name in defaults), None)
            if name is None:
                raise ValueError(f"must give {', '.join(missing)}, which nothing else determines")
            sampled[name] = defaults[name]
        for name, axis in self.axes.items():
            if not axis.contains(sampled[name]):
                raise ValueError(f"{name}={sampled[name]!r} lies outside its axis in `space`")
        self._check_derived(params, sampled)
        return sampled

    def _check_derived(
        self, params: Mapping[str, ParamValue], sampled: Mapping[str, ParamValue]
    ) -> None:
        resolved = self.resolve(sampled)
        for name in self.derived.keys() & params.keys():
            told, computed = params[name], resolved[name]
            if not math.isclose(float(told), float(computed), rel_tol=1e-6, abs_tol=1e-9):
                raise ValueError(f"{name}={told!r} contradicts its derivation, {computed!r}")

    def _solve_one(
        self,
        params: Mapping[str, ParamValue],
        sampled: Mapping[str, ParamValue],
        missing: Sequence[str],
    ) -> dict[str, ParamValue]:
        """Solve one derived quantity that the point gives for the one axis it lacks."""
        for name in self.derived:
            unknowns = self._axes_below(name).intersection(missing)
            if name not in params or len(unknowns) != 1:
                continue
            (axis_name,) = unknowns
            value = self._root(axis_name, name, float(params[name]), sampled)
            return {axis_name: value}
        return {}

    def _root(
        self, axis_name: str, name: str, target: float, sampled: Mapping[str, ParamValue]
    ) -> ParamValue:
        axis = self.axes[axis_name]

        def gap(unit: float) -> float:
            known = {**sampled, axis_name: axis.at(unit)}
            return self._value_of(name, known) - target

        units = np.linspace(0.0, 1.0, 129)
        gaps = [_or_nan(gap, float(unit)) for unit in units]
        tolerance = 1e-9 * max(1.0, abs(target))
        for i, here in enumerate(gaps):
            if abs(here) <= tolerance:
                return axis.at(float(units[i]))
            if i and here * gaps[i - 1] < 0:
                root = cast(float, brentq(gap, units[i - 1], units[i], xtol=1e-14))
                if abs(gap(root)) <= 1e-6 * max(1.0, abs(target)):
                    return axis.at(root)
        raise ValueError(f"{name}={target:g} is not reached by any {axis_name} in `space`")

    def _value_of(self, name: str, known: Mapping[str, ParamValue]) -> float:
        values = dict(known)
        for each, expression in self.derived.items():
            if expression.names <= values.keys():
                values[each] = expression.evaluate(values)
        return float(values[name])

    def _axes_below(self, name: str) -> set[str]:
        if name in self.axes:
            return {name}
        return {axis for each in self.derived[name].names for axis in self._axes_below(each)}

    def _distance(self, a: Mapping[str, ParamValue], b: Mapping[str, ParamValue]) -> float:
        return sum(
            float(a[name] != b[name])
            if isinstance(axis, Choices)
            else (axis.unit(a[name]) - axis.unit(b[name])) ** 2
            for name, axis in self.axes.items()
        )

    def _between(
        self, a: Mapping[str, ParamValue], b: Mapping[str, ParamValue], share: float
    ) -> dict[str, ParamValue]:
        return {
            name: a[name]
            if isinstance(axis, Choices)
            else axis.at((1 - share) * axis.unit(a[name]) + share * axis.unit(b[name]))
            for name, axis in self.axes.items()
        }


def _in_order(derived: Mapping[str, Expression]) -> dict[str, Expression]:
    """Order derived quantities so that each follows those it reads."""
    ordered: dict[str, Expression] = {}
    while len(ordered) < len(derived):
        ready = {
            name: expression
            for name, expression in derived.items()
            if name not in ordered and not (expression.names & derived.keys()) - ordered.keys()
        }
        if not ready:
            circle = ", ".join(name for name in derived if name not in ordered)
            raise ValueError(
                f"derived quantities must not depend on each other in a circle: {circle}"
            )
        ordered.update(ready)
    return ordered


def _holds(constraint: Expression, params: Mapping[str, ParamValue]) -> bool:
    try:
        return bool(constraint.evaluate(params))
    except ValueError:
        return False


def _or_nan(function: Any, unit: float) -> float:
    try:
        return function(unit)
    except ValueError:
        return math.nan


def _index(choices: Sequence[Any], value: Any) -> int:
    """Where the value stands; true is not 1 here, as it is not in a config file."""
    for i, choice in enumerate(choices):
        if choice == value and isinstance(choice, bool) == isinstance(value, bool):
            return i
    return -1
