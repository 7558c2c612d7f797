"""A trial as a training config: `_base_` plus overrides, with the proof of where it came from.

The file is plain mmcv: whoever has the base config can train from it without this package. It says
the same as applying the trial's overrides to the base config at run time, also where the two ways
of mmcv differ (`Config.merge_from_dict` may enter lists, inheritance through `_base_` may not).
"""

import keyword
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sweeps.analysis import metric_name
from sweeps.finalists import control_scores, standings
from sweeps.objectives import values_of
from sweeps.pareto import front_of
from sweeps.trials import SweepRecord, TrialRecord

LINE_LENGTH = 100
PROVENANCE_KEY = "provenance"
_DELETE = "_delete_"
_HEADER = """\
# Trial {label} of the sweep {sweep!r}, {metric} {score}.
# What its base config does not say follows; the last entry says where the values come from.
"""


class ExportError(ValueError):
    """A trial that cannot be written as a config."""


def export_config(
    record: SweepRecord,
    trial: TrialRecord,
    *,
    base_config: Path,
    base: Mapping[str, object],
    overrides: Mapping[str, object],
    out: Path,
    provenance: Mapping[str, object] | None = None,
) -> Path:
    """Write the config that trains this trial again.

    Args:
        record: The sweep.
        trial: A finished trial of it.
        base_config: The config file that the trial trained from.
        base: That config, loaded, as plain dicts and lists.
        overrides: Everything the trial trained with that the base does not say, as dotted keys, in
            the order in which training applied them: parameters, epochs, seed, `load_from`, rungs.
        out: The file to write.
        provenance: More that the file shall say of its origin: commit, command.

    Returns:
        `out`.

    Raises:
        ExportError: If the trial has no score, or an override cannot be expressed by inheritance.
    """
    if trial.role == "known":
        raise ExportError(
            f"Only a trial that was trained here can be exported, but {trial.label} is a known"
            " point. Export another one."
        )
    if trial.value is None:
        raise ExportError(
            f"Only a trial that finished on its full budget can be exported, but {trial.label} is"
            f" {trial.outcome or 'still running'}. Export another one, or resume the sweep first."
        )
    metric = metric_name(record.attrs["metric"])
    settings = inherited_overrides(overrides, base)
    origin = {**_origin(record, trial, metric), **(provenance or {})}
    if PROVENANCE_KEY in base:
        origin = {_DELETE: True, **origin}
    out.parent.mkdir(parents=True, exist_ok=True)
    header = _HEADER.format(
        label=trial.label, sweep=record.name, metric=metric, score=f"{trial.value:.4f}"
    )
    parent = Path(os.path.relpath(base_config.resolve(), out.parent.resolve())).as_posix()
    text = header + config_source({"_base_": [parent], **settings, PROVENANCE_KEY: origin})
    out.write_text(text, encoding="utf-8")
    return out


def inherited_overrides(
    overrides: Mapping[str, object], base: Mapping[str, object]
) -> dict[str, object]:
    """Nested settings that inherit from `base` to what `Config.merge_from_dict(overrides)` gives.

    A key that leads into a list becomes the whole list, since a config file replaces lists.

    Raises:
        ExportError: If mmcv could not apply an override, or a file could not hold it.
    """
    settings = _nested(overrides)
    for key in settings:
        if not _is_name(key) or key.startswith("__") or key in ("_base_", PROVENANCE_KEY):
            raise ExportError(
                f"The first part of a config key must be a free variable name, but got {key!r}."
                " Rename the override."
            )
    resolved = {}
    for key in sorted(settings):
        resolved[key] = _inherit(settings[key], base.get(key, _ABSENT), key)
    return resolved


def config_source(variables: Mapping[str, object]) -> str:
    """Python source of module variables, in the order given, laid out as `ruff format` does."""
    return "".join(
        f"{name} = {_source(value, indent=0, used=len(name) + 3, where=name)}\n"
        for name, value in variables.items()
    )


_ABSENT = object()


def _origin(record: SweepRecord, trial: TrialRecord, metric: str) -> dict[str, object]:
    control = record.control.value if record.control is not None else None
    final = standings(record).get(trial.number) if trial.role == "search" else None
    repeats = {}
    if final is not None:
        repeats = {
            "scores_with_new_seeds": list(final.values),
            "mean_with_new_seeds": final.mean,
            "control_scores": list(control_scores(record).values()),
        }
    return {
        "sweep": record.name,
        "trial": trial.number,
        "label": trial.label,
        "role": trial.role,
        "seed": trial.seed,
        "metric": metric,
        "score": trial.value,
        "control_score": control,
        **repeats,
        **_objectives(record, trial),
        "metrics": dict(sorted(trial.rungs[-1].metrics.items())) if trial.rungs else {},
        "params": dict(sorted(trial.params.items())),
    }


def _objectives(record: SweepRecord, trial: TrialRecord) -> dict[str, object]:
    """What several objectives say of the trial; nothing where there is one."""
    front = front_of(record)
    values = None if front is None else values_of(trial, front.objectives)
    if front is None or values is None:
        return {}
    place = front.place(trial)
    names = [objective.name for objective in front.objectives]
    return {
        "objectives": dict(zip(names, values, strict=True)),
        "front": [each.trial.label for each in front.members],
        "on_front": place is not None and place.on_front,
    }


