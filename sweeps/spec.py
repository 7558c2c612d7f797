"""The sweep spec: its sections, and the YAML file that fills them.

`load_spec` finds every mistake at once and places each by line and column.
"""

import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field
from ruamel.yaml import YAML

from sweeps.expressions import Expression, parse
from sweeps.record import ParamValue, sqlite_url
from sweeps.section import Document, Found, Section, SpecError, got, read_section, unknown
from sweeps.section import Problem as Problem
from sweeps.space import Choices, Derived, Parameter, Range, Space

COPY_NAME = "spec.yaml"
STUDY_NAME = "study.db"
NUM_PROBES = 512
MIN_STARTUP, MAX_STARTUP = 4, 10

_METRICS = Literal["NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE"]


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


class TrainSpec(Section):
    """What is trained: a config file, what it starts from, how long."""

    config: str = Field(min_length=1)
    load_from: str | None = None
    epochs: float = Field(gt=0)
    overrides: dict[str, Any] = Field(default_factory=dict)


class ObjectiveSpec(Section):
    """What is optimised, and the spread it shows between seeds."""

    metric: _METRICS = "NDS"
    mode: Literal["max", "min"] = "max"
    noise: float = Field(ge=0)

    def rules(self) -> Iterator[tuple[str, str]]:
        """Errors are minimised, scores maximised."""
        right = "max" if self.metric in ("NDS", "mAP") else "min"
        if self.mode != right:
            yield "mode", f"must be {right!r} for {self.metric}, {got(self.mode)}"

    @property
    def key(self) -> str:
        """The metric's key in a trial's reports."""
        return f"val/{self.metric.lower()}"


class KnownPoint(Section):
    """A point evaluated outside this sweep: the space's parameters and the score."""

    params: dict[str, float | int | bool | str]
    value: float


class SearchSpec(Section):
    """How the next trial is chosen."""

    sampler: Literal["gp", "tpe", "random"] = "gp"
    seed: int = Field(default=0, ge=0, lt=2**32)
    startup: int | None = Field(default=None, ge=1)


class StoppingSpec(Section):
    """When hopeless trials end, and the rungs at which every trial is scored."""

    rule: Literal["safe", "fast", "none"] = "safe"
    rungs: tuple[float, ...] = Field(default=(0.25, 0.5, 1.0), strict=False)
    val_shares: tuple[float, ...] | None = Field(default=None, strict=False)

    def rules(self) -> Iterator[tuple[str, str]]:
        """Rungs lead up to a full run, scored on all scenes."""
        rungs = list(self.rungs)
        if not rungs or not all(0 < rung <= 1 for rung in rungs):
            yield "rungs", f"must be shares of the budget in (0, 1], {got(rungs)}"
        elif any(a >= b for a, b in pairwise(rungs)):
            yield "rungs", f"must increase strictly, {got(rungs)}"
        elif rungs[-1] != 1:
            yield "rungs", f"must end with 1, the full budget, {got(rungs)}"
        if self.val_shares is None:
            return
        shares = list(self.val_shares)
        if len(shares) != len(rungs):
            yield "val_shares", f"must be as many as rungs ({len(rungs)}), {got(shares)}"
        if not shares or not all(0 < share <= 1 for share in shares):
            yield "val_shares", f"must be shares of the scenes in (0, 1], {got(shares)}"
        elif shares[-1] != 1:
            yield "val_shares", f"must end with 1, all scenes, {got(shares)}"

    @property
    def fidelities(self) -> tuple[tuple[float, float], ...]:
        """(share of the budget, share of the validation scenes) of each rung."""
        shares = self.val_shares or (1.0,) * len(self.rungs)
        return tuple(zip(self.rungs, shares, strict=True))


class BudgetSpec(Section):
    """When the sweep ends: after so many trials; no new one after so many hours."""

    trials: int = Field(ge=1)
    hours: float | None = Field(default=None, gt=0)


