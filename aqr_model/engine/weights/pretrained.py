"""Pretrained weights that must fit."""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aqr_model.engine.weights.files import CheckpointError, read_file

AQR_PARTS = ("aqr_weight_generator.", "weight_renderer.", "feature_modulator.")
AQR_LEFTOVERS = (
    "aqr_weight_generator.bev_type_embed",
    "aqr_weight_generator.rv_type_embed",
    "weight_renderer.gaussian_kernel",
)
"""Entries of the users' files: embeddings that nothing reads, a kernel that follows from sigma."""

logger = logging.getLogger(__name__)


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
    weights = _without_leftovers(_weights_of(read_file(path), path), path)
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
