"""A JSON schema of the sweep spec, for editors: completion, descriptions, first mistakes.

It says what a file alone can say. What needs the config or the parameters together (dotted keys,
expressions, known points) is checked when the spec is read.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from sweeps.parameters import SCHEDULE_SUFFIX
from sweeps.sections import CLASSES, MAX_ALSO, AlsoSpec, KnownPoint, ObjectiveSpec
from sweeps.spec import SweepSpec
from sweeps.spec_checks import KnobInfo

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NUMBERS, _LISTS = ("Range", "Choices", "Fixed", "Derived"), ("Choices", "Fixed", "Derived")


class DescribedKnob(KnobInfo, Protocol):
    """What an editor can show about a tunable."""

    @property
    def unit(self) -> str:
        """Its unit; '1' without one."""
        ...

    @property
    def meaning(self) -> str:
        """One sentence."""
        ...


def spec_schema(knobs: Mapping[str, DescribedKnob]) -> dict[str, Any]:
    """The schema of a spec file.

    Args:
        knobs: Tunables by name.
    """
    schema = SweepSpec.model_json_schema(by_alias=True)
    properties = schema["properties"]
    properties["space"] = {
        "description": "What is searched: knobs, or dotted keys of the config.",
        "type": "object",
        "minProperties": 1,
        "properties": {name: _knob(knob) for name, knob in knobs.items() if name != "seed"},
        "patternProperties": {r"\.": {"anyOf": _references(_NUMBERS)}},
        "additionalProperties": False,
    }
    properties["known"]["items"] = _known_point(schema["$defs"].pop(KnownPoint.__name__))
    _restrict_also(schema["$defs"])
    properties["health"] = {
        "description": "default, off, or a list of rules (docs/health.md).",
        "anyOf": [{"enum": ["default", "off", False]}, {"type": "array"}],
        "default": "default",
    }
    _without_titles(schema)
    # The number of a grid's trials follows from its points.
    schema["required"].remove("budget")
    grid = {"properties": {"sampler": {"const": "grid"}}, "required": ["sampler"]}
    is_grid = {"properties": {"search": grid}, "required": ["search"]}
    return {
        "$schema": DIALECT,
        "title": "AQR-CMT sweep",
        **schema,
        "anyOf": [{"required": ["budget"]}, is_grid],
    }


def _knob(knob: DescribedKnob) -> dict[str, Any]:
    if knob.name.endswith(SCHEDULE_SUFFIX):
        return {"description": _description(knob), **_references(("Schedule",))[0]}
    value: dict[str, Any] = {}
    if knob.choices is not None:
        value["enum"] = list(knob.choices)
    bounds = {"minimum": knob.low, "maximum": knob.high}
    value |= {key: bound for key, bound in bounds.items() if bound is not None}
    kinds = _NUMBERS if knob.choices is None else _LISTS
    return {
        "description": _description(knob),
        "anyOf": _references(kinds),
        "properties": {
            "choices": {"items": value},
            **{key: value for key in ("low", "high", "fixed")},
        },
    }


def _description(knob: DescribedKnob) -> str:
    facts = [] if knob.unit == "1" else [f"unit: {knob.unit}"]
    if knob.choices is not None:
        facts.append(f"one of {', '.join(map(str, knob.choices))}")
    elif knob.low is not None and knob.high is not None:
        facts.append(f"{knob.low:g} to {knob.high:g}")
    if knob.default is not None:
        facts.append(f"default: {knob.default}")
    facts.append(f"sets {', '.join(knob.keys)}" if knob.keys else "a search axis: sets nothing")
    return f"{knob.meaning} ({'; '.join(facts)})"


def _known_point(point: dict[str, Any]) -> dict[str, Any]:
    """A point as the file has it: the score stands under the metric's name."""
    score = point["properties"].pop("value")
    metrics = ObjectiveSpec.model_json_schema()["properties"]["metric"]["enum"]
    point["properties"] |= dict.fromkeys(metrics, score)
    point["required"] = ["params"]
    point["anyOf"] = [{"required": [metric]} for metric in metrics]
    file = {"type": "string", "description": "A file that `aqr-sweep import` wrote."}
    return {"anyOf": [file, point]}


def _restrict_also(definitions: dict[str, Any]) -> None:
    """The classes of metric AP, which needs them as no other does."""
    definitions[ObjectiveSpec.__name__]["properties"]["also"]["maxItems"] = MAX_ALSO
    also = definitions[AlsoSpec.__name__]
    names = {"items": {"enum": list(CLASSES)}, "minItems": 1, "uniqueItems": True}
    also["properties"]["classes"] = {"type": ["array", "null"], **names, "default": None}
    also |= {
        "if": {"properties": {"metric": {"const": "AP"}}, "required": ["metric"]},
        "then": {"properties": {"classes": {"type": "array"}}, "required": ["classes"]},
        "else": {"properties": {"classes": {"type": "null"}}},
    }


def _references(names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{"$ref": f"#/$defs/{name}"} for name in names]


def _without_titles(node: Any) -> None:
    """Drop the titles, which repeat the keys."""
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        for value in node.values():
            _without_titles(value)
    elif isinstance(node, list):
        for value in node:
            _without_titles(value)
