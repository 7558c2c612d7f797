"""Keys of a config: which are read, which are not, and which may be set anew.

What is read is declared beside the readers, in the `READS` of the modules of `aqr_model.engine`.
Below `model`, `data.train` and the like a class checks its own arguments when it is built.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from aqr_model import engine
from aqr_model.engine import evaluator, setup
from aqr_model.engine.config_keys import Value
from aqr_model.engine.optim import precision
from aqr_model.preflight.dotted import child, keys_of, path_of
from aqr_model.preflight.findings import Findings
from aqr_model.preflight.habits import HABITS, QUIET
from aqr_model.preflight.source import helper_names

# From here on a new argument of a class looks like one that is misspelt.
_ALIKE = 0.8
_SIMILAR = 0.6
_ALL = "**"
KeyPath = tuple[str, ...]


@cache
def reads() -> Mapping[KeyPath, Value]:
    """All that a training reads, as patterns: `*` is any part, `**` is all that lies below."""
    modules = pkgutil.walk_packages(engine.__path__, f"{engine.__name__}.")
    tables = [getattr(importlib.import_module(m.name), "READS", {}) for m in modules]
    return {tuple(key.split(".")): value for table in tables for key, value in table.items()}


def check_values(
    config: Mapping[str, Any], findings: Findings, *, of_scoring: bool = False
) -> None:
    """Name values that a reader cannot take, and keys that are missing.

    Args:
        config: A config.
        findings: Take an error for each.
        of_scoring: Ask for no more than a scoring needs.
    """
    wanted = reads()
    if of_scoring:
        tables = {**evaluator.READS, **precision.READS, "model.**": setup.READS["model.**"]}
        wanted = {tuple(key.split(".")): value for key, value in tables.items()}
    for path, text in _wrong(config, wanted):
        findings.refuse(".".join(path), text)


def check_idle(config: Mapping[str, Any], findings: Findings, source: Path | None = None) -> None:
    """Name keys that nothing reads.

    Args:
        config: A training config.
        findings: Take what is found.
        source: The config's file, which tells its helper variables from settings.
    """
    helpers = helper_names(source)
    for path, value in idle(config):
        key = ".".join(path)
        if (habit := HABITS.get(key)) is not None:
            if text := habit.complaint(value, config):
                (findings.refuse if habit.refuses else findings.warn)(key, text)
        elif value is not None and key not in QUIET and not _helps(path, value, config, helpers):
            findings.warn(key, f"nothing reads it, so it changes nothing.{_advice(path)}")


def idle(config: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Any]]:
    """Keys that nothing reads, with their values; a dict stands for all that it holds."""
    return _idle(config, ())


def refusal(key: str, config: Mapping[str, Any], *, known: Collection[str] = ()) -> str | None:
    """Why a key may not be set: nothing would read it, or it is new and looks misspelt.

    A new key is taken where something reads it, or as another argument of a class that the config
    names by `type`, unlike those that are there.

    Args:
        key: A dotted key.
        config: The config that it changes.
        known: New keys that are right.

    Returns:
        None if it may be set. What cannot be set at all is found where it is applied.
    """
    if key in known:
        return None
    try:
        path = path_of(config, key)
    except KeyError as error:
        return f"{error.args[0]}"
    node: Any = config
    for depth, part in enumerate(path):
        here = path[: depth + 1]
        if not is_known(here):
            return _nobody(key, here, node, config)
        if not isinstance(node, Mapping | list | tuple):
            return None
        if _holds(node, part):
            node = child(node, part)
            continue
        # New. Of what a class is built from, only the class knows whether it is right.
        if _is_built(here) and depth and node and not _is_argument(part, node):
            return _nobody(key, here, node, config)
        return next(
            (_nobody(key, end, {}, config) for end in _ends(path, depth) if not is_known(end)),
            None,
        )
    return None


def _wrong(
    config: Mapping[str, Any], wanted: Mapping[KeyPath, Value]
) -> Iterator[tuple[KeyPath, str]]:
    """Values that a reader cannot take, and keys that it misses."""
    for pattern, value in wanted.items():
        place = pattern[:-1] if pattern[-1] == _ALL else pattern
        found = list(_matches(config, place))
        if value.must_be_given and all(each is None for _, each in found):
            yield place, f"must be given: {value.text}."
            continue
        for path, each in found:
            if not value.holds(each):
                yield path, f"must be {value.text}, but got {each!r}."
    for path, each in _sections(config, ()):
        yield path, f"must be a dict, but got {each!r}."


def _sections(node: Mapping[str, Any], place: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Values that stand where a reader looks for a dict."""
    for name, value in node.items():
        here = (*place, str(name))
        if isinstance(value, Mapping):
            if not _is_built(here):
                yield from _sections(value, here)
        elif value is not None and _is_section(here) and _value(here) is None:
            yield here, value


