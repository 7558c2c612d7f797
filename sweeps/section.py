"""Sections of a spec file: their base class, and what is wrong with them, by line and column."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError

from sweeps.database_url import masked

Path = tuple[str | int, ...]
Found = tuple[Path, str]
S = TypeVar("S", bound="Section")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One mistake in a spec: where it stands, what must hold and what came. Lines count from 1."""

    line: int
    column: int
    where: str
    message: str


class SpecError(ValueError):
    """All mistakes of a spec at once."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(sorted(problems, key=lambda p: (p.line, p.column, p.where)))
        lines = [f"{source}:{p.line}:{p.column}: {p.where}: {p.message}" for p in self.problems]
        super().__init__("\n".join(lines))


class Section(BaseModel):
    """A part of a spec: frozen, strictly typed, no unknown keys, own rules in `rules`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True
    )

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield (field, message) of each broken rule."""
        yield from ()

    @model_validator(mode="after")
    def _check_rules(self) -> "Section":
        if broken := list(self.rules()):
            raise PydanticCustomError(
                "rules", "{text}", {"broken": broken, "text": "; ".join(m for _, m in broken)}
            )
        return self


def key_names(section: type[Section]) -> tuple[str, ...]:
    """The keys of a section as a file spells them."""
    return tuple(field.alias or name for name, field in section.model_fields.items())


def unknown(what: str, name: str, valid: Iterable[str]) -> str:
    """Say that a name is unknown, what would be valid, and what may have been meant."""
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}; valid: {', '.join(valid)}{hint}"


def read_section(section: type[S], data: Any, path: Path, found: list[Found]) -> S | None:
    """Validate one section; add what is wrong to `found` and return None if anything is."""
    if not isinstance(data, Mapping):
        found.append((path, f"must be a mapping with {', '.join(key_names(section))}, {got(data)}"))
        return None
    valid = key_names(section)
    strangers = [key for key in data if key not in valid]
    found.extend(((*path, str(key)), unknown("key", str(key), valid)) for key in strangers)
    known = {key: value for key, value in data.items() if key not in strangers}
    try:
        result = section.model_validate(known)
    except ValidationError as error:
        for detail in error.errors():
            found.extend(_translate(detail, path))
        return None
    return None if strangers else result


def got(value: Any) -> str:
    """The end of a message: what came instead."""
    return f"but got {masked(repr(value))}"


_EXPECTED = {
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "finite_number": "must be finite",
}


def _translate(detail: ErrorDetails, path: Path) -> Iterator[Found]:
    context = detail.get("ctx", {})
    here = (*path, *detail["loc"])
    match detail["type"]:
        case "rules":
            yield from (((*here, field), message) for field, message in context["broken"])
        case "missing":
            yield here, "must be given"
        case "literal_error":
            yield here, f"must be one of {context['expected']}, {got(detail['input'])}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            sign = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
            name, bound = next((n, context[n]) for n in sign if n in context)
            yield here, f"must be {sign[name]} {bound}, {got(detail['input'])}"
        case kind:
            expected = _EXPECTED.get(kind, detail["msg"])
            yield here, f"{expected}, {got(detail['input'])}"


class Document:
    """A YAML text with the place of every key.

    Raises:
        SpecError: If it is not YAML with a mapping at the top.
    """

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        try:
            self._root = YAML(typ="rt").load(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            # The library adds advice for programmers in further lines.
            message = str(error.problem).splitlines()[0]
            raise self._error(line, column, f"must be YAML: {message}") from error
        if not isinstance(self._root, CommentedMap):
            raise self._error(1, 1, f"must be a mapping, {got(self._root)}")
        self.data: dict[str, Any] = _plain(self._root)

    def _error(self, line: int, column: int, message: str) -> SpecError:
        return SpecError(
            self.source, [Problem(line=line, column=column, where="file", message=message)]
        )

    def error(self, found: Iterable[Found]) -> SpecError:
        """Place what was found."""
        problems = []
        for path, message in found:
            line, column = self._place(path)
            where = ".".join(str(part) for part in path)
            problems.append(Problem(line=line, column=column, where=where, message=message))
        return SpecError(self.source, problems)

    def _place(self, path: Path) -> tuple[int, int]:
        node: Any = self._root
        place = (0, 0)
        for part in path:
            # What is missing stands where its parent stands.
            if isinstance(node, CommentedMap) and part in node:
                place = node.lc.key(part)
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                place = node.lc.item(part)
            else:
                break
            node = node[part]
        return place[0] + 1, place[1] + 1


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    # The parser's numbers and texts remember their spelling; nobody after it should.
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node
