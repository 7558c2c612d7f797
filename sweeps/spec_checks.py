"""Checks of a spec that read its space: names, expressions, ranges, known points."""

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sweeps.expressions import Expression, parse
from sweeps.parameters import (
    SCHEDULE_SUFFIX,
    Choices,
    Derived,
    Fixed,
    Parameter,
    Range,
    Schedule,
    Single,
    is_epoch,
)
from sweeps.record import ParamValue
from sweeps.section import Found, Path, got, unknown
from sweeps.sections import AlsoSpec, KnownPoint
from sweeps.space import Space, flatten

NUM_PROBES = 512


class KnobInfo(Protocol):
    """What a spec needs to know about a tunable."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """The config keys it sets; none for a pure search axis."""
        ...

    @property
    def default(self) -> Any:
        """Its value in a run by hand."""
        ...

    @property
    def low(self) -> float | None:
        """Its least value."""
        ...

    @property
    def high(self) -> float | None:
        """Its greatest value."""
        ...

    @property
    def choices(self) -> tuple[Any, ...] | None:
        """Its only values."""
        ...


def check_names(
    space: Mapping[str, Parameter],
    knobs: Mapping[str, KnobInfo],
    has_key: Callable[[str], bool],
) -> Iterator[Found]:
    """Every parameter is a knob, within the knob's range, or a key of the config."""
    for name, parameter in space.items():
        path = ("space", name)
        if name == "seed":
            yield path, "must not be searched: `search.seed` is the seed of every trial"
        elif isinstance(parameter, Schedule) and name not in knobs and not has_key(name):
            schedules = [name for name in knobs if name.endswith(SCHEDULE_SUFFIX)]
            yield path, unknown("schedule", name, schedules)
        elif name in knobs:
            if message := _wrong_form(name, parameter):
                yield path, message
            else:
                yield from _outside(knobs[name], parameter, path)
        elif not has_key(name):
            yield path, _no_name(name, knobs, has_key)


