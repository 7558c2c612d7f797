"""What a spec needs beyond its own text: a config from which its trainings can start."""

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.knobs import load_knobs

if TYPE_CHECKING:
    from aqr_model.preflight.findings import Finding, Findings
    from launch.training import CmtTraining
    from sweeps.section import Found, SpecError
    from sweeps.space import Space
    from sweeps.spec import SweepSpec

# What a sweep sets for all of its trials, and where a spec says it.
_OWN = {
    "total_epochs": "train.epochs",
    "runner.max_epochs": "train.epochs",
    "runner.max_iters": "train.epochs",
    "runner.type": "train.epochs",
    "evaluation.rungs": "stopping.rungs",
    "evaluation.interval": "stopping.rungs",
    "evaluation.val_shares": "stopping.val_shares",
    "num_threads": "resources.cpus",
    "seed": "search.seed",
}
_CONTROL = {"enable_aqr": False}
_MOST_DRAWS = 50
Params = Mapping[str, Any]


@dataclass(kw_only=True)
class Checked:
    """What was found about the trainings of a sweep.

    Attributes:
        problems: Mistakes, each with its place in the spec.
        warnings: What of the config changes nothing, or less than it seems to.
    """

    problems: "list[Found]" = field(default_factory=list)
    warnings: "list[Finding]" = field(default_factory=list)


