"""Keys of a config that a spec names: which there are, and which may be new."""

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.section import Found

# What the trainer reads and a config may leave out: at the top, and in each of its sections.
_SCHEDULE = (
    *("policy", "min_lr_ratio", "warmup", "warmup_iters", "warmup_ratio"),
    *("target_ratio", "cyclic_times", "step_ratio_up"),
)
READ_BY_TRAINER: Mapping[str, tuple[str, ...]] = {
    "": (
        *("load_from", "work_dir", "seed", "num_threads", "total_epochs", "find_unused_parameters"),
        *("optimizer", "optimizer_config", "lr_config", "momentum_config", "fp16", "bf16"),
        *("evaluation", "checkpoint_config", "log_config", "runner", "train_cfg", "test_cfg"),
        *("freeze", "norm_eval", "picture_interval", "picture_sample", "custom_hooks"),
        *("load_parts", "load_averaged", "load_types", "deterministic", "denoising_slots"),
        *("object_sampling_until_epoch", "workflow", "resume_from", "auto_resume"),
    ),
    "optimizer_config": ("grad_clip", "cumulative_iters", "loss_scale"),
    "optimizer": ("paramwise_cfg",),
    "optimizer.paramwise_cfg": ("custom_keys",),
    "lr_config": _SCHEDULE,
    "momentum_config": _SCHEDULE,
    "fp16": ("loss_scale",),
    "evaluation": ("interval", "by_epoch"),
    "checkpoint_config": ("interval", "by_epoch"),
    "log_config": ("interval",),
    "runner": ("max_epochs",),
}
# Names of parts of the detector, of which a config lists those that it changes.
_OPEN = "custom_keys"
# From here on a new argument of a class looks like one that is misspelt.
_ALIKE = 0.8


def keys_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """All dotted keys of a config; a number steps into a list of dicts."""
    return tuple(_keys(config, ""))


def _keys(node: Any, place: str) -> Iterator[str]:
    inside = node.items() if isinstance(node, Mapping) else ()
    if isinstance(node, list | tuple):
        inside = ((str(i), each) for i, each in enumerate(node) if isinstance(each, Mapping))
    for name, value in inside:
        key = f"{place}.{name}" if place else str(name)
        yield key
        yield from _keys(value, key)


def given_overrides(text: str, source: str) -> Mapping[str, Any]:
    """`train.overrides` of a spec's text, whatever else is wrong with it; empty if it is no dict.

    Raises:
        SpecError: If the text is not YAML.
    """
    from sweeps.section import Document

    train = Document(text, source).data.get("train")
    overrides = train.get("overrides") if isinstance(train, Mapping) else None
    return overrides if isinstance(overrides, Mapping) else {}


def unknown_overrides(overrides: Mapping[str, Any], base: Mapping[str, Any]) -> "Iterator[Found]":
    """Overrides that set what nobody reads, most likely a misspelling.

    A key must be in the config, or be new in one of four ways: a knob sets it, the trainer reads
    it, it stands below `custom_keys`, or it is another argument of a class that the config names by
    `type`, unlike those that are there.

    Args:
        overrides: Dotted keys with values.
        base: The config that they change.
    """
    from aqr_model.knobs import KNOBS

    set_by_knobs = {key for knob in KNOBS.values() for key in knob.keys}
    for key, value in overrides.items():
        for leaf in _leaves(key, value, base):
            if leaf not in set_by_knobs and (message := _refusal(leaf, base)):
                yield ("train", "overrides", key), message


def _leaves(key: str, value: Any, base: Mapping[str, Any]) -> Iterator[str]:
    """The keys that a value sets; a dict is merged into the one that is there."""
    if isinstance(value, Mapping) and value and "_delete_" not in value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner, base)
    else:
        yield key


def _refusal(key: str, base: Mapping[str, Any]) -> str | None:
    """Why a key may not be set; what cannot be set at all is found where it is applied."""
    node: Any = base
    place: list[str] = []
    for part in key.split("."):
        if isinstance(node, list | tuple) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif not isinstance(node, Mapping):
            return None
        elif part in node:
            node = node[part]
        elif part in READ_BY_TRAINER.get(".".join(place), ()):
            node = {}
        elif place[-1:] == [_OPEN] or _is_argument(part, node):
            return None  # and what lies below is its value
        elif not place or ".".join(place) in READ_BY_TRAINER or node:
            return _message(key, part, node, place, base)
        else:
            return None  # an empty dict says nothing of its keys
        place.append(part)
    return None


def _is_argument(name: str, node: Mapping[str, Any]) -> bool:
    """Whether a name may be another argument of the class that a dict describes."""
    alike = difflib.get_close_matches(name, map(str, node), n=1, cutoff=_ALIKE)
    return "type" in node and not alike


def _message(
    key: str, part: str, node: Mapping[str, Any], place: list[str], base: Mapping[str, Any]
) -> str:
    from sweeps.section import got

    where = ".".join(place)
    siblings = [*map(str, node), *READ_BY_TRAINER.get(where, ())]
    near = difflib.get_close_matches(part, siblings, n=1, cutoff=0.6)
    found = [".".join([*place, *near])] if near else []
    found = found or difflib.get_close_matches(key, keys_of(base), n=1, cutoff=0.6)
    hint = f"; did you mean {found[0]!r}?" if found else ""
    known = f", which has {where!r} alone of it" if where else ""
    return (
        f"must exist in the config{known}, {got(key)}{hint} A key that is new on purpose goes into"
        " a config file"
    )
