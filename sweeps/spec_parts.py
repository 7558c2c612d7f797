"""The parts of a spec that pydantic cannot read alone: the space, points, objectives, constraints.

Each reader takes what YAML gave, adds every mistake to `found` with its place, and returns what
could be read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps.expressions import parse
from sweeps.parameters import PART_KEYS
from sweeps.section import Document, Found, SpecError, got, read_section, unknown
from sweeps.section import Path as Place
from sweeps.sections import AlsoSpec, KnownPoint, ObjectiveSpec
from sweeps.space import Choices, Derived, Fixed, Parameter, Range, Schedule, flatten
from sweeps.trials import ParamValue

# What a known point may say beside its parameters and its score.
KNOWN_KEYS = ("epochs", "fidelity", "code", "control", "semantics", "source")


def read_space(data: Any, is_given: bool, found: list[Found]) -> dict[str, Parameter]:
    """Read the parameters; not empty in a spec."""
    if not is_given or not isinstance(data, dict) or not data:
        message = f"must be a mapping of at least one parameter, {got(data)}"
        found.append((("space",), message if is_given else "must be given"))
        return {}
    space: dict[str, Parameter] = {}
    for name, item in data.items():
        kind = _kind_of(item)
        if kind is None:
            message = f"must be {', '.join(_FORMS[:-1])} or {_FORMS[-1]}, {got(item)}"
            found.append((("space", name), message))
            continue
        path = ("space", name)
        content = _read_parts(item, path, found) if kind is Schedule else item
        parameter = None if content is None else read_section(kind, content, path, found)
        if parameter is not None:
            space[name] = parameter
    singles = flatten(space).values()
    if space and not any(isinstance(single, Range | Choices) for single in singles):
        found.append((("space",), "must have a parameter to search, but got none that varies"))
    return space


_KINDS: dict[str, type[Range] | type[Choices] | type[Derived] | type[Fixed] | type[Schedule]] = {
    "schedule": Schedule,
    "derive": Derived,
    "choices": Choices,
    "fixed": Fixed,
    "low": Range,
    "high": Range,
}
_FORMS = ("{low, high}", "{choices}", "{fixed}", "{derive}", "{schedule}")


def _kind_of(item: Any) -> Any:
    if not isinstance(item, dict):
        return None
    return next((kind for key, kind in _KINDS.items() if key in item), None)


def _read_parts(item: Mapping[str, Any], path: Place, found: list[Found]) -> dict[str, Any] | None:
    """Read the numbers of a schedule; None if one of them cannot be read."""
    content, before = dict(item), len(found)
    for key in PART_KEYS:
        if key != "stages" and content.get(key) is not None:
            content[key] = _read_part(content[key], (*path, key), found)
    stages = content.get("stages")
    if stages is not None:
        rows: list[Any] = stages if isinstance(stages, list) else [None]
        if not all(isinstance(row, list) and len(row) == 2 for row in rows):
            message = f"must be a list of [from_epoch, value], {got(stages)}"
            found.append(((*path, "stages"), message))
            return None
        content["stages"] = tuple(
            tuple(_read_part(part, (*path, "stages", i, k), found) for k, part in enumerate(row))
            for i, row in enumerate(rows)
        )
    return content if len(found) == before else None


def _read_part(part: Any, path: Place, found: list[Found]) -> Any:
    if isinstance(part, int | float) and not isinstance(part, bool):
        return float(part)
    kind = _kind_of(part)
    if kind is None or kind is Schedule:
        message = f"must be a number, {', '.join(_FORMS[:-2])} or {_FORMS[-2]}, {got(part)}"
        found.append((path, message))
        return None
    return read_section(kind, part, path, found)


def read_start(data: Any, found: list[Found]) -> list[dict[str, ParamValue] | None]:
    """Read the points that are tried first; None in place of what is no point."""
    if not isinstance(data, list):
        found.append((("start",), f"must be a list of points, {got(data)}"))
        return []
    points: list[dict[str, ParamValue] | None] = []
    for i, item in enumerate(data):
        is_point = isinstance(item, dict) and all(
            isinstance(value, float | int | bool | str) for value in item.values()
        )
        if not is_point:
            found.append((("start", i), f"must be a mapping of parameters to values, {got(item)}"))
        points.append(item if is_point else None)
    return points


def metric_name(data: Mapping[str, Any]) -> str:
    """The metric of the first objective, or its default."""
    objective = data.get("objective")
    metric = objective.get("metric") if isinstance(objective, dict) else None
    return metric if isinstance(metric, str) else ObjectiveSpec.model_fields["metric"].default


def read_also(data: dict[str, Any], found: list[Found]) -> list[AlsoSpec | None]:
    """Read the further objectives and put what could be read in their place."""
    objective = data.get("objective")
    if not isinstance(objective, dict) or "also" not in objective:
        return []
    rest = {key: value for key, value in objective.items() if key != "also"}
    items = objective["also"]
    if not isinstance(items, list):
        found.append((("objective", "also"), f"must be a list of objectives, {got(items)}"))
        data["objective"] = rest
        return []
    read = [
        read_section(AlsoSpec, item, ("objective", "also", i), found)
        for i, item in enumerate(items)
    ]
    data["objective"] = {**rest, "also": tuple(each for each in read if each is not None)}
    return read


def read_known(data: Any, metric: str, found: list[Found]) -> list[KnownPoint | None]:
    """Read the points that are known already, those of named files among them."""
    if not isinstance(data, list):
        found.append((("known",), f"must be a list of {{params, {metric}}}, {got(data)}"))
        return []
    keys = ("params", metric, *KNOWN_KEYS)
    points: list[KnownPoint | None] = []
    for i, item in _with_files(data, found):
        path = ("known", i)
        if not isinstance(item, dict):
            found.append((path, f"must be a mapping with params, {metric}, {got(item)}"))
            points.append(None)
            continue
        strangers = [key for key in item if key not in keys]
        wrong: list[Found] = [((*path, k), unknown("key", k, keys)) for k in strangers]
        plain = {"value" if k == metric else k: v for k, v in item.items() if k not in strangers}
        point = read_section(KnownPoint, plain, path, wrong)
        # The file names the score by its metric.
        found.extend(((*p[:2], metric, *p[3:]) if p[2:3] == ("value",) else p, m) for p, m in wrong)
        points.append(None if wrong else point)
    return points


def _with_files(data: list[Any], found: list[Found]) -> Iterator[tuple[int, Any]]:
    """Each item with its place, the points of a file in the place of the file's name."""
    for i, item in enumerate(data):
        if not isinstance(item, str):
            yield i, item
            continue
        try:
            inside = Document(Path(item).read_text(), item).data.get("known", [])
        except (OSError, SpecError) as error:
            found.append((("known", i), f"must be a file that `import` wrote: {error}"))
            continue
        yield from ((i, point) for point in inside)


def read_constraints(data: Any, found: list[Found]) -> tuple[str, ...]:
    """Read the conditions, those that can be parsed."""
    if not isinstance(data, list):
        found.append((("constraints",), f"must be a list of conditions, {got(data)}"))
        return ()
    good = []
    for i, text in enumerate(data):
        if not isinstance(text, str):
            found.append((("constraints", i), f"must be a condition, {got(text)}"))
            continue
        try:
            expression = parse(text)
        except ValueError as error:
            found.append((("constraints", i), str(error)))
            continue
        if not expression.is_condition:
            found.append((("constraints", i), f"must compare, as in `a <= b`, {got(text)}"))
            continue
        good.append(text)
    return tuple(good)
