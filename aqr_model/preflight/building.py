"""Building a part to see whether it can be built, with every reason why not.

Where a part fails, what failed is noted and taken away, and the rest is built again; so one run
tells all.
"""

import difflib
import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

from torch import nn

from aqr_model.preflight.findings import Findings
from aqr_model.preflight.types import registries, unknown_types

T = TypeVar("T")
KeyPath = tuple[str, ...]
# Arguments of some backbones, which others and the necks do not have.
_FROZEN_BY = {"frozen_stages": "freeze", "frozen": "freeze", "norm_eval": "norm_eval"}
NO_ARGUMENT = "must be an argument of"
_MOST_FAULTS = 20
_UNKNOWN = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")
_UNREGISTERED = re.compile(r"(\w+) is not in the \S+ ?\S* registry")
_CHAIN = re.compile(r"(?:\w+: )+")
_MOST_NAMES = 12


def attempt(
    build: Callable[[Any], T],
    config: Mapping[str, Any],
    place: str,
    findings: Findings,
    *,
    without_parts: bool = False,
) -> T | None:
    """Build something from a dict; note every reason why it cannot be built.

    Args:
        build: Gets a copy of the dict.
        config: With a `type`, its parts below.
        place: Dotted key of the dict.
        findings: Take an error for each reason.
        without_parts: It can also be built where some of its parts are missing.

    Returns:
        What was built, without the arguments that nobody knows and the parts that cannot be built;
        None if it cannot be built even so.
    """
    rest, is_whole = deepcopy(dict(config)), True
    for _ in range(_MOST_FAULTS):
        try:
            return build(deepcopy(rest))
        # What a constructor raises depends on whoever wrote it.
        except Exception as error:  # noqa: BLE001
            told = Findings()
            path, is_argument = _told(error, rest, place, told)
            if path or is_whole:  # else it may miss what was taken away
                findings.errors += [each for each in told.errors if each not in findings.errors]
            if not (is_argument or without_parts) or not _take_away(rest, path):
                return None
            is_whole = is_whole and is_argument
    return None


def attempt_known(
    build: Callable[[Any], T],
    config: Mapping[str, Any],
    place: str,
    findings: Findings,
    *,
    without_parts: bool = False,
) -> T | None:
    """As `attempt`; of types that are registered nowhere, all are named, with the nearest names."""
    faults = Findings()
    built = attempt(build, config, place, faults, without_parts=without_parts)
    unknown = unknown_types({place: config}, (place,))
    for fault in faults.errors:
        if not any(f"{each.name} is not in the" in fault.text for each in unknown):
            findings.refuse(fault.key, fault.text)
    strange = [fault.key for fault in faults.errors if fault.text.startswith(NO_ARGUMENT)]
    for each in unknown:
        if not any(_is_inside(each.place, key) for key in strange):
            findings.refuse(each.place, str(each))
    return built


@contextmanager
def heard(findings: Findings, place: str) -> Iterator[None]:
    """Take what parts of this package log as warnings as notes, and keep all else quiet.

    What is built here is built again when the training starts, and speaks then.
    """
    logger, hearer = logging.getLogger("aqr_model"), _Hearer(findings, place)
    propagates, disabled = logger.propagate, logging.root.manager.disable
    logger.addHandler(hearer)
    logger.propagate = False
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        logger.removeHandler(hearer)
        logger.propagate = propagates


class _Hearer(logging.Handler):
    def __init__(self, findings: Findings, place: str) -> None:
        super().__init__(logging.WARNING)
        self.findings, self.place = findings, place

    def emit(self, record: logging.LogRecord) -> None:
        self.findings.note(self.place, record.getMessage())