def _no_name(
    name: str,
    knobs: Mapping[str, KnobInfo],
    has_key: Callable[[str], bool],
) -> str:
    """What a name that is neither a knob nor a key may have meant."""
    if "." not in name:
        return f"{unknown('knob', name, knobs)} (a dotted key must exist in the config)"
    parts = name.split(".")
    ends = range(len(parts) - 1, 0, -1)
    there = next((".".join(parts[:end]) for end in ends if has_key(".".join(parts[:end]))), None)
    near = difflib.get_close_matches(name, [*knobs], n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    known = f", which has {there!r} alone of it" if there else ""
    return f"must exist in the config{known}, {got(name)}{hint}"


def _wrong_form(name: str, parameter: Parameter) -> str | None:
    if name.endswith(SCHEDULE_SUFFIX) == isinstance(parameter, Schedule):
        return None
    if isinstance(parameter, Schedule):
        return f"must be a number, not a schedule: that is `{name}{SCHEDULE_SUFFIX}` or its like"
    return "must be a schedule, as in {schedule: cosine, start_value: 0.7, end_value: 0.4}"


def _outside(knob: KnobInfo, parameter: Parameter, path: Path) -> Iterator[Found]:
    """What a parameter asks for beyond its knob's own range."""
    if isinstance(parameter, Schedule):
        for part, single in parameter.parts():
            if part != "type" and not is_epoch(part):
                yield from _outside(knob, single, (*path, *place_of(part)))
        return
    for key, value in _extremes(parameter):
        if message := _refusal(knob, value):
            yield (*path, key), message


def _extremes(parameter: Single) -> list[tuple[str, Any]]:
    """The values that say whether a parameter stays in a range, by their key."""
    match parameter:
        case Range():
            return [("low", parameter.low), ("high", parameter.high)]
        case Choices():
            return [("choices", value) for value in parameter.choices]
        case Fixed():
            return [("fixed", parameter.fixed)]
        case Derived():
            return []


def place_of(part: str) -> Path:
    """Where a part of a schedule stands in the file."""
    name, _, number = part.rpartition("_")
    if not number.isdigit():
        return (part,)
    return ("stages", int(number) - 1, int(name == "value"))


def check_schedules(space: Mapping[str, Parameter], epochs: float) -> Iterator[Found]:
    """Schedules lie inside the training: what begins after its end would never act."""
    for name, parameter in space.items():
        if not isinstance(parameter, Schedule):
            continue
        for part, single in parameter.parts():
            if not is_epoch(part):
                continue
            numbers = [v for _, v in _extremes(single) if not isinstance(v, bool | str)]
            path = ("space", name, *place_of(part))
            if len(numbers) < len(_extremes(single)) or (numbers and min(numbers) < 0):
                yield path, f"must be an epoch, 0 or later, {got(min(numbers, default=None))}"
            elif part != "end_epoch" and numbers and max(numbers) >= epochs:
                yield (
                    path,
                    (
                        f"must lie before the end of the training, train.epochs ({epochs:g}), "
                        f"{got(max(numbers))}"
                    ),
                )


def check_sampler(
    sampler: str, space: Mapping[str, Parameter], *, with_start: bool
) -> Iterator[Found]:
    """The sampler can search the space."""
    where = ("search", "sampler")
    conditional = [name for name, parameter in space.items() if parameter.when is not None]
    if sampler in ("gp", "cmaes") and conditional:
        yield (
            where,
            (
                f"must be tpe, random or grid where a parameter has a condition "
                f"({', '.join(conditional)}), {got(sampler)}: set `search: {{sampler: tpe}}`"
            ),
        )
    if sampler == "grid" and with_start:
        yield ("start",), "must not be given with sampler grid, which visits every point anyway"
    for path, single in _singles(space):
        if sampler == "cmaes" and isinstance(single, Choices):
            yield path, "must be a range with sampler cmaes, which knows numbers alone: take gp"
        if not isinstance(single, Range):
            continue
        if sampler == "grid" and single.grid is None:
            yield path, "must have points, step or int with sampler grid, as in {points: 5}"
        if sampler != "grid" and single.points is not None:
            yield (*path, "points"), f"must not be given with sampler {sampler}: a grid reads it"


def check_objectives(
    metric: str, also: Sequence[AlsoSpec | None], sampler: str, *, with_known: bool
) -> Iterator[Found]:
    """Several objectives differ, and the sampler can search by all of them."""
    before: dict[tuple[str, frozenset[str]], str] = {(metric, frozenset()): "objective.metric"}
    for i, each in enumerate(also):
        if each is None:
            continue
        name = (each.metric, frozenset(each.classes or ()))
        if name in before:
            message = f"must differ from the other objectives, but is the same as {before[name]}"
            yield ("objective", "also", i), message
        before.setdefault(name, f"also.{i}")
    if also and sampler == "cmaes":
        yield (
            ("search", "sampler"),
            f"must be gp, tpe, random or grid with several objectives, {got(sampler)}: take gp",
        )
    if also and with_known:
        yield (
            ("known",),
            (
                f"must not be given with several objectives: a known point has a value of {metric} "
                "alone; give its parameters under `start`, and it is trained first"
            ),
        )


def _singles(space: Mapping[str, Parameter]) -> Iterator[tuple[Path, Single]]:
    for name, parameter in space.items():
        if isinstance(parameter, Schedule):
            for part, single in parameter.parts():
                yield ("space", name, *place_of(part)), single
        else:
            yield ("space", name), parameter


def _refusal(knob: KnobInfo, value: Any) -> str | None:
    if knob.choices is not None and value not in knob.choices:
        return f"must be one of {list(knob.choices)} for {knob.name}, {got(value)}"
    if knob.low is None and knob.high is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number for {knob.name}, {got(value)}"
    if knob.low is not None and value < knob.low:
        return f"`{knob.name} >= {knob.low:g}` must hold, but got {value:g}"
    if knob.high is not None and value > knob.high:
        return f"`{knob.name} <= {knob.high:g}` must hold, but got {value:g}"
    return None


def check_expressions(
    space: Mapping[str, Parameter], constraints: Sequence[str], names: Collection[str]
) -> Iterator[Found]:
    """Expressions read parameters of the space, and no circle.

    Args:
        space: The parameters.
        constraints: Conditions on them.
        names: All names of the space, those included that have mistakes of their own.
    """
    singles = flatten(space)
    scheduled = {name for name, p in space.items() if isinstance(p, Schedule)}
    names = [*singles, *(n for n in names if n not in singles and n not in scheduled)]
    for path, single in _singles(space):
        if isinstance(single, Derived):
            yield from _misread((*path, "derive"), single.expression, names, singles)
    for name, parameter in space.items():
        if parameter.condition is not None:
            yield from _misread(("space", name, "when"), parameter.condition, names, singles)
    for i, text in enumerate(constraints):
        yield from _misread(("constraints", i), parse(text), names, singles)
    try:
        Space(space)
    except ValueError as error:
        yield ("space",), str(error)


def _misread(
    path: Path, expression: Expression, names: Collection[str], singles: Mapping[str, Single]
) -> Iterator[Found]:
    """Names that are none, and texts that a parameter never is."""
    texts = {value for p in singles.values() for _, value in _extremes(p) if isinstance(value, str)}
    for name in sorted(expression.names - set(names)):
        if name in texts:
            yield path, f"a text needs quotes: {name!r}, in {expression.text!r}"
        else:
            yield path, f"{unknown('parameter', name, names)}, in {expression.text!r}"
    for name, text in expression.texts:
        single = singles.get(name)
        values = (
            [v for _, v in _extremes(single)] if isinstance(single, Choices | Fixed) else [text]
        )
        if text not in values:
            yield path, f"{unknown('value', text, map(str, values))}, of {name}"


def check_points(
    space: Space,
    known: Sequence[KnownPoint | None],
    start: Sequence[Mapping[str, ParamValue] | None],
    knobs: Mapping[str, KnobInfo],
    found: list[Found],
    *,
    is_grid: bool,
) -> tuple[list[KnownPoint], list[dict[str, ParamValue]]]:
    """Try the space on points, and complete the known and the starting ones."""
    try:
        _probe(space, space.grid() if is_grid else _drawn(space), knobs, found)
    except ValueError as error:
        found.append((("constraints",) if space.constraints else ("space",), str(error)))
        return [], []
    # A pure search axis sets nothing by itself, so a run by hand has no default for it.
    defaults = {name: knob.default for name, knob in knobs.items() if knob.keys}
    complete, starts = [], []
    for i, point in enumerate(known):
        if point is None:
            continue
        try:
            params = _complete(space, point.params, defaults, is_imported=point.source is not None)
            complete.append(point.model_copy(update={"params": params}))
        except ValueError as error:
            found.append((("known", i, "params"), str(error)))
    for i, given in enumerate(start):
        if given is None:
            continue
        try:
            starts.append(_complete(space, given, defaults))
        except ValueError as error:
            found.append((("start", i), str(error)))
    return complete, starts


def _drawn(space: Space) -> list[dict[str, ParamValue]]:
    """Some points; the constraints must leave some."""
    rng = np.random.default_rng(0)
    return [space.draw(rng) for _ in range(NUM_PROBES)]


def _probe(
    space: Space,
    points: Sequence[Mapping[str, ParamValue]],
    knobs: Mapping[str, KnobInfo],
    found: list[Found],
) -> None:
    """On points of the space, derived values must fit their knobs."""
    if not points:
        raise ValueError("no point of the grid meets the constraints")
    bad: dict[str, str] = {}
    for point in points:
        params = space.resolve(point)
        for name in space.derived.keys() & params.keys():
            knob = _knob_of(name, knobs)
            if knob is not None and (message := _refusal(knob, params[name])):
                bad.setdefault(name, message)
    for name, message in bad.items():
        text = f"{message} at a point of the space; add a constraint on {name} or narrow the axes"
        head, _, part = name.rpartition(".")
        is_part = head in knobs
        where = (head, *place_of(part)) if is_part else (name,)
        found.append((("space", *where, "derive"), text))


def _knob_of(name: str, knobs: Mapping[str, KnobInfo]) -> KnobInfo | None:
    """The knob whose range holds for a parameter; for an epoch of a schedule there is none."""
    head, _, part = name.rpartition(".")
    return knobs.get(name) or (None if is_epoch(part) else knobs.get(head))


def _complete(
    space: Space,
    params: Mapping[str, ParamValue],
    defaults: Mapping[str, ParamValue],
    *,
    is_imported: bool = False,
) -> dict[str, ParamValue]:
    """All parameters of a point; one that was imported may have more than the space."""
    given = {name: value for name, value in params.items() if name in space.parameters}
    if not is_imported and (strangers := [name for name in params if name not in given]):
        raise ValueError(unknown("parameter", strangers[0], space.parameters))
    sampled = space.invert(given, defaults)
    # What the point gives stands as given: recomputed, it could cross a constraint by a rounding.
    full = {**space.resolve(sampled), **given}
    if broken := space.violations(full):
        raise ValueError(f"must meet the constraints, but breaks {', '.join(broken)}")
    return full
