"""The search space: sampled axes, constants, derived quantities, conditions, constraints.

Values in, values out. A parameter whose condition does not hold is inactive: neither a sampled
point nor its parameters have it. What reads an inactive parameter is inactive, too: a derived
quantity, a condition (which then does not hold), a constraint (which then does not apply).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, product
from typing import Any, cast

import numpy as np
from optuna.distributions import BaseDistribution
from scipy.optimize import brentq

from sweeps.expressions import Expression, parse
from sweeps.parameters import Axis as Axis
from sweeps.parameters import Choices as Choices
from sweeps.parameters import Derived as Derived
from sweeps.parameters import Fixed as Fixed
from sweeps.parameters import Parameter as Parameter
from sweeps.parameters import Range as Range
from sweeps.parameters import Schedule as Schedule
from sweeps.parameters import Single as Single
from sweeps.record import ParamValue

MAX_DRAWS = 5_000
MAX_GRID = 100_000
NUM_CANDIDATES = 256
NUM_BISECTIONS = 20


class Space:
    """All parameters of a sweep together.

    Args:
        parameters: By name: knobs or dotted config keys. Names in expressions must be among them,
            or among the parts of their schedules.
        constraints: Conditions on parameters, derived ones included.

    Raises:
        ValueError: If derived quantities or conditions depend on each other in a circle.

    Attributes:
        parameters: All of them, schedules in their parts.
        axes: What is sampled.
        fixed: What is the same in every trial.
        derived: What is computed, each behind those it reads.
        conditions: Without which a parameter is inactive.
        constraints: What every point meets; the order of a schedule's epochs is among them.
    """

    def __init__(self, parameters: Mapping[str, Parameter], constraints: Sequence[str] = ()):
        self.parameters = flatten(parameters)
        singles = self.parameters.items()
        self.axes = {k: p for k, p in singles if isinstance(p, Range | Choices)}
        self.fixed = {k: p.fixed for k, p in singles if isinstance(p, Fixed)}
        self.conditions = {k: p.condition for k, p in singles if p.condition is not None}
        self._order = _in_order(self.parameters)
        self.derived: dict[str, Expression] = {
            name: parameter.expression
            for name in self._order
            if isinstance(parameter := self.parameters[name], Derived)
        }
        own = (
            text
            for name, p in parameters.items()
            if isinstance(p, Schedule)
            for text in p.order(name)
        )
        self.constraints = tuple(parse(text) for text in (*constraints, *own))

    def distributions(
        self, sampled: Mapping[str, ParamValue] | None = None
    ) -> dict[str, BaseDistribution]:
        """The sampled axes for Optuna; given a point, those that it has."""
        names = self.axes if sampled is None else (name for name in self.axes if name in sampled)
        return {name: self.axes[name].distribution for name in names}

    def resolve(self, sampled: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
        """The parameters of a sampled point; values of inactive axes are left out.

        Raises:
            ValueError: If a derived quantity has no finite value there, or an active axis none.
        """
        params: dict[str, ParamValue] = {}
        for name in self._order:
            if not self._is_active(name, params):
                continue
            if name in self.axes:
                if name not in sampled:
                    raise ValueError(f"must give {name}, which is active")
                params[name] = sampled[name]
            elif name in self.fixed:
                params[name] = self.fixed[name]
            else:
                params[name] = self.derived[name].evaluate(params)
        return {name: params[name] for name in self.parameters if name in params}

    def active(self, sampled: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
        """A sampled point without the values of inactive axes.

        Raises:
            ValueError: See `resolve`.
        """
        if not self.conditions:
            return dict(sampled)
        params = self.resolve(sampled)
        return {name: sampled[name] for name in self.axes if name in params}

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
                return self.active(sampled)
        raise ValueError(f"none of {MAX_DRAWS} points of the space meets the constraints")

    def grid(self) -> list[dict[str, ParamValue]]:
        """All feasible points of the grid, the last axis the fastest.

        Raises:
            ValueError: If an axis does not say its values, or there are too many points.
        """
        values = {name: axis.grid for name, axis in self.axes.items()}
        if endless := [name for name, each in values.items() if each is None]:
            raise ValueError(f"a grid must know how many values {', '.join(endless)} takes")
        rows = product(*cast(Iterable[tuple[ParamValue, ...]], values.values()))
        sampled = [dict(zip(values, row, strict=True)) for row in islice(rows, MAX_GRID + 1)]
        if len(sampled) > MAX_GRID:
            raise ValueError(f"a grid must have no more than {MAX_GRID} points")
        points = [self.active(point) for point in sampled if self.is_feasible(point)]
        return [dict(items) for items in dict.fromkeys(tuple(point.items()) for point in points)]

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
                inside, best = middle, self.active(trial)
            else:
                outside = middle
        return best

    def invert(
        self, params: Mapping[str, ParamValue], defaults: Mapping[str, ParamValue]
    ) -> dict[str, ParamValue]:
        """Find the sampled axes of a point given in resolved parameters.

        An axis comes from the point itself, from a derived quantity it gives, or from the
        defaults, in this order. Inactive axes need no value and get none.

        Raises:
            ValueError: If an axis cannot be found, or a value lies outside its axis.
        """
        sampled = {name: params[name] for name in self.axes if name in params}
        while missing := self._missing(sampled):
            if solved := self._solve_one(params, sampled, missing):
                sampled.update(solved)
                continue
            name = next((name for name in missing if name in defaults), None)
            if name is None:
                raise ValueError(f"must give {', '.join(missing)}, which nothing else determines")
            sampled[name] = defaults[name]
        for name, axis in self.axes.items():
            if name in sampled and not axis.contains(sampled[name]):
                raise ValueError(f"{name}={sampled[name]!r} lies outside its axis in `space`")
        self._check_computed(params, sampled)
        return self.active(sampled)

    def _is_active(self, name: str, params: Mapping[str, ParamValue]) -> bool:
        """Whether a parameter is active, given all active ones that it reads."""
        if name in self.derived and not self.derived[name].names <= params.keys():
            return False
        condition = self.conditions.get(name)
        if condition is None:
            return True
        return condition.names <= params.keys() and bool(condition.evaluate(params))

    def _missing(self, sampled: Mapping[str, ParamValue]) -> list[str]:
        """Axes that a point lacks, as far as is known by now: those that decide come first."""
        params, missing, open_ = {}, [], set[str]()
        for name in self._order:
            if self._reads(name) & open_:
                open_.add(name)  # neither its value nor whether it is active can be said
            elif not self._is_active(name, params):
                continue
            elif name in self.axes and name not in sampled:
                missing.append(name)
                open_.add(name)
            else:
                params[name] = (
                    sampled[name]
                    if name in self.axes
                    else self.fixed[name]
                    if name in self.fixed
                    else self.derived[name].evaluate(params)
                )
        return [name for name in self.axes if name in missing]

    def _reads(self, name: str) -> frozenset[str]:
        return _reads(self.parameters[name])

    def _check_computed(
        self, params: Mapping[str, ParamValue], sampled: Mapping[str, ParamValue]
    ) -> None:
        resolved = self.resolve(sampled)
        for name in self.parameters.keys() & params.keys():
            if name not in resolved:
                condition = self.conditions.get(name)
                why = f": `{condition.text}` does not hold" if condition else ""
                raise ValueError(f"must not give {name}, which is inactive there{why}")
            told, computed = params[name], resolved[name]
            if name in self.fixed and told != computed:
                raise ValueError(f"{name}={told!r} contradicts its fixed value, {computed!r}")
            if name in self.derived and not _is_close(told, computed):
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
        values = {**self.fixed, **known}
        for each, expression in self.derived.items():
            if expression.names <= values.keys():
                values[each] = expression.evaluate(values)
        return float(values[name])

    def _axes_below(self, name: str) -> set[str]:
        if name in self.axes:
            return {name}
        below = self.derived[name].names if name in self.derived else ()
        return {axis for each in below for axis in self._axes_below(each)}

    def _distance(self, a: Mapping[str, ParamValue], b: Mapping[str, ParamValue]) -> float:
        return sum(
            float(a.get(name) != b.get(name))
            if isinstance(axis, Choices) or name not in a or name not in b
            else (axis.unit(a[name]) - axis.unit(b[name])) ** 2
            for name, axis in self.axes.items()
        )

    def _between(
        self, a: Mapping[str, ParamValue], b: Mapping[str, ParamValue], share: float
    ) -> dict[str, ParamValue]:
        return {
            name: a[name]
            if isinstance(axis, Choices) or name not in b
            else axis.at((1 - share) * axis.unit(a[name]) + share * axis.unit(b[name]))
            for name, axis in self.axes.items()
            if name in a
        }


def flatten(parameters: Mapping[str, Parameter]) -> dict[str, Single]:
    """Replace each schedule by its parts, named behind a dot."""
    flat: dict[str, Single] = {}
    for name, parameter in parameters.items():
        if isinstance(parameter, Schedule):
            flat.update((f"{name}.{part}", single) for part, single in parameter.parts())
        else:
            flat[name] = parameter
    return flat


def _reads(parameter: Single) -> frozenset[str]:
    """The parameters that one depends on."""
    read = parameter.expression.names if isinstance(parameter, Derived) else frozenset[str]()
    return read | (parameter.condition.names if parameter.condition else frozenset())


def _in_order(parameters: Mapping[str, Single]) -> tuple[str, ...]:
    """Order parameters so that each follows those it reads."""
    ordered: dict[str, None] = {}
    while len(ordered) < len(parameters):
        ready = [
            name
            for name, parameter in parameters.items()
            if name not in ordered and not (_reads(parameter) & parameters.keys()) - ordered.keys()
        ]
        if not ready:
            circle = ", ".join(name for name in parameters if name not in ordered)
            raise ValueError(
                "derived quantities and conditions must not depend on each other in a circle:"
                f" {circle}"
            )
        ordered.update(dict.fromkeys(ready))
    return tuple(ordered)


def _holds(constraint: Expression, params: Mapping[str, ParamValue]) -> bool:
    if not constraint.names <= params.keys():
        return True
    try:
        return bool(constraint.evaluate(params))
    except ValueError:
        return False


def _is_close(told: ParamValue, computed: ParamValue) -> bool:
    if isinstance(told, str) or isinstance(computed, str):
        return told == computed
    return math.isclose(float(told), float(computed), rel_tol=1e-6, abs_tol=1e-9)


def _or_nan(function: Any, unit: float) -> float:
    try:
        return function(unit)
    except ValueError:
        return math.nan