def _told(
    error: Exception, config: Mapping[str, Any], place: str, findings: Findings
) -> tuple[KeyPath, bool]:
    """Note an error.

    Returns:
        path: What is to be taken away before the rest can be built.
        is_argument: It is an argument, and no part.
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    path = _path_of(text, config)
    if unregistered := _UNREGISTERED.search(text):
        path = next(_typed(config, unregistered[1]), path)
    text = _CHAIN.sub("", text, count=1) if _CHAIN.match(text) else text
    unknown = _UNKNOWN.search(text)
    if unknown is None:
        findings.refuse(_dotted(place, path), _sentence(error, text))
        return path[:1], False
    owner, argument = unknown.groups()
    found = next((p for p in _holders(config, argument) if p[: len(path)] == path), None)
    if found is None:
        findings.refuse(_dotted(place, path), f"{owner} has no argument {argument!r}.")
        return path[:1], False
    value = _at(config, found)[argument]
    findings.refuse(
        _dotted(place, (*found, argument)),
        f"{NO_ARGUMENT} {owner}, but it has none of this name (its value here is"
        f" {_short(value)}){_nearest(owner, argument)} {_instead(argument, found)}",
    )
    return (*found, argument), True


def _sentence(error: Exception, text: str) -> str:
    if isinstance(error, KeyError) and "is not in the" not in text:
        return f"must have a key {text}, which is looked for when it is built."
    if isinstance(error, ValueError):
        return text
    return f"cannot be built: {type(error).__name__}: {text}"


def _path_of(text: str, config: Mapping[str, Any]) -> KeyPath:
    """Follow the chain of class names with which mmcv begins a message into the config."""
    chain = _CHAIN.match(text)
    names = chain.group().removesuffix(": ").split(": ") if chain else []
    path: KeyPath = ()
    for name in names[1:]:
        below = (p for p, node in _dicts(_at(config, path)) if p and node.get("type") == name)
        step = next(below, None)
        if step is None:
            break
        path = (*path, *step)
    return path


def _dicts(node: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """All dicts of a config, outer ones first."""
    inside: list[tuple[str, Any]] = []
    if isinstance(node, Mapping):
        yield path, node
        inside = [(str(name), value) for name, value in node.items()]
    elif isinstance(node, list | tuple):
        inside = [(str(i), value) for i, value in enumerate(node)]
    for name, value in inside:
        yield from _dicts(value, (*path, name))


def _is_inside(key: str, argument: str) -> bool:
    return key == argument or key.startswith(f"{argument}.")


def _holders(config: Mapping[str, Any], argument: str) -> Iterator[KeyPath]:
    return (path for path, node in _dicts(config) if argument in node)


def _typed(config: Mapping[str, Any], name: str) -> Iterator[KeyPath]:
    return (path for path, node in _dicts(config) if node.get("type") == name)


def _at(node: Any, path: KeyPath) -> Any:
    for part in path:
        node = node[part] if isinstance(node, Mapping) else node[int(part)]
    return node


def _take_away(config: Any, path: KeyPath) -> bool:
    parent = _at(config, path[:-1])
    if not path or not isinstance(parent, dict):
        return False
    del parent[path[-1]]
    return True


def _instead(argument: str, path: KeyPath) -> str:
    """What to do about an argument that nobody knows."""
    setting = _FROZEN_BY.get(argument)
    if setting is None or len(path) != 1:
        return "Take it out, or correct its name."
    return f"Take it out, and write `{setting} = [{path[0]!r}]` at the top of the config."


def _nearest(owner: str, argument: str) -> str:
    names = _arguments(owner)
    if near := difflib.get_close_matches(argument, names, n=1, cutoff=0.6):
        return f"; the nearest that it has is `{near[0]}`."
    if 0 < len(names) <= _MOST_NAMES:
        return f"; it has {', '.join(names)}."
    return "."


def _arguments(owner: str) -> list[str]:
    """Names of the arguments of a class or a function that is registered, or of a module."""
    found = next((c for c in _classes() if getattr(c, "__name__", "") == owner), None)
    if found is None:
        return []
    return [p for p in inspect.signature(found).parameters if p not in ("self", "args", "kwargs")]


def _classes() -> Iterator[Any]:
    for registry in registries():
        yield from registry.module_dict.values()
    waiting = [nn.Module]
    while waiting:
        waiting += (known := waiting.pop()).__subclasses__()
        yield known


def _dotted(place: str, path: KeyPath) -> str:
    return ".".join((place, *path))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
