"""From what a user names (a spec file, a sweep's directory or name) to a checked spec."""

import fcntl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.display import shortest
from launch.workplace import Workplace

if TYPE_CHECKING:
    from launch.training import CmtTraining
    from sweeps.record import SweepRecord
    from sweeps.section import Found
    from sweeps.spec import SweepSpec

COPY_NAME = "spec.yaml"  # as in sweeps/spec.py, which loads too much for a look at a directory
LOCK_NAME = "driver.lock"
DEFAULT_STORAGE = Path("runs")


class TargetError(RuntimeError):
    """What the user named is not there; says what would be."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A checked spec with what its trials train from.

    Attributes:
        spec: The spec.
        source: The file it came from.
        config: The base config file.
        training: The training function, which holds the loaded base config.
        warnings: Settings of the config that change nothing, or less than they seem to.
    """

    spec: "SweepSpec"
    source: Path
    config: Path
    training: "CmtTraining"
    warnings: tuple[str, ...] = ()


def open_spec(
    path: Path,
    workplace: Workplace,
    *,
    check_files: bool = True,
    starts: bool = True,
    is_new: bool = True,
) -> Opened:
    """Read a spec and check all of it before anything starts.

    What is wrong with the spec's own text is told first, without loading the training stack. The
    working directory becomes the workplace's root.

    Args:
        path: The spec file.
        workplace: Where relative paths lead.
        check_files: Checkpoints and datasets that it names must be there, too.
        starts: Its trainings are to start; False: it is only looked at.
        is_new: None of its trainings has started yet.

    Raises:
        TargetError: If there is no such file.
        SpecError: With every mistake at once.
    """
    from launch.checks import (
        check_trainings,
        read_base,
        with_more,
        wrong_overrides,
        wrong_space,
    )
    from launch.training import build_training
    from sweeps.spec import peek_config

    source = workplace.find(path)
    if not source.is_file():
        raise TargetError(
            f"There is no spec {path}. Ready ones lie in sweeps/specs; `aqr-sweep --help` shows"
            " how to use them."
        )
    shown = str(shortest(source))
    text = source.read_text(encoding="utf-8")
    named = peek_config(shown)
    config = workplace.find(Path(named)) if named else None
    problems: list[Found] = []
    if config is not None and not config.is_file():
        problems.append(
            (("train", "config"), f"must be a config file, but there is none at {config}")
        )
    workplace.enter()
    spec = _parsed(text, shown, problems)
    assert config is not None  # train.config must be given
    base, problem = read_base(config)
    if base is None:
        raise with_more(None, text, shown, [(("train", "config"), str(problem))])
    if problems := [*wrong_overrides(spec, base), *wrong_space(spec, base)]:
        raise with_more(None, text, shown, problems)
    training = build_training(spec, base, root=workplace.root)
    opened = Opened(spec=spec, source=source, config=config, training=training)
    if not starts:
        return opened
    checked = check_trainings(spec, training, config, files=check_files, is_new=is_new)
    if checked.problems:
        raise with_more(None, text, shown, checked.problems)
    return replace(opened, warnings=tuple(map(str, checked.warnings)))


def _parsed(text: str, shown: str, problems: "Sequence[Found]") -> "SweepSpec":
    """A spec without mistakes of its own; what may be a key of the config is not looked up.

    Raises:
        SpecError: If it has some, or there are other problems; with all of them.
    """
    from launch.checks import may_be_key, with_more
    from launch.knobs import load_knobs
    from sweeps.spec import SpecError, parse_spec

    error: SpecError | None = None
    spec = None
    try:
        spec = parse_spec(text, source=shown, knobs=load_knobs(), has_key=may_be_key)
    except SpecError as found:
        error = found
    if spec is None or problems:
        raise with_more(error, text, shown, problems) from None
    return spec


def open_sweep(target: str, workplace: Workplace, *, starts: bool = True) -> Opened:
    """Open the sweep that a spec file, a directory or a name leads to.

    Args:
        target: What the user named.
        workplace: Where relative paths lead.
        starts: Its trainings are to go on; False: it is only looked at.

    Raises:
        TargetError: If there is no such sweep.
        SpecError: If its spec no longer holds.
    """
    if (path := Path(target)).suffix in (".yaml", ".yml"):
        return open_spec(path, workplace, starts=starts, is_new=False)
    directory = find_sweep(target, workplace)
    opened = open_spec(directory / COPY_NAME, workplace, starts=starts, is_new=False)
    return replace(opened, spec=_moved_to(opened.spec, directory))


def read_spec(directory: Path) -> "SweepSpec":
    """The spec of a sweep, wherever its directory is now, without loading its config."""
    from sweeps.spec import load_copy

    return _moved_to(load_copy(directory), directory)


def find_sweep(target: str, workplace: Workplace) -> Path:
    """The directory of a sweep, given as directory, as spec file or by name.

    Raises:
        TargetError: If there is none; lists those that there are.
    """
    workplace.enter()
    given = Path(target)
    if given.suffix in (".yaml", ".yml"):
        given = _directory_of(workplace.find(given))
    for directory in (given, DEFAULT_STORAGE / given):
        if (directory / COPY_NAME).is_file():
            return directory.resolve()
    others = sorted(path.parent.name for path in DEFAULT_STORAGE.glob(f"*/{COPY_NAME}"))
    known = f" Sweeps in {DEFAULT_STORAGE}: {', '.join(others)}." if others else ""
    raise TargetError(
        f"There is no sweep at {given}: name its directory, its spec, or a sweep below"
        f" {DEFAULT_STORAGE}.{known} `aqr-sweep run SPEC` starts one."
    )


def driver_of(directory: Path) -> str | None:
    """Who drives a sweep at the moment, as its lock file says; None if nobody does."""
    try:
        with (directory / LOCK_NAME).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return (directory / LOCK_NAME).read_text(encoding="utf-8").strip() or "a driver"


def read_record(spec: "SweepSpec") -> "SweepRecord":
    """The record of a sweep.

    Raises:
        TargetError: If it has none yet.
    """
    from sweeps.record import read_sweep

    try:
        record = read_sweep(spec.storage_url, spec.name)
    except (FileNotFoundError, KeyError) as error:
        raise TargetError(_no_trials(spec)) from error
    if "metric" not in record.attrs:  # its driver is about to write them
        raise TargetError(_no_trials(spec))
    return record


def spec_name(target: str) -> str:
    """A sweep's name from its spec file or directory; any other text as it is."""
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return _directory_of(path).name
    return path.name if (path / COPY_NAME).is_file() else target


def _no_trials(spec: "SweepSpec") -> str:
    directory = shortest(spec.directory)
    return (
        f"The sweep in {directory} has no trials yet: wait for the first, or go on with `aqr-sweep"
        f" resume {directory}`."
    )


def _directory_of(spec_path: Path) -> Path:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="safe").load(spec_path.read_text(encoding="utf-8"))
        storage = (data.get("storage") or {}).get("path", str(DEFAULT_STORAGE))
        return Path(storage) / data["name"]
    except (OSError, YAMLError, AttributeError, KeyError, TypeError) as error:
        raise TargetError(
            f"{spec_path} is no spec that could be read; `aqr-sweep plan` says why."
        ) from error


def _moved_to(spec: "SweepSpec", directory: Path) -> "SweepSpec":
    storage = spec.storage.model_copy(update={"path": str(directory.parent.resolve())})
    return spec.model_copy(update={"storage": storage})