class ResourcesSpec(Section):
    """What one trial takes, and how many run at once (null: as many as fit)."""

    gpus: int = Field(default=0, ge=0)
    cpus: int = Field(default=1, ge=1)
    concurrent: int | None = Field(default=None, ge=1)

    def rules(self) -> Iterator[tuple[str, str]]:
        """One trial is one process."""
        if self.gpus > 1:
            yield "gpus", f"`gpus <= 1` must hold, {got(self.gpus)}: a trial is one process so far"


class TrackingSpec(Section):
    """The MLflow server; null: a SQLite file beside the sweeps."""

    uri: str | None = None


class StorageSpec(Section):
    """Where sweeps lie; `study` is a database URL, null: a SQLite file in the sweep's directory."""

    path: str = "runs"
    study: str | None = None


class SweepSpec(Section):
    """A whole sweep."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    train: TrainSpec
    objective: ObjectiveSpec
    space: dict[str, Range | Choices | Derived]
    constraints: tuple[str, ...] = ()
    known: tuple[KnownPoint, ...] = ()
    search: SearchSpec = SearchSpec()
    stopping: StoppingSpec = StoppingSpec()
    control: bool = True
    budget: BudgetSpec
    resources: ResourcesSpec = ResourcesSpec()
    tracking: TrackingSpec = TrackingSpec()
    storage: StorageSpec = StorageSpec()

    @property
    def directory(self) -> Path:
        """Where the sweep keeps all it writes."""
        return Path(self.storage.path).resolve() / self.name

    @property
    def storage_url(self) -> str:
        """Where its study is."""
        return self.storage.study or sqlite_url(self.directory / STUDY_NAME)

    @property
    def seed(self) -> int:
        """The seed of the search, and of every training, so that trials differ in nothing else."""
        return self.search.seed

    @property
    def startup(self) -> int:
        """Trials drawn at random before the sampler trusts its model."""
        share = min(MAX_STARTUP, max(MIN_STARTUP, self.budget.trials // 3))
        return self.search.startup or share

    def build_space(self) -> Space:
        """The search space."""
        return Space(self.space, self.constraints)

    def trial_dir(self, label: str) -> Path:
        """The directory of a trial."""
        return self.directory / "trials" / label

    def dump(self) -> dict[str, Any]:
        """The spec as JSON values, in the form of the file, defaults written out."""
        data = json.loads(self.model_dump_json(by_alias=True))
        metric = self.objective.metric
        data["known"] = [
            {"params": dict(point.params), metric: point.value} for point in self.known
        ]
        return data

    def write_copy(self, directory: Path) -> None:
        """Write the spec into the sweep's directory."""
        stream = io.StringIO()
        YAML().dump(self.dump(), stream)  # in the order of the spec, unlike the safe dumper
        (directory / COPY_NAME).write_text(stream.getvalue())


def load_spec(
    path: Path | str, *, knobs: Mapping[str, KnobInfo], has_key: Callable[[str], bool]
) -> SweepSpec:
    """Read a spec file.

    Args:
        path: YAML file.
        knobs: Tunables by name.
        has_key: Whether the training config has a dotted key.

    Raises:
        SpecError: With all mistakes.
        OSError: If the file cannot be read.
    """
    return parse_spec(Path(path).read_text(), source=str(path), knobs=knobs, has_key=has_key)


def load_copy(directory: Path | str) -> SweepSpec:
    """Read the spec of a sweep from the sweep's directory; its names were checked at the start."""
    path = Path(directory) / COPY_NAME
    return parse_spec(path.read_text(), source=str(path), knobs={}, has_key=lambda key: True)


def peek_config(path: Path | str) -> str | None:
    """Read `train.config` alone, so that a caller can build `has_key`; None if it is not given.

    Raises:
        SpecError: If the file is not YAML.
    """
    train = Document(Path(path).read_text(), str(path)).data.get("train")
    config = train.get("config") if isinstance(train, dict) else None
    return config if isinstance(config, str) else None