def _matches(node: Any, pattern: KeyPath, place: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    if not pattern:
        yield place, node
        return
    if isinstance(node, Mapping):
        names = [pattern[0]] if pattern[0] != "*" else [str(name) for name in node]
        for name in names:
            if name in node:
                yield from _matches(node[name], pattern[1:], (*place, name))


def _idle(node: Mapping[str, Any], place: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    for name, value in node.items():
        here = (*place, str(name))
        if not is_known(here):
            yield here, value
        elif isinstance(value, Mapping) and not _is_built(here):
            yield from _idle(value, here)


def _value(path: KeyPath) -> Value | None:
    """What a key must hold; None if nothing reads it as such."""
    exact = reads().get(path)
    return exact or next((v for pattern, v in reads().items() if _fits(path, pattern)), None)


def _fits(path: KeyPath, pattern: KeyPath) -> bool:
    if pattern[-1:] == (_ALL,):
        pattern = pattern[:-1]
        path = path[: len(pattern)]
    return len(path) == len(pattern) and all(
        wanted in ("*", part) for part, wanted in zip(path, pattern, strict=True)
    )


def _is_section(path: KeyPath) -> bool:
    """Whether keys below a key are read one by one."""
    size = len(path)
    return any(len(p) > size and p[size] != _ALL and _fits(path, p[:size]) for p in reads())


def is_known(path: KeyPath) -> bool:
    """Whether something reads a key, or one below it."""
    return _value(path) is not None or _is_section(path)


def _is_built(path: KeyPath) -> bool:
    """Whether a class or a function is called with what a key holds, and knows its arguments."""
    fitting = [p for p in reads() if _fits(path, p)]
    return not _is_section(path) and any(p[-1] in ("*", _ALL) for p in fitting)


def _holds(node: Any, part: str) -> bool:
    if isinstance(node, Mapping):
        return part in node
    return part.isdigit() and int(part) < len(node)


def _is_argument(name: str, node: Any) -> bool:
    """Whether a name may be another argument of what a dict describes."""
    if not isinstance(node, Mapping):
        return True
    alike = difflib.get_close_matches(name, map(str, node), n=1, cutoff=_ALIKE)
    return ("type" in node or "policy" in node) and not alike


def _ends(path: KeyPath, depth: int) -> Iterator[KeyPath]:
    return (path[: end + 1] for end in range(depth, len(path)))


def _helps(path: KeyPath, value: Any, config: Mapping[str, Any], helpers: set[str] | None) -> bool:
    """Whether a name at the top served to write the others."""
    name, *below = path
    if below:
        return False
    if helpers is not None and name in helpers:
        return True
    is_plain = not isinstance(value, Mapping | list | tuple)
    if helpers is None and is_plain:  # a config that was dumped no longer tells
        return _meant(path) is None
    others = {key: each for key, each in config.items() if key != name}
    return not is_plain and _appears(value, others)


def _appears(value: Any, node: Any) -> bool:
    """Whether a dict or a list is part of a config."""
    if isinstance(node, Mapping):
        if isinstance(value, Mapping) and all(k in node and node[k] == value[k] for k in value):
            return True
        return any(_appears(value, inner) for inner in node.values())
    if isinstance(node, list | tuple):
        return node == value or any(_appears(value, inner) for inner in node)
    return False


def _meant(path: KeyPath) -> str | None:
    """What a key that nothing reads may have meant."""
    name, place = path[-1], path[:-1]
    same = sorted(p for p in _prefixes() if p[-1] == name and p != path and "*" not in p)
    if same:
        return f" `{name}` is read at `{'.'.join(same[0])}`: write it there."
    cutoff = _SIMILAR if place else _ALIKE
    if near := difflib.get_close_matches(name, _siblings(place), n=1, cutoff=cutoff):
        return f" Did you mean `{'.'.join((*place, *near))}`?"
    return None


def _advice(path: KeyPath) -> str:
    """What to do with a key that nothing reads."""
    if (meant := _meant(path)) is not None:
        return meant
    if len(path) == 1:
        return (
            " A name that a file of `_base_` has used is not used again: set the keys that took"
            " its value, or take it out."
        )
    place = path[:-1]
    return f" Of `{'.'.join(place)}`, {', '.join(_siblings(place))} are read. Take it out."


@cache
def _prefixes() -> frozenset[KeyPath]:
    return frozenset(p[:end] for p in reads() for end in range(1, len(p) + 1))


def _siblings(place: KeyPath) -> list[str]:
    """Names that are read in a section, or below them."""
    inside = (p for p in _prefixes() if len(p) == len(place) + 1 and _fits(place, p[:-1]))
    return sorted({p[-1] for p in inside} - {"*", _ALL})


def _nobody(key: str, here: KeyPath, node: Any, config: Mapping[str, Any]) -> str:
    """What to say of a key that may not be set."""
    where, got = ".".join(here[:-1]), f"but got {key!r}"
    if _holds(node, here[-1]) and not is_known(here):
        habit = HABITS.get(".".join(here))
        told = None if habit is None else habit.complaint(child(node, here[-1]), config)
        return f"must be a key that something reads, {got}. {told or _advice(here).strip()}"
    names = list(map(str, node)) if isinstance(node, Mapping) else []
    siblings = [*names, *_siblings(here[:-1])]
    near = difflib.get_close_matches(here[-1], siblings, n=1, cutoff=_SIMILAR)
    found = [".".join([*here[:-1], *near])] if near else []
    found = found or difflib.get_close_matches(key, keys_of(config), n=1, cutoff=_SIMILAR)
    if not found and not is_known(here):
        return f"must be a key that something reads, but nothing reads {'.'.join(here)!r}."
    hint = f"; did you mean {found[0]!r}?" if found else "."
    known = f", which has {where!r} alone of it" if where else ""
    return (
        f"must exist in the config{known}, {got}{hint} A key that is new on purpose goes into a"
        " config file"
    )
