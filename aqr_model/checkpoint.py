"""Checkpoints: pretrained weights that must fit, and training states that continue exactly."""

import logging
import os
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

AQR_PARTS = ("aqr_weight_generator.", "weight_renderer.", "feature_modulator.")
AQR_LEFTOVERS = (
    "aqr_weight_generator.bev_type_embed",
    "aqr_weight_generator.rv_type_embed",
    "weight_renderer.gaussian_kernel",
)
"""Entries of the users' files: embeddings that nothing reads, a kernel that follows from sigma."""

logger = logging.getLogger(__name__)

_FORMAT = 2


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
        scaler: State dict of the loss scaler; empty without fp16.
        samples_per_step: Over all processes; None if it was not recorded. Steps count samples only
            together with it.
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    rungs_reported: int
    scaler: dict[str, Any] = field(default_factory=dict)
    samples_per_step: int | None = None


def load_pretrained(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Load weights into a model; only a freshly added AQR part may be missing, as a whole.

    Two things in older files are understood, and logged: entries of the users' AQR that nothing
    reads any more are dropped, and sparse convolutions in spconv 1's layout are turned into
    spconv 2's.

    Args:
        model: The detector.
        path: Checkpoint; its weights under ``state_dict``, or the file is a state dict itself.

    Returns:
        Names of the AQR entries that keep their initial values.

    Raises:
        CheckpointError: If the file is missing or unreadable, or an entry is missing, left over or
            of another shape.
    """
    own = model.state_dict()
    weights = _without_leftovers(_weights_of(_read(path), path), path)
    weights = _in_spconv2_layout(weights, own, _sparse_weights(model), path)
    fresh = tuple(name for name in own if _is_fresh(name, weights))
    problems = [f"missing: {name}" for name in own if name not in weights and name not in fresh]
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
    # Modules ask for the version of what they load; layouts are those of this model by now.
    ready = OrderedDict(weights)
    vars(ready)["_metadata"] = vars(own)["_metadata"]
    model.load_state_dict(ready, strict=False)
    return fresh


def _weights_of(content: Any, path: Path) -> Mapping[str, Tensor]:
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if isinstance(weights, Mapping) and all(isinstance(v, Tensor) for v in weights.values()):
        return weights
    held = sorted(map(str, weights))[:8] if isinstance(weights, Mapping) else type(weights).__name__
    raise CheckpointError(
        f"{path} must hold weights by name, under `state_dict` or at the top, but holds {held}"
    )


def _is_fresh(name: str, weights: Mapping[str, Any]) -> bool:
    """Whether an entry belongs to a part of AQR of which the file has nothing at all."""
    part = next((part for part in AQR_PARTS if part in name), None)
    return part is not None and not any(part in other for other in weights)


def _without_leftovers(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    known = [name for name in weights if name.endswith(AQR_LEFTOVERS)]
    if known:
        logger.info("%s: dropped, because nothing reads it any more: %s", path, ", ".join(known))
    return {name: value for name, value in weights.items() if name not in known}


def _sparse_weights(model: nn.Module) -> set[str]:
    """Names of the weights of all sparse convolutions."""
    from spconv.pytorch.conv import SparseConvolution

    modules = model.named_modules()
    return {f"{name}.weight" for name, part in modules if isinstance(part, SparseConvolution)}


def _in_spconv2_layout(
    weights: dict[str, Tensor], own: Mapping[str, Tensor], sparse: set[str], path: Path
) -> dict[str, Tensor]:
    """Turn spconv 1's (D, H, W, in, out) into spconv 2's (out, D, H, W, in).

    Shapes tell the layouts apart: kernels are 1 or 3 wide, and no layer has so few channels.
    """
    old = {
        name
        for name in sparse & weights.keys()
        if weights[name].shape != own[name].shape
        and _last_first(weights[name]).shape == own[name].shape
    }
    if old:
        logger.info("%s: %d sparse convolutions turned from spconv 1's layout", path, len(old))
    return {
        name: _last_first(value).contiguous() if name in old else value
        for name, value in weights.items()
    }


def _last_first(value: Tensor) -> Tensor:
    return value.movedim(-1, 0) if value.dim() else value


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
    content = _read(path)
    names = TrainState.__dataclass_fields__
    if content.get("format") == 1:
        raise CheckpointError(
            f"{path} is a training state of an older version, whose optimizer had other groups; "
            "start the training anew"
        )
    if content.get("format") != _FORMAT or not all(name in content for name in names):
        raise CheckpointError(f"{path} must be a training state, but holds {sorted(content)[:8]}")
    return TrainState(**{name: content[name] for name in names})


def save_weights(model: nn.Module, path: Path, **meta: Any) -> None:
    """Write weights alone, in the layout of mmcv's checkpoints."""
    _write({"meta": meta, "state_dict": model.state_dict()}, path)


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


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"a checkpoint must stand at {path}, but there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
