"""What a spec needs beyond its own text: a config that builds, and the files that it names."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.training import CmtTraining
    from sweeps.section import Found, SpecError
    from sweeps.spec import SweepSpec

_DATA_HELP = (
    "`make data` writes the synthetic datasets, `python -m aqr_model.data.prepare --help` shows how"
    " to prepare nuScenes"
)


def read_base(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The base config, or what is wrong with it."""
    from launch.training import load_base

    if not path.is_file():
        return None, f"must be a config file, but there is none at {path}"
    try:
        return load_base(path), None
    # A config is a program: it can fail in any way.
    except Exception as error:  # noqa: BLE001
        return None, f"must be a config that loads, but {path} raises {_brief(error)}"


def missing(spec: "SweepSpec", training: "CmtTraining") -> "Iterator[Found]":
    """What the training would look for in vain, from the current directory."""
    from aqr_model.preflight.sensors import sensor_faults
    from launch.training import resolve

    try:
        config = resolve(training.base, training.overrides)
    except (KeyError, TypeError, AssertionError) as error:
        yield ("train", "overrides"), f"must be dotted keys of the config, but: {_brief(error)}"
        return
    for key, fault in sensor_faults(config):
        yield ("train", "config"), f"its sensors must agree, but {key} {fault}"
    load_from = config.get("load_from")
    if load_from and not Path(load_from).is_file():
        where = ("train", "load_from" if spec.train.load_from else "config")
        yield where, f"must name a checkpoint file, but {load_from!r} is not there ({Path.cwd()})"
    data = config.get("data") or {}
    wanted = {name: file for part in ("train", "val") for name, file in _files(data, part)}
    absent = [f"{key} {file!r}" for key, file in wanted.items() if not Path(file).is_file()]
    if absent:
        text = f"its datasets must be there, but {' and '.join(absent)} are not: {_DATA_HELP}"
        yield ("train", "config"), text


def with_more(
    error: "SpecError | None", text: str, source: str, found: "list[Found]"
) -> "SpecError":
    """A spec's error with further problems, placed in its text."""
    from sweeps.section import Document, SpecError

    more = Document(text, source).error(found).problems
    return SpecError(source, (*(error.problems if error else ()), *more))


def _files(data: Mapping[str, Any], part: str) -> Iterator[tuple[str, str]]:
    """Info files of a dataset, also inside a wrapper such as CBGSDataset."""
    node, where = data.get(part), f"data.{part}"
    while isinstance(node, Mapping):
        if isinstance(file := node.get("ann_file"), str):
            yield f"{where}.ann_file", file
        node, where = node.get("dataset"), f"{where}.dataset"


def _brief(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