def read_base(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The base config, or what is wrong with it."""
    from aqr_model.preflight.reading import ConfigError
    from launch.training import load_base

    if not path.is_file():
        return None, f"must be a config file, but there is none at {path}"
    try:
        return load_base(path), None
    except (ConfigError, FileNotFoundError) as error:
        return None, str(error)


def may_be_key(name: str) -> bool:
    """Whether a name that is no knob may be a key of a config, before the config is read."""
    return "." in name or not difflib.get_close_matches(name, load_knobs(), n=1)


def wrong_overrides(spec: "SweepSpec", base: Mapping[str, Any]) -> "Iterator[Found]":
    """Overrides that set what nobody reads, or what the sweep itself sets."""
    for key, value in spec.train.overrides.items():
        for leaf in _leaves(key, value):
            if message := _wrong(leaf, base, "given"):
                yield ("train", "overrides", key), message


def wrong_space(spec: "SweepSpec", base: Mapping[str, Any]) -> "Iterator[Found]":
    """Parameters that set what nobody reads, what the sweep sets, or what another one sets."""
    taken = {key: f"train.overrides.{key}" for key in spec.train.overrides}
    for name in spec.space:
        for key in _keys_of(name):
            message = None if name in load_knobs() else _wrong(key, base, "searched")
            if message is None and key in taken:
                message = f"sets {key}, which `{taken[key]}` sets too: keep one of them"
            if message is not None:
                yield ("space", name), message
            taken.setdefault(key, f"space.{name}")


def _wrong(key: str, base: Mapping[str, Any], what: str) -> str | None:
    """Why a spec may not set a key of the config."""
    from aqr_model.preflight.keys import refusal

    if (owner := _OWN.get(key)) is not None:
        return f"must not be {what}: `{owner}` says it for all trials of a sweep"
    return refusal(key, base, known={key for knob in load_knobs().values() for key in knob.keys})


def check_trainings(
    spec: "SweepSpec", training: "CmtTraining", config: Path, *, files: bool, is_new: bool = True
) -> Checked:
    """Find out whether the trainings of a sweep can start, and what of their config does nothing.

    Args:
        spec: A spec without mistakes of its own.
        training: Its training function.
        config: The base config file.
        files: Data and weights that the trainings name must be there.
        is_new: The sweep has not begun; one that has goes on even if it searches what does nothing.
    """
    from aqr_model.preflight.checks import preflight
    from launch.training import resolve

    checked, space = Checked(), spec.build_space()
    point = space.resolve(next(_draws(space)))
    variants = {"": point} | ({"control": _CONTROL} if spec.control_seeds else {})
    for label, params in variants.items():
        try:
            cfg = resolve(training.base, training.trial_overrides(params))
        except (KeyError, TypeError, AssertionError) as error:
            text = f"must be dotted keys of the config, but: {_brief(error)}"
            checked.problems.append((("train", "overrides"), text))
            return checked
        found = preflight(cfg, source=config, files=files, in_sweep=True)
        _place(found, spec, label, checked)
        if not label:
            _warn(found, spec, checked)
    if not checked.problems:
        checked.problems += _failing(spec, training, space, config)
    if not checked.problems and is_new:
        checked.problems += _idle(spec, training, space)
    return checked


def with_more(
    error: "SpecError | None", text: str, source: str, found: "Sequence[Found]"
) -> "SpecError":
    """A spec's error with further problems, placed in its text."""
    from sweeps.section import Document, SpecError

    more = Document(text, source).error(found).problems
    return SpecError(source, (*(error.problems if error else ()), *more))


def _place(found: "Findings", spec: "SweepSpec", label: str, checked: Checked) -> None:
    """Place errors of a config where the spec leads to them."""
    for error in found.errors:
        path = _path_of(error.key, spec)
        if path == ("train", "config"):
            text = str(error)
        else:  # the spec itself says it, and not the config's file
            text = error.text if error.key == path[-1] else f"{error.key}: {error.text}"
        if not any(told.endswith(text) for _, told in checked.problems):
            checked.problems.append((path, f"{label}: {text}" if label else text))


def _path_of(key: str, spec: "SweepSpec") -> tuple[str, ...]:
    if key == "load_from" and spec.train.load_from is not None:
        return "train", "load_from"
    for override in spec.train.overrides:
        if key == override or key.startswith(f"{override}.") or override.startswith(f"{key}."):
            return "train", "overrides", override
    for name in spec.space:
        if any(key == each or each.startswith(f"{key}.") for each in _keys_of(name)):
            return "space", name
    return "train", "config"


def _warn(found: "Findings", spec: "SweepSpec", checked: Checked) -> None:
    """Keep what the spec's own keys do not say otherwise."""
    searched = {key for name in spec.space for key in _keys_of(name)}
    for warning in (*found.warnings, *found.notes):
        is_own = any(key.startswith(f"{warning.key}.") for key in searched)
        if warning.key not in _OWN and not is_own:
            checked.warnings.append(warning)


def _failing(
    spec: "SweepSpec", training: "CmtTraining", space: "Space", config: Path
) -> "Iterator[Found]":
    """Values of a parameter with which a training could not start; those of knobs are known."""
    from aqr_model.preflight.checks import preflight
    from launch.training import resolve

    for name in space.axes:
        if name.split(".")[0] in load_knobs():
            continue
        for value, params in _variants(space, name):
            try:
                cfg = resolve(training.base, training.trial_overrides(params))
                errors = [str(e) for e in preflight(cfg, source=config, files=False).errors]
            except (KeyError, TypeError, AssertionError) as error:
                errors = [_brief(error)]
            if errors:
                text = f"must be a value to train with, but with {value!r}: {errors[0]}"
                yield ("space", name), text
                break


def _idle(spec: "SweepSpec", training: "CmtTraining", space: "Space") -> "Iterator[Found]":
    """Parameters and overrides of which nothing depends: to search them is to chase noise."""
    from aqr_model.preflight.acting import says_no_effect, trains_alike
    from launch.training import resolve

    for name in space.axes:
        variants = [params for _, params in _variants(space, name)]
        configs = [resolve(training.base, training.trial_overrides(each)) for each in variants]
        if len(configs) < 2:
            continue
        head, *_ = name.split(".") if name.split(".")[0] in load_knobs() else [name]
        keys = _keys_of(head)
        if all(trains_alike(configs[0], each) for each in configs[1:]):
            yield ("space", head), f"must change something, but {_why(head, keys, configs[0])}"
        elif told := next((t for key in keys if (t := says_no_effect(configs[-1], key))), None):
            yield ("space", head), f"must change something, but {told}"
    whole = resolve(training.base, training.overrides)
    for key in spec.train.overrides:
        others = {k: value for k, value in training.overrides.items() if k != key}
        without = resolve(training.base, others)
        if dict(whole.items()) != dict(without.items()) and trains_alike(whole, without):
            yield (
                ("train", "overrides", key),
                f"must change something, but {_why(key, (key,), whole)}",
            )


def _why(name: str, keys: Sequence[str], config: Any) -> str:
    """Why nothing depends on a parameter."""
    from aqr_model.preflight.acting import idle_here

    if not keys:
        return (
            f"{name} sets no key of the config: derive a parameter from it, as in"
            " {derive: (amplification - residual_weight) / (1 - residual_weight)}"
        )
    entries = [text for key in keys if (text := idle_here(config, key)) is not None]
    if entries:
        return "; ".join(text.removeprefix("changes nothing: ") for text in entries)
    off = not config.model.get("pts_bbox_head", {}).get("enable_aqr")
    hint = ", for AQR is off (`model.pts_bbox_head.enable_aqr`)" if off else ""
    return f"nothing of a training depends on {', '.join(keys)} here{hint}"


def _variants(space: "Space", name: str) -> Iterator[tuple[Any, Params]]:
    """A point of the space with the values of one axis that say most: the ends, or all choices."""
    from sweeps.space import Choices

    axis = space.axes[name]
    values = axis.choices if isinstance(axis, Choices) else (axis.at(0.0), axis.at(1.0))
    for sampled in itertools.islice(_draws(space), _MOST_DRAWS):
        try:
            points = [space.resolve({**sampled, name: value}) for value in dict.fromkeys(values)]
        except ValueError:
            continue  # something derived has no value there
        if all(name in point for point in points):
            yield from zip(dict.fromkeys(values), points, strict=True)
            return


def _draws(space: "Space") -> Iterator[dict[str, Any]]:
    """Points that meet the constraints, with values of inactive axes, too."""
    import numpy as np

    rng = np.random.default_rng(0)
    while True:
        sampled = {name: axis.at(rng.random()) for name, axis in space.axes.items()}
        if space.is_feasible(sampled):
            yield sampled


def _keys_of(name: str) -> tuple[str, ...]:
    """The config keys that a parameter sets."""
    knob = load_knobs().get(name)
    return (name,) if knob is None else knob.keys


def _leaves(key: str, value: Any) -> Iterator[str]:
    """The keys that a value sets; a dict is merged into the one that is there."""
    if isinstance(value, Mapping) and value and "_delete_" not in value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key


def _brief(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
