"""Checkpoints: pretrained weights that must fit, and training states that continue exactly."""

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

AQR_PARTS = ("aqr_weight_generator.", "weight_renderer.", "feature_modulator.")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used, with the reason."""


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a training needs to go on where it stood.

    Random states are no part of it: every draw depends on the seed and the step alone.

    Attributes:
        step: Optimizer steps done.
        model: State dict.
        optimizer: State dict.
        rungs_reported: Rungs, by index, whose score is already with the sweep.
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    rungs_reported: int


def load_pretrained(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Load weights into a model; only a freshly added AQR may be missing.

    Args:
        model: The detector.
        path: Checkpoint; its weights under ``state_dict``, or the file is a state dict itself.

    Returns:
        Names of the AQR entries that keep their initial values.

    Raises:
        CheckpointError: If the file is missing or unreadable, or an entry is missing, left over or
            of another shape.
    """
    weights = _read(path)
    weights = weights.get("state_dict", weights)
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    fresh = tuple(name for name in missing if any(part in name for part in AQR_PARTS))
    problems = [f"missing: {name}" for name in missing if name not in fresh]
    problems += [f"left over: {name}" for name in weights if name not in own]
    problems += [
        f"shape of {name}: the model has {list(own[name].shape)}, the file {list(value.shape)}"
        for name, value in weights.items()
        if name in own and own[name].shape != value.shape
    ]
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(
            f"every entry of {path} must fit the model, AQR's own apart, but:\n  {shown}{more}\n"
            "Use the config that this checkpoint was trained with."
        )
    model.load_state_dict(weights, strict=False)
    return fresh


def save_state(state: TrainState, path: Path) -> None:
    """Write a training state so that the file is either whole or not there."""
    _write({"format": 1, **vars(state)}, path)


def read_state(path: Path) -> TrainState:
    """Read a training state.

    Raises:
        CheckpointError: If the file is missing, unreadable or no training state.
    """
    content = _read(path)
    names = TrainState.__dataclass_fields__
    if content.get("format") != 1 or not all(name in content for name in names):
        raise CheckpointError(f"{path} must be a training state, but holds {sorted(content)[:8]}")
    return TrainState(**{name: content[name] for name in names})


def save_weights(model: nn.Module, path: Path, **meta: Any) -> None:
    """Write weights alone, in the layout of mmcv's checkpoints."""
    _write({"meta": meta, "state_dict": model.state_dict()}, path)


def _write(content: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"a checkpoint must stand at {path}, but there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