def parse_spec(
    text: str, *, source: str, knobs: Mapping[str, KnobInfo], has_key: Callable[[str], bool]
) -> SweepSpec:
    """Read a spec from a text; see `load_spec`."""
    document = Document(text, source)
    found: list[Found] = []
    data = dict(document.data)
    space = _read_space(data.pop("space", None), "space" in document.data, found)
    metric = _metric_name(data)
    known = _read_known(data.pop("known", []), metric, found)
    constraints = _read_constraints(data.pop("constraints", []), found)
    sections = {
        name: read_section(section, data.pop(name), (name,), found)
        for name, section in _SECTIONS.items()
        if name in data
    }
    # The top level again, each section replaced by what was read or, if that failed, dropped.
    failed = {name for name, section in sections.items() if section is None}
    top: list[Found] = []
    fields = {**data, **{k: v for k, v in sections.items() if v is not None}, "space": space}
    spec = read_section(SweepSpec, {**fields, "constraints": constraints, "known": ()}, (), top)
    found.extend(f for f in top if not (f[1] == "must be given" and f[0][0] in failed))
    clean_space = not any(path[0] == "space" for path, _ in found)
    found.extend(_check_names(space, knobs, has_key))
    found.extend(_check_expressions(space, constraints, _names_in(document.data.get("space"))))
    if clean_space and not any(path[0] in ("space", "constraints") for path, _ in found):
        known = _check_points(Space(space, constraints), known, knobs, found)
    if found or spec is None:
        raise document.error(found)
    return spec.model_copy(update={"known": tuple(known)})


_SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in SweepSpec.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def _read_space(data: Any, is_given: bool, found: list[Found]) -> dict[str, Parameter]:
    if not is_given or not isinstance(data, dict) or not data:
        message = f"must be a mapping of at least one parameter, {got(data)}"
        found.append((("space",), message if is_given else "must be given"))
        return {}
    space: dict[str, Parameter] = {}
    for name, item in data.items():
        kind = _kind_of(item)
        if kind is None:
            message = f"must be {{low, high}}, {{choices}} or {{derive}}, {got(item)}"
            found.append((("space", name), message))
            continue
        parameter = read_section(kind, item, ("space", name), found)
        if parameter is not None:
            space[name] = parameter
    if space and all(isinstance(parameter, Derived) for parameter in space.values()):
        found.append((("space",), "must have a parameter to search, but got derived ones alone"))
    return space


def _kind_of(item: Any) -> type[Range] | type[Choices] | type[Derived] | None:
    if not isinstance(item, dict):
        return None
    kinds = {"derive": Derived, "choices": Choices, "low": Range, "high": Range}
    return next((kind for key, kind in kinds.items() if key in item), None)


def _metric_name(data: Mapping[str, Any]) -> str:
    objective = data.get("objective")
    metric = objective.get("metric") if isinstance(objective, dict) else None
    return metric if isinstance(metric, str) else ObjectiveSpec.model_fields["metric"].default


def _read_known(data: Any, metric: str, found: list[Found]) -> list[KnownPoint | None]:
    if not isinstance(data, list):
        found.append((("known",), f"must be a list of {{params, {metric}}}, {got(data)}"))
        return []
    points: list[KnownPoint | None] = []
    for i, item in enumerate(data):
        path = ("known", i)
        if not isinstance(item, dict):
            found.append((path, f"must be a mapping with params, {metric}, {got(item)}"))
            points.append(None)
            continue
        strangers = [key for key in item if key not in ("params", metric)]
        wrong: list[Found] = [
            ((*path, k), unknown("key", k, ("params", metric))) for k in strangers
        ]
        plain = {"value" if k == metric else k: v for k, v in item.items() if k not in strangers}
        point = read_section(KnownPoint, plain, path, wrong)
        # The file names the score by its metric.
        found.extend(((*p[:2], metric, *p[3:]) if p[2:3] == ("value",) else p, m) for p, m in wrong)
        points.append(None if wrong else point)
    return points


def _read_constraints(data: Any, found: list[Found]) -> tuple[str, ...]:
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


