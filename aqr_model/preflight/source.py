"""The text of config files: what they inherit from, what they assign twice, where a key stands."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_BASE = "_base_"
_MOST_SHOWN = 12
# A name's value, with what the names in it mean.
Names = Mapping[str, tuple[ast.expr, "Names"]]


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


class Places:
    """Where the keys of a config stand.

    Args:
        path: A config file; None, or one that is not Python: no place can be told.
    """

    def __init__(self, path: Path | None) -> None:
        self._lines: dict[str, tuple[Path, int]] = {}
        for file in () if path is None else files_of(path):
            names: Names = {}
            for statement in parsed(file).body:
                for name, value in _assigned(statement):
                    self._read(value, name, file, names)
                    # With what the names mean here, for one may be assigned again.
                    names = {**names, name: (value, names)}

    def of(self, key: str) -> str:
        """File and line of a dotted key, or of the nearest dict around it; empty without one."""
        parts = key.split(".")
        for count in range(len(parts), 0, -1):
            if found := self._lines.get(".".join(parts[:count])):
                return f"{_shown(found[0])}, line {found[1]}"
        return ""

    def _read(self, value: ast.expr, key: str, file: Path, names: "Names") -> None:
        self._lines[key] = (file, value.lineno)
        for name, inner, meant in _children(value, names):
            self._read(inner, f"{key}.{name}", file, meant)


def doubled_assignments(path: Path) -> tuple[Doubled, ...]:
    """Names that a Python config file assigns at top level twice, in the order of the second.

    An assignment whose value is read before the next one is no mistake: ``steps = steps + [...]``
    is a way to write a list.
    """
    found: list[Doubled] = []
    values: dict[str, ast.expr] = {}
    for statement in parsed(path).body:
        for name in _names_read(statement):
            values.pop(name, None)
        for name, value in _assigned(statement):
            if name in values:
                found.append(_doubled(path, name, values[name], value))
            values[name] = value
    return tuple(found)


def files_of(path: Path) -> Iterator[Path]:
    """A Python config file and all that it inherits from, bases first."""
    if path.suffix != ".py":
        return
    for statement in parsed(path).body:
        for name, value in _assigned(statement):
            if name == _BASE:
                yield from (file for base in _bases(value) for file in files_of(path.parent / base))
    yield path


def helper_names(path: Path | None) -> set[str] | None:
    """Names that a config assigns and uses itself, such as ``class_names`` or a pipeline.

    A name that a file assigns counts for that file alone: what a base has made of its own value
    does not change when a file that inherits from it assigns the name anew.

    Returns:
        The names; None where no file uses any name, as in a config that was dumped.
    """
    helpers: set[str] = set()
    any_used = False
    for file in () if path is None else files_of(path):
        statements = parsed(file).body
        used = {name for statement in statements for name in _names_read(statement)}
        for name in (name for statement in statements for name, _ in _assigned(statement)):
            any_used = any_used or name in used
            (helpers.add if name in used else helpers.discard)(name)
    return helpers if any_used else None


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def listed(title: str, entries: Iterable[str]) -> str:
    """Lines for an error message, the first dozen; empty without entries."""
    entries = list(entries)
    if not entries:
        return ""
    lines = [f"\n    {entry}" for entry in entries[:_MOST_SHOWN]]
    rest = len(entries) - _MOST_SHOWN
    return f"\n  {title}:" + "".join(lines) + (f"\n    and {rest} more" if rest > 0 else "")


def _bases(value: ast.expr) -> list[str]:
    try:
        bases = ast.literal_eval(value)
    except ValueError:
        return []  # made by an expression, which only running the file can tell
    return [bases] if isinstance(bases, str) else list(bases)


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


def _children(value: ast.expr, names: "Names") -> Iterator[tuple[str, ast.expr, "Names"]]:
    """Entries of a dict and elements of a list, through names and what stars unpack."""
    value, names = _followed(value, names)
    for i, (each, meant) in enumerate(_elements(value, names)):
        yield str(i), each, meant
    for name, inner in _entries(value):
        if name.startswith("**"):
            yield from _children(inner, names)
        else:
            yield name, inner, names


def _elements(value: ast.expr, names: "Names") -> Iterator[tuple[ast.expr, "Names"]]:
    value, names = _followed(value, names)
    if isinstance(value, ast.BinOp):
        yield from (each for side in (value.left, value.right) for each in _elements(side, names))
    for each in value.elts if isinstance(value, ast.List | ast.Tuple) else ():
        if isinstance(each, ast.Starred):
            yield from _elements(each.value, names)
        else:
            yield each, names


def _followed(value: ast.expr, names: "Names") -> tuple[ast.expr, "Names"]:
    """What a name stands for, and what names mean where it was assigned."""
    while isinstance(value, ast.Name) and value.id in names:
        value, names = names[value.id]
    return value, names


def _shown(file: Path) -> Path:
    """A path as one would type it from here."""
    file, here = file.resolve(), Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file


def _key_text(key: ast.expr) -> str:
    return str(key.value) if isinstance(key, ast.Constant) else ast.unparse(key)
