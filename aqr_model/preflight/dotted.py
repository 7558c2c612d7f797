"""Dotted keys of a config, whose parts may hold dots themselves.

``custom_keys`` has names of parameters, and these have dots: of
``optimizer.paramwise_cfg.custom_keys.pts_bbox_head.transformer.lr_mult`` only the config can tell
whether ``pts_bbox_head.transformer`` is one of its entries.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from aqr_model.engine.optim.param_groups import READS

OPEN = "custom_keys"
"""A dict whose keys are names of a model's parts, of which a config lists those that it changes."""

# What an entry of it may hold.
_SETTINGS = sorted({key.split(f"{OPEN}.*.")[1].split(".")[0] for key in READS if OPEN in key})


def path_of(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The parts of a dotted key; of what the config has, the longest name wins.

    Args:
        config: What the key leads into; a number steps into a list.
        key: May be new, from some part on.

    Raises:
        KeyError: If the key would make a new entry of ``custom_keys`` that it cannot mean.
    """
    if (whole := _found(config, key.split("."))) is not None:
        return whole
    node: Any = config
    rest, path = key.split("."), list[str]()
    while rest:
        lengths = range(len(rest), 0, -1)
        count = next((n for n in lengths if _has(node, ".".join(rest[:n]))), 0)
        if not count:
            _require_setting(path, rest, key, node)
            return (*path, *rest)
        path.append(".".join(rest[:count]))
        node, rest = child(node, path[-1]), rest[count:]
    return tuple(path)


def value_at(config: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """What stands at a path.

    Raises:
        KeyError: If there is nothing.
    """
    node: Any = config
    for part in path:
        if not _has(node, part):
            raise KeyError(".".join(path))
        node = child(node, part)
    return node


def has_key(config: Mapping[str, Any], key: str) -> bool:
    """Whether a config has a dotted key; a number steps into a list."""
    try:
        value_at(config, path_of(config, key))
    except KeyError:
        return False
    return True


def keys_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """All dotted keys of a config; a number steps into a list of dicts."""
    return tuple(".".join(path) for path, _ in walk(config))


def walk(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All paths of a config with their values, a dict before what it holds."""
    inside = node.items() if isinstance(node, Mapping) else ()
    if isinstance(node, list | tuple):
        inside = ((str(i), each) for i, each in enumerate(node) if isinstance(each, Mapping))
    for name, value in inside:
        yield (*path, str(name)), value
        yield from walk(value, (*path, str(name)))


def nested(path: tuple[str, ...], value: Any) -> tuple[str, Any]:
    """A setting as mmcv takes it: a dotted key, and dicts from the first part on that holds dots.

    Returns:
        key: Of no part that holds dots.
        value: To be merged there.
    """
    first = _plain(path)
    for part in reversed(path[first:]):
        value = {part: value}
    return ".".join(path[:first]), value


def addressed(overrides: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides for whoever splits every key at its dots: what holds dots itself becomes a dict.

    Args:
        overrides: Dotted keys with values.
        config: What they change.

    Returns:
        Dotted keys with values, of which none leads into the dict of another.

    Raises:
        KeyError: See `path_of`.
    """
    paths = {key: path_of(config, key) for key in overrides}
    places = {path[: _plain(path)] for path in paths.values() if _plain(path) < len(path)}
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        place = next((p for p in places if paths[key][: len(p)] == p), None)
        if place is None:
            found[key] = value
            continue
        for part in reversed(paths[key][len(place) :]):
            value = {part: value}
        name = ".".join(place)
        found[name] = _merged(found.get(name), value)
    return found


def _plain(path: tuple[str, ...]) -> int:
    """How many parts of a path come before the first that holds dots."""
    return next((i for i, part in enumerate(path) if "." in part), len(path))


def _merged(before: Any, after: Any) -> Any:
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return after
    return {**before, **{key: _merged(before.get(key), value) for key, value in after.items()}}


def child(node: Any, part: str) -> Any:
    """What a dict or a list holds under a part of a key."""
    return node[part] if isinstance(node, Mapping) else node[int(part)]


def _found(node: Any, parts: list[str]) -> tuple[str, ...] | None:
    """The path of a key that is there, long names first; None if it is not."""
    if not parts:
        return ()
    for count in range(len(parts), 0, -1):
        if _has(node, name := ".".join(parts[:count])):
            below = _found(child(node, name), parts[count:])
            if below is not None:
                return (name, *below)
    return None


def _has(node: Any, part: str) -> bool:
    if isinstance(node, list | tuple):
        return part.isdigit() and int(part) < len(node)
    return isinstance(node, Mapping) and part in node


def _require_setting(path: list[str], rest: list[str], key: str, node: Any) -> None:
    """Of a new key in ``custom_keys``, the entry's name must be clear."""
    if path[-1:] == [OPEN]:
        clear = len(rest) == 1 or rest[1] in _SETTINGS
    else:
        clear = path[-2:-1] != [OPEN] or rest[0] in _SETTINGS
    if not clear:
        where = ".".join(path[: path.index(OPEN) + 1])
        there = ", ".join(map(repr, node)) if path[-1] == OPEN else repr(path[-1])
        raise KeyError(
            f"{key} must name an entry of {where} and one of its settings"
            f" ({', '.join(_SETTINGS)}), but the entries there are {there or 'none'}. A new entry"
            " whose name holds dots is written as a dict:"
            f" {{{where}: {{NAME: {{SETTING: VALUE}}}}}}"
        )
