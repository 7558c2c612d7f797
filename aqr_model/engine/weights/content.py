"""What a checkpoint file holds: one set of weights, or two where a hook averaged them."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcv.runner import get_priority
from torch import Tensor

from aqr_model.engine.weights.files import CheckpointError

WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel, torch's AveragedModel and torch.compile put before each name."""

COUNTERS = ("n_averaged",)
"""Entries of such wrappers that are no weights."""

EMA = "ema_"
"""What mmcv's EMAHook puts before a name, whose points it turns into underscores."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class Content:
    """The weights of a file.

    Attributes:
        path: The file.
        weights: By name, without the prefixes of wrappers. Shapes are the file's.
        notes: What one should know of the choice, a sentence each.
    """

    path: Path
    weights: Mapping[str, Tensor]
    notes: tuple[str, ...]


def averaged_names(names: Iterable[str]) -> dict[str, str]:
    """How an EMA hook calls the copies of entries, each with the entry's own name."""
    return {EMA + name.replace(".", "_"): name for name in names}


def weights_of(content: Any, path: Path, *, averaged: bool = False) -> Content:
    """Find the weights in what a file holds.

    They stand under ``state_dict``, under ``model``, or at the top. Optimizer states and all else
    are left alone.

    A training with mmcv's EMAHook saves two sets: under the names of the model, and under
    ``ema_...``. Which of them is averaged depends on when the file was saved: at the end of an
    epoch the hook swaps them, and the checkpoint hook runs before or after it. The config in the
    file's ``meta`` tells; without it, the ``ema_`` entries are taken to be the averaged ones, as
    they are within an epoch.

    Args:
        content: Of the file.
        path: The file, for messages.
        averaged: Take the averaged weights. Else those under the names of the model, as mmcv does.

    Raises:
        CheckpointError: If there are no weights, or ``averaged`` finds no averaged ones.
    """
    weights = _unwrapped(_located(content, path))
    twins = averaged_names(weights)
    copies = {twins[name]: value for name, value in weights.items() if name in twins}
    plain = {name: value for name, value in weights.items() if name not in twins}
    if not copies:
        if averaged:
            raise CheckpointError(
                f"{path} must hold averaged weights (`ema_...` of an EMA hook), but holds one set "
                "of weights alone; do without `load_averaged`"
            )
        return Content(path=path, weights=plain, notes=())
    swapped = _swapped(content, path)
    if not averaged or swapped:
        return Content(path=path, weights=plain, notes=(_told(len(copies), swapped, averaged),))
    single = [name for name in plain if name not in copies and not name.endswith(_STATISTICS)]
    if single:
        raise CheckpointError(
            f"{path} must hold an averaged twin of every weight, but {len(single)} have none "
            f"(first: {single[0]}); do without `load_averaged`"
        )
    return Content(
        path=path, weights=plain | copies, notes=(_told(len(copies), swapped, averaged),)
    )


def _told(count: int, swapped: bool | None, averaged: bool) -> str:
    """Which of the two sets is taken, and how that is known."""
    held = {
        True: "by the config in it, the averaged weights stand under the names of the model",
        False: "the averaged weights stand there",
        None: "it does not say which of the two are averaged, so those are assumed to be",
    }[swapped]
    loaded = "the averaged weights" if averaged else "the weights under the names of the model"
    return f"an EMA hook left {count} further entries, `ema_...`; {held}; loaded are {loaded}"


def _located(content: Any, path: Path) -> Mapping[str, Tensor]:
    weights = content
    for place in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(place), Mapping):
            weights = content[place]
            break
    if isinstance(weights, Mapping) and weights and all(map(_is_weight, weights.items())):
        return weights
    held = sorted(map(str, weights))[:8] if isinstance(weights, Mapping) else type(weights).__name__
    raise CheckpointError(
        f"{path} must hold weights by name, under `state_dict`, under `model` or at the top, but "
        f"holds {held}"
    )


def _is_weight(entry: tuple[Any, Any]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the wrappers' prefixes away where all names carry them."""
    kept = {name: value for name, value in weights.items() if name not in COUNTERS}
    for wrapper in WRAPPERS:
        if kept and all(name.startswith(wrapper) for name in kept):
            return _unwrapped({name.removeprefix(wrapper): kept[name] for name in kept})
    return kept


def _swapped(content: Any, path: Path) -> bool | None:
    """Whether the names of the model hold the averaged weights; None if the file does not tell."""
    if "format" in content:  # a training state of ours, saved within an epoch
        return False
    meta = content.get("meta")
    text = meta.get("config") if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        return None
    try:
        settings: dict[str, dict[str, Any]] = {}
        for name, values in _calls(ast.parse(text)):
            settings.setdefault(name, values)
        hook = settings["EMAHook"]
        saves = settings.get("checkpoint_config", {})
        # The best checkpoint is saved by the evaluation, after all usual hooks.
        saver = get_priority("LOW" if path.name.startswith("best_") else "NORMAL")
        swaps_first = get_priority(hook.get("priority", "NORMAL")) < saver
    except (SyntaxError, ValueError, KeyError, TypeError):
        return None
    by_epoch = saves.get("by_epoch", "IterBasedRunner" not in text)
    return bool(by_epoch) and swaps_first


def _calls(tree: ast.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """The plain values of an EMA hook and of `checkpoint_config` in a config's text.

    Read as text: a config is a program, and a file's program must not run.
    """
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
            for call in _dicts(ast.walk(statement.value)):
                if name == "checkpoint_config":
                    yield name, call
                elif name == "custom_hooks" and str(call.get("type")).endswith("EMAHook"):
                    yield "EMAHook", call


def _dicts(nodes: Iterable[ast.AST]) -> Iterator[dict[str, Any]]:
    for node in nodes:
        if isinstance(node, ast.Call):
            values = {word.arg: word.value for word in node.keywords if word.arg}
            yield {k: v.value for k, v in values.items() if isinstance(v, ast.Constant)}
