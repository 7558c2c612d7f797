"""Training states that continue exactly, and weights alone, written whole or not at all."""

import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aqr_model.engine.weights.content import averaged_names
from aqr_model.engine.weights.files import CheckpointError, read_file

logger = logging.getLogger(__name__)

_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a training needs to go on where it stood.

    Random states are no part of it: every draw depends on the seed and the step alone.

    Attributes:
        step: Optimizer steps done.
        model: State dict.
        optimizer: State dict.
        rungs_reported: Rungs, by index, whose score is already with the sweep.
        scaler: State dict of the loss scaler; may be empty where its scale is 1.
        samples_per_step: Over all processes; None if it was not recorded. Steps count samples only
            together with it.
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    rungs_reported: int
    scaler: dict[str, Any] = field(default_factory=dict)
    samples_per_step: int | None = None


def save_state(state: TrainState, path: Path) -> None:
    """Write a training state so that the file is either whole or not there.

    The state that stood there before is kept beside it, under the name of :func:`previous_of`.
    """
    _write({"format": _FORMAT, **vars(state)}, path, keeps_previous=True)


def previous_of(path: Path) -> Path:
    """Where the state before the one at ``path`` is kept."""
    return path.with_name("previous.pth")


def read_newest(path: Path) -> TrainState:
    """Read a training state; if it cannot be read, the one before it, with a warning.

    Raises:
        CheckpointError: If neither can be read.
    """
    try:
        return read_state(path)
    except CheckpointError as error:
        before = previous_of(path)
        if not before.is_file():
            raise
        state = read_state(before)
        logger.warning(
            "%s; the training goes on from the checkpoint before it, %s, at step %d: what was "
            "trained since is repeated",
            error,
            before,
            state.step,
        )
        return state


def read_state(path: Path) -> TrainState:
    """Read a training state.

    Raises:
        CheckpointError: If the file is missing, unreadable or no training state.
    """
    content = read_file(path)
    names = TrainState.__dataclass_fields__
    if content.get("format") == 1:
        raise CheckpointError(
            f"{path} is a training state of an older version, whose optimizer had other groups; "
            "start the training anew"
        )
    if content.get("format") != _FORMAT or not all(name in content for name in names):
        raise CheckpointError(
            f"{path} must be a training state that a training here has saved (latest.pth), but "
            f"holds {sorted(content)[:8]}. If it holds weights, a training can start from them by "
            "`load_from`"
        )
    return TrainState(**{name: content[name] for name in names})


def save_weights(model: nn.Module, path: Path, **meta: Any) -> None:
    """Write weights alone, in the layout of mmcv's checkpoints, without buffers of an EMA hook.

    Args:
        model: What stands under its own names is written.
        path: The file.
        meta: What is told about them.
    """
    weights = model.state_dict()
    for copy in averaged_names(weights):
        weights.pop(copy, None)
    _write({"meta": meta, "state_dict": weights}, path)


def _write(content: dict[str, Any], path: Path, *, keeps_previous: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    if keeps_previous and path.is_file():
        _keep(path, previous_of(path))
    partial.replace(path)


def _keep(path: Path, before: Path) -> None:
    """Give a file a second name, so that there is a whole file under the first at any moment."""
    second = before.with_name(before.name + ".partial")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, second)
    second.replace(before)
