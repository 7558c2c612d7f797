"""Config files: read as mmcv reads them, with two silent mistakes made loud.

A file that assigns a name twice keeps the second value alone, so that whole sections vanish without
a word; and a type that no registry has is found only when its turn to be built comes, one at a
time. Both are reported here, at once and with their places.

The users' files carry ``plugin = True`` and ``plugin_dir = "projects/mmdet3d_plugin/"``: the folder
whose types ``import aqr_model`` registers. Both keys are kept and nothing is imported for them.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcv import Config

_BASE = "_base_"
_MOST_SHOWN = 12


class ConfigError(ValueError):
    """A config file that cannot be meant as it stands, with what to change."""


@dataclass(frozen=True, kw_only=True)
class Doubled:
    """A name that a file assigns twice, where nothing reads the first value.

    Attributes:
        file: The config file.
        name: What is assigned.
        first: Line of the assignment whose value is lost.
        second: Line of the assignment that stays.
        lost: Settings of the first that the second does not have, dotted, with their values.
        changed: Settings that both have, with both values.
    """

    file: Path
    name: str
    first: int
    second: int
    lost: tuple[str, ...]
    changed: tuple[str, ...]

    def __str__(self) -> str:
        head = (
            f"{self.file} assigns `{self.name}` twice, in lines {self.first} and {self.second}; "
            "the second replaces the first whole. Join both into one assignment, or delete one."
        )
        return head + listed("lost with the first", self.lost) + listed("changed", self.changed)


def load_config(path: Path | str) -> Config:
    """Read a config file with all that it inherits.

    Args:
        path: A config file in mmcv's format.

    Raises:
        ConfigError: If it, or a file that it inherits from, assigns a name twice.
        FileNotFoundError: If it, or a file that it inherits from, is not there.
    """
    doubled = [str(found) for file in _files(Path(path)) for found in doubled_assignments(file)]
    if doubled:
        raise ConfigError("\n".join(doubled))
    return Config.fromfile(str(path))


def doubled_assignments(path: Path) -> tuple[Doubled, ...]:
    """Names that a Python config file assigns at top level twice, in the order of the second.

    An assignment whose value is read before the next one is no mistake: ``steps = steps + [...]``
    is a way to write a list.
    """
    found: list[Doubled] = []
    values: dict[str, ast.expr] = {}
    for statement in _parsed(path).body:
        for name in _names_read(statement):
            values.pop(name, None)
        for name, value in _assigned(statement):
            if name in values:
                found.append(_doubled(path, name, values[name], value))
            values[name] = value
    return tuple(found)


def apply_overrides(cfg: Config, overrides: Mapping[str, Any]) -> None:
    """Set dotted keys in a config, one after another.

    As mmcv's ``merge_from_dict``, which can change dicts in a list but no plain value in it: here
    ``window_sizes.0`` sets the first of two numbers.

    Args:
        cfg: Changed in place.
        overrides: Dotted keys with their values; a number steps into a list.

    Raises:
        KeyError, TypeError: If a key leads past a list's end, or through what is neither a dict
            nor a list.
    """
    for key, value in overrides.items():
        parent, _, last = key.rpartition(".")
        node = _at(cfg, parent)
        if isinstance(value, Mapping) and isinstance(node, Mapping):
            # mmcv merges a dict into what is there, which must then be one too.
            if last in node and not isinstance(node[last], Mapping):
                value = {**value, "_delete_": True}
        if isinstance(node, list | tuple) and last.isdigit() and not isinstance(value, Mapping):
            if int(last) >= len(node):
                raise KeyError(f"`{parent}` has {len(node)} entries, but the key is {key}")
            changed = [value if i == int(last) else old for i, old in enumerate(node)]
            cfg.merge_from_dict({parent: type(node)(changed)})
        else:
            cfg.merge_from_dict({key: value})


def _at(cfg: Config, key: str) -> Any:
    """What stands at a dotted key, None where nothing does."""
    node: Any = cfg
    for part in key.split("."):
        if isinstance(node, list | tuple) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, Mapping | Config) and part in node:
            node = node[part]
        else:
            return None
    return node


def _files(path: Path) -> Iterator[Path]:
    """A Python config file and all that it inherits from, bases first."""
    if path.suffix != ".py":
        return
    for statement in _parsed(path).body:
        for name, value in _assigned(statement):
            if name == _BASE:
                bases = ast.literal_eval(value)
                for base in [bases] if isinstance(bases, str) else bases:
                    yield from _files(path.parent / base)
    yield path


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _assigned(statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """Plain names that a statement sets, with their value."""
    if isinstance(statement, ast.Assign):
        targets, value = statement.targets, statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets, value = [statement.target], statement.value
    else:
        return
    yield from ((target.id, value) for target in targets if isinstance(target, ast.Name))


def _names_read(statement: ast.stmt) -> Iterator[str]:
    """Names whose value a statement uses; one that it changes in place counts too."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
            yield node.id
    if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        yield statement.target.id


def _doubled(path: Path, name: str, first: ast.expr, second: ast.expr) -> Doubled:
    before, after = dict(_settings(first, name)), dict(_settings(second, name))
    return Doubled(
        file=path,
        name=name,
        first=first.lineno,
        second=second.lineno,
        lost=tuple(f"{key} = {value}" for key, value in before.items() if key not in after),
        changed=tuple(
            f"{key} = {value}, then {after[key]}"
            for key, value in before.items()
            if key in after and after[key] != value
        ),
    )


def _settings(value: ast.expr, key: str) -> Iterator[tuple[str, str]]:
    """The leaves of nested dicts by their dotted keys, as source text."""
    entries = _entries(value)
    if not entries:
        yield key, ast.unparse(value)
    for name, inner in entries:
        yield from _settings(inner, f"{key}.{name}")


def _entries(value: ast.expr) -> list[tuple[str, ast.expr]]:
    """Keys and values of ``dict(...)`` or ``{...}``; empty for anything else."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "dict":
        return [(word.arg or f"**{ast.unparse(word.value)}", word.value) for word in value.keywords]
    if isinstance(value, ast.Dict):
        return [
            (f"**{ast.unparse(inner)}" if key is None else _key_text(key), inner)
            for key, inner in zip(value.keys, value.values, strict=True)
        ]
    return []


def _key_text(key: ast.expr) -> str:
    return str(key.value) if isinstance(key, ast.Constant) else ast.unparse(key)


def listed(title: str, entries: Sequence[str]) -> str:
    """Lines for an error message, the first dozen; empty without entries."""
    if not entries:
        return ""
    lines = [f"\n    {entry}" for entry in entries[:_MOST_SHOWN]]
    rest = len(entries) - _MOST_SHOWN
    return f"\n  {title}:" + "".join(lines) + (f"\n    and {rest} more" if rest > 0 else "")