def _check_names(
    space: Mapping[str, Parameter],
    knobs: Mapping[str, KnobInfo],
    has_key: Callable[[str], bool],
) -> Iterator[Found]:
    for name, parameter in space.items():
        path = ("space", name)
        if name == "seed":
            yield path, "must not be searched: `search.seed` is the seed of every trial"
        elif name in knobs:
            yield from (((*path, key), m) for key, m in _outside(knobs[name], parameter))
        elif not has_key(name):
            yield path, f"{unknown('knob', name, knobs)} (a dotted key must exist in the config)"


def _outside(knob: KnobInfo, parameter: Parameter) -> Iterator[tuple[str, str]]:
    """What a parameter asks for beyond its knob's own range."""
    if isinstance(parameter, Derived):
        return
    if isinstance(parameter, Range):
        values: list[tuple[str, Any]] = [("low", parameter.low), ("high", parameter.high)]
    else:
        values = [("choices", value) for value in parameter.choices]
    for key, value in values:
        if message := _refusal(knob, value):
            yield key, message


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


def _check_expressions(
    space: Mapping[str, Parameter], constraints: Sequence[str], names: Collection[str]
) -> Iterator[Found]:
    """Expressions read parameters of the space, and no circle."""
    derived = {k: p.expression for k, p in space.items() if isinstance(p, Derived)}
    for name, expression in derived.items():
        yield from _unknown_names(("space", name, "derive"), expression, names)
    for i, text in enumerate(constraints):
        yield from _unknown_names(("constraints", i), parse(text), names)
    try:
        Space(space)
    except ValueError as error:
        yield ("space",), str(error)


def _names_in(space: Any) -> list[str]:
    """All names of the space, those with mistakes of their own included."""
    return list(space) if isinstance(space, dict) else []


def _unknown_names(
    path: tuple[str | int, ...], expression: Expression, names: Collection[str]
) -> Iterator[Found]:
    for name in sorted(expression.names - set(names)):
        yield path, f"{unknown('parameter', name, names)}, in {expression.text!r}"


def _check_points(
    space: Space,
    known: Sequence[KnownPoint | None],
    knobs: Mapping[str, KnobInfo],
    found: list[Found],
) -> list[KnownPoint]:
    """Try the space on points, and complete the known ones."""
    try:
        _probe(space, knobs, found)
    except ValueError as error:
        found.append((("constraints",) if space.constraints else ("space",), str(error)))
        return []
    # A pure search axis sets nothing by itself, so a run by hand has no default for it.
    defaults = {name: knob.default for name, knob in knobs.items() if knob.keys}
    complete = []
    for i, point in enumerate(known):
        if point is None:
            continue
        try:
            complete.append(_complete(space, point, defaults))
        except ValueError as error:
            found.append((("known", i, "params"), str(error)))
    return complete


def _probe(space: Space, knobs: Mapping[str, KnobInfo], found: list[Found]) -> None:
    """Draw points: the constraints must leave some, derived values must fit their knobs."""
    rng = np.random.default_rng(0)
    bad: dict[str, str] = {}
    for _ in range(NUM_PROBES):
        params = space.resolve(space.draw(rng))
        for name in space.derived.keys() & knobs.keys():
            if message := _refusal(knobs[name], params[name]):
                bad.setdefault(name, message)
    for name, message in bad.items():
        text = f"{message} at a point of the space; add a constraint on {name} or narrow the axes"
        found.append((("space", name, "derive"), text))


def _complete(space: Space, point: KnownPoint, defaults: Mapping[str, ParamValue]) -> KnownPoint:
    names = [*space.axes, *space.derived]
    for name in point.params:
        if name not in names:
            raise ValueError(unknown("parameter", name, names))
    sampled = space.invert(point.params, defaults)
    # What the point gives stands as given: recomputed, it could cross a constraint by a rounding.
    params = {**space.resolve(sampled), **point.params}
    if broken := space.violations(params):
        raise ValueError(f"must meet the constraints, but breaks {', '.join(broken)}")
    return point.model_copy(update={"params": params})


__all__ = [
    "KnobInfo",
    "KnownPoint",
    "Problem",
    "SpecError",
    "SweepSpec",
    "load_copy",
    "load_spec",
    "parse_spec",
    "peek_config",
]