def _nested(overrides: Mapping[str, object]) -> dict[str, object]:
    """Dotted keys as nested dicts, in mmcv's manner: later ones enter what earlier ones set."""
    nested: dict[str, object] = {}
    for full_key, value in overrides.items():
        *path, last = full_key.split(".")
        node = nested
        for depth, key in enumerate(path):
            child = node.setdefault(key, {})
            if not isinstance(child, dict):
                raise ExportError(
                    f"{full_key!r} leads into {'.'.join(path[: depth + 1])!r}, which another"
                    f" override sets to {child!r}. Keep one of them."
                )
            node = child
        node[last] = _copied(value)
    return nested


def _copied(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return value


def _inherit(value: object, base: object, where: str) -> object:
    """What to write so that inheriting from `base` gives `merged(value, base)`."""
    if not isinstance(value, dict) or base is _ABSENT or value.get(_DELETE, False):
        return value
    if isinstance(base, list):
        return _merged(value, base, where)
    if not isinstance(base, Mapping):
        raise _not_a_container(where, base)
    return {
        key: _inherit(item, base.get(key, _ABSENT), f"{where}.{key}") for key, item in value.items()
    }


def _merged(value: dict, base: object, where: str) -> object:
    """The value after mmcv's run-time merge, which may enter lists."""
    if isinstance(base, list):
        merged = list(base)
        for key, item in value.items():
            position = f"{where}.{key}"
            if not str(key).isdigit() or int(key) >= len(base):
                raise ExportError(
                    f"{position!r} must name one of the {len(base)} elements of the list {where!r}"
                    f" by its position from 0, but got {key!r}."
                )
            if not isinstance(item, dict):
                raise ExportError(
                    f"{position!r} replaces an element of a list, which mmcv cannot do."
                    f" Override the whole list {where!r} instead."
                )
            merged[int(key)] = _merged(item, base[int(key)], position)
        return merged
    if not isinstance(base, Mapping):
        raise _not_a_container(where, base)
    result = dict(base)
    for key, item in value.items():
        if not isinstance(item, dict) or key not in result:
            result[key] = item
        elif item.get(_DELETE, False):
            result[key] = {name: entry for name, entry in item.items() if name != _DELETE}
        else:
            result[key] = _merged(
                {name: entry for name, entry in item.items() if name != _DELETE},
                result[key],
                f"{where}.{key}",
            )
    return result


def _not_a_container(where: str, base: object) -> ExportError:
    return ExportError(
        f"An override enters {where!r}, but the base config has {base!r} there, which is neither a"
        f" dict nor a list. Override {where!r} itself."
    )


def _source(value: object, *, indent: int, used: int, where: str) -> str:
    """Source of one value, on one line if `used` columns and the value fit, else exploded."""
    flat = _flat(value, where)
    if indent + used + len(flat) <= LINE_LENGTH or not _has_items(value):
        return flat
    inner = indent + 4
    lines = []
    for prefix, item, place in _entries(value, where):
        body = _source(item, indent=inner, used=len(prefix) + 1, where=place)
        lines.append(f"{' ' * inner}{prefix}{body},\n")
    opening, closing = _brackets(value)
    return f"{opening}\n{''.join(lines)}{' ' * indent}{closing}"


def _flat(value: object, where: str) -> str:
    if isinstance(value, Mapping | list | tuple):
        opening, closing = _brackets(value)
        items = [prefix + _flat(item, place) for prefix, item, place in _entries(value, where)]
        comma = "," if isinstance(value, tuple) and len(items) == 1 else ""
        return f"{opening}{', '.join(items)}{comma}{closing}"
    return _scalar(value, where)


def _entries(value: object, where: str) -> Iterator[tuple[str, object, str]]:
    """(what stands before the item, the item, its dotted key) for each item of a container."""
    if isinstance(value, Mapping):
        keyword_call = _is_call(value)
        for key in sorted(value, key=str):
            prefix = f"{key}=" if keyword_call else f"{_scalar(key, where)}: "
            yield prefix, value[key], f"{where}.{key}"
    elif isinstance(value, Sequence):
        for index, item in enumerate(value):
            yield "", item, f"{where}.{index}"


def _brackets(value: object) -> tuple[str, str]:
    if isinstance(value, Mapping):
        return ("dict(", ")") if _is_call(value) else ("{", "}")
    return ("[", "]") if isinstance(value, list) else ("(", ")")


def _has_items(value: object) -> bool:
    return isinstance(value, Mapping | list | tuple) and len(value) > 0


def _is_call(value: Mapping) -> bool:
    return len(value) > 0 and all(isinstance(key, str) and _is_name(key) for key in value)


def _is_name(key: str) -> bool:
    return key.isidentifier() and key.isascii() and not keyword.iskeyword(key)


def _scalar(value: object, where: str) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    raise ExportError(
        f"A config file can hold numbers, text, None, lists, tuples and dicts, but {where!r} is of"
        f" type {type(value).__name__}. Override it by a plain value."
    )


def _string(text: str) -> str:
    """A literal in double quotes where that needs no more escapes than single ones."""
    body = repr(text)[1:-1]
    if repr(text)[0] == "'":
        body = body.replace("\\'", "'")
        if body.count('"') > body.count("'"):
            return _unsubstituted("'" + body.replace("'", "\\'") + "'")
        body = body.replace('"', '\\"')
    return _unsubstituted(f'"{body}"')


def _unsubstituted(literal: str) -> str:
    """Keep mmcv from reading `{{ name }}` inside text as one of its variables."""
    return literal.replace("{{", "{\\x7b")
