"""The sweep spec: its sections together, and the YAML file that fills them.

`load_spec` finds every mistake at once and places each by line and column.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import Field
from ruamel.yaml import YAML

from sweeps.database_url import has_password, is_masked, shown_url
from sweeps.record import ParamValue, sqlite_url
from sweeps.section import Document, Found, Section, SpecError, got, read_section
from sweeps.section import Problem as Problem
from sweeps.sections import (
    NOISE_SEEDS,
    BudgetSpec,
    ControlSpec,
    FinalistsSpec,
    KnownPoint,
    ObjectiveSpec,
    ResourcesSpec,
    SearchSpec,
    StoppingSpec,
    StorageSpec,
    TrackingSpec,
    TrainSpec,
)
from sweeps.space import Choices, Derived, Fixed, Range, Schedule, Space
from sweeps.spec_checks import (
    KnobInfo,
    check_expressions,
    check_names,
    check_objectives,
    check_points,
    check_sampler,
    check_schedules,
)
from sweeps.spec_parts import (
    KNOWN_KEYS,
    metric_name,
    read_also,
    read_constraints,
    read_known,
    read_space,
    read_start,
)

COPY_NAME = "spec.yaml"
STUDY_NAME = "study.db"
URL_NAME = "study.url"
MIN_STARTUP, MAX_STARTUP = 4, 10


class SweepSpec(Section):
    """A whole sweep."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    train: TrainSpec
    objective: ObjectiveSpec
    space: dict[str, Range | Choices | Fixed | Derived | Schedule]
    constraints: tuple[str, ...] = ()
    known: tuple[KnownPoint, ...] = ()
    start: tuple[dict[str, float | int | bool | str], ...] = ()
    search: SearchSpec = SearchSpec()
    stopping: StoppingSpec = StoppingSpec()
    health: Any = "default"  # read by sweeps.health.parse_rules
    control: bool | ControlSpec = True
    finalists: FinalistsSpec | None = None
    budget: BudgetSpec
    resources: ResourcesSpec = ResourcesSpec()
    tracking: TrackingSpec = TrackingSpec()
    storage: StorageSpec = StorageSpec()

    def rules(self) -> Iterator[tuple[str, str]]:
        """Noise must come from somewhere, and a budget must be one that is spent."""
        if self.objective.noise is None and self.control_seeds < 2:
            yield (
                "objective",
                (
                    "noise must be given, or measured by a control with 2 seeds or more: "
                    f"`control: {{seeds: {NOISE_SEEDS}}}`, {got(self.control_seeds)} of them"
                ),
            )
        for i, also in enumerate(self.objective.also):
            if also.noise is None and also.metric != "time" and self.control_seeds < 2:
                yield (
                    "objective",
                    (
                        f"noise of also.{i} must be given, or measured by a control with 2 seeds or"
                        f" more: `control: {{seeds: {NOISE_SEEDS}}}`, {got(self.control_seeds)} of"
                        " them"
                    ),
                )
        if self.budget.trials is not None and self.budget.trials < len(self.start):
            yield (
                "start",
                (
                    f"must be no more points than budget.trials ({self.budget.trials}), "
                    f"{got(len(self.start))} of them"
                ),
            )
        if self.budget.gpu_hours is not None and self.resources.gpus == 0:
            yield (
                "budget",
                (
                    "gpu_hours must not be given where trials take no GPU, since none would be "
                    "spent: limit hours or trials"
                ),
            )

    @property
    def control_seeds(self) -> int:
        """Trainings of the control before its share in the finals; 0: no control."""
        if isinstance(self.control, ControlSpec):
            return self.control.seeds
        if not self.control:
            return 0
        # A training time that is not declared is compared as it is, where one control tells none.
        measured = [self.objective, *(o for o in self.objective.also if o.metric != "time")]
        return NOISE_SEEDS if any(each.noise is None for each in measured) else 1

    @property
    def directory(self) -> Path:
        """Where the sweep keeps all it writes."""
        return Path(self.storage.path).resolve() / self.name

    @property
    def storage_url(self) -> str:
        """Where its study is, the password included where there is one."""
        url = self.storage.study
        if url is None:
            return sqlite_url(self.directory / STUDY_NAME)
        kept = self.directory / URL_NAME
        return kept.read_text() if is_masked(url) and kept.is_file() else url

    @property
    def seed(self) -> int:
        """The seed of the search, and of every training, so that trials differ in nothing else."""
        return self.search.seed

    @property
    def startup(self) -> int:
        """Trials drawn at random before the sampler trusts its model."""
        trials = self.budget.trials
        share = MAX_STARTUP if trials is None else max(MIN_STARTUP, trials // 3)
        return self.search.startup or min(MAX_STARTUP, share)

    def build_space(self) -> Space:
        """The search space."""
        return Space(self.space, self.constraints)

    def trial_dir(self, label: str) -> Path:
        """The directory of a trial."""
        return self.directory / "trials" / label

    def dump(self) -> dict[str, Any]:
        """The spec as JSON values, in the form of the file, defaults written out, no password."""
        data = json.loads(self.model_dump_json(by_alias=True))
        metric = self.objective.metric
        if not self.objective.also:
            del data["objective"]["also"]
        data["known"] = [
            {"params": dict(point.params), metric: point.value}
            | point.model_dump(include=set(KNOWN_KEYS), exclude_none=True)
            for point in self.known
        ]
        if self.storage.study is not None:
            data["storage"]["study"] = shown_url(self.storage.study)
        return data

    def write_copy(self, directory: Path) -> None:
        """Write the spec into the sweep's directory."""
        stream = io.StringIO()
        YAML().dump(self.dump(), stream)  # in the order of the spec, unlike the safe dumper
        part = directory / f"{COPY_NAME}.part"  # a kill leaves the copy that was there
        part.write_text(stream.getvalue())
        part.replace(directory / COPY_NAME)
        if self.storage.study is not None and has_password(self.storage.study):
            # The copy goes to MLflow and is shown; this is for its owner's eyes.
            kept = directory / URL_NAME
            kept.touch(mode=0o600)
            kept.write_text(self.storage.study)


def config_hash(spec: SweepSpec, params: Mapping[str, ParamValue]) -> str:
    """Eight digits that tell one training from another."""
    content = {"params": dict(params), "train": spec.train.content()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


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


def from_dump(data: Mapping[str, Any]) -> SweepSpec:
    """Read what `SweepSpec.dump` gave, perhaps in an earlier version: later keys have defaults."""
    text = json.dumps(data)
    return parse_spec(text, source="the study", knobs={}, has_key=lambda key: True)


def peek_config(path: Path | str) -> str | None:
    """Read `train.config` alone, so that a caller can build `has_key`; None if it is not given.

    Raises:
        SpecError: If the file is not YAML.
    """
    train = Document(Path(path).read_text(), str(path)).data.get("train")
    config = train.get("config") if isinstance(train, dict) else None
    return config if isinstance(config, str) else None


def parse_spec(
    text: str,
    *,
    source: str,
    knobs: Mapping[str, KnobInfo],
    has_key: Callable[[str], bool],
) -> SweepSpec:
    """Read a spec from a text; see `load_spec`."""
    document = Document(text, source)
    found: list[Found] = []
    data = dict(document.data)
    space = read_space(data.pop("space", None), "space" in document.data, found)
    metric = metric_name(data)
    known = read_known(data.pop("known", []), metric, found)
    start = read_start(data.pop("start", []), found)
    constraints = read_constraints(data.pop("constraints", []), found)
    _check_plain(data, found)
    clean_space = not any(path[0] == "space" for path, _ in found)
    found.extend(check_names(space, knobs, has_key))
    found.extend(check_expressions(space, constraints, _names_in(document.data.get("space"))))
    is_sound = clean_space and not any(path[0] in ("space", "constraints") for path, _ in found)
    whole = Space(space, constraints) if is_sound else None
    sampler = _sampler_name(data)
    found.extend(check_sampler(sampler, space, with_start=bool(start)))
    also = read_also(data, found)
    found.extend(check_objectives(metric, also, sampler, with_known=bool(known)))
    if sampler == "grid":
        data["budget"] = _grid_budget(data.get("budget", {}), whole, found)
    sections = {
        name: read_section(section, data.pop(name), (name,), found)
        for name, section in _SECTIONS.items()
        if name in data and not isinstance(data[name], bool)
    }
    # The top level again, each section replaced by what was read or, if that failed, dropped.
    failed = {name for name, section in sections.items() if section is None}
    top: list[Found] = []
    fields = {**data, **{k: v for k, v in sections.items() if v is not None}, "space": space}
    plain = {"constraints": constraints, "known": (), "start": tuple(p or {} for p in start)}
    spec = read_section(SweepSpec, {**fields, **plain}, (), top)
    found.extend(f for f in top if not (f[1] == "must be given" and f[0][0] in failed))
    train = sections.get("train")
    if isinstance(train, TrainSpec):
        found.extend(check_schedules(space, train.epochs))
    if whole is not None:
        known, start = check_points(whole, known, start, knobs, found, is_grid=sampler == "grid")
    if found or spec is None:
        raise document.error(found)
    return spec.model_copy(update={"known": tuple(known), "start": tuple(start)})


def _names_in(space: Any) -> list[str]:
    """All names of the space, those with mistakes of their own included."""
    return list(space) if isinstance(space, dict) else []


def _sampler_name(data: Mapping[str, Any]) -> str:
    search = data.get("search")
    default = SearchSpec.model_fields["sampler"].default
    return search.get("sampler", default) if isinstance(search, dict) else default


def _grid_budget(budget: Any, space: Space | None, found: list[Found]) -> Any:
    """The budget of a grid, whose number of trials follows from its points."""
    if not isinstance(budget, dict):
        return budget
    given = budget.get("trials")
    count = 0
    if space is not None:
        # What is wrong with a grid is said where its points are tried.
        with contextlib.suppress(ValueError):
            count = len(space.grid())
    if given is None:
        return {**budget, "trials": max(1, count)}
    if count and isinstance(given, int) and given > count:
        message = f"`trials <= {count}` must hold, the points of the grid, {got(given)}"
        found.append((("budget", "trials"), message))
    return budget


def _section_in(annotation: Any) -> type[Section] | None:
    kinds = [annotation, *get_args(annotation)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, Section)), None)


_SECTIONS: dict[str, type[Section]] = {
    name: section
    for name, field in SweepSpec.model_fields.items()
    if name != "space" and (section := _section_in(field.annotation)) is not None
}


def _check_plain(data: dict[str, Any], found: list[Found]) -> None:
    """Check what may be a plain value; drop what cannot be read."""
    control = data.get("control", True)
    if not isinstance(control, bool | Mapping):
        found.append((("control",), f"must be true or false, {got(control)}, or {{seeds: 3}}"))
        del data["control"]
    if data.get("finalists") is None:
        data.pop("finalists", None)
    if "health" not in data:
        return
    from sweeps.health import parse_rules

    try:
        parse_rules(data["health"])
    except ValueError as error:
        found.append((("health",), str(error)))
        del data["health"]


__all__ = [
    "KnobInfo",
    "KnownPoint",
    "Problem",
    "SpecError",
    "SweepSpec",
    "config_hash",
    "load_copy",
    "load_spec",
    "parse_spec",
    "peek_config",
]
