"""Pretrained weights: what a config says of them, and their way into a model."""

import logging
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcv import Config
from torch import nn

from aqr_model.engine.weights.content import weights_of
from aqr_model.engine.weights.files import read_file
from aqr_model.engine.weights.fitting import Loading, fit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is wanted of a file.

    Attributes:
        parts: Modules of the model to load, each as a whole; empty for all.
        averaged: The averaged weights of an EMA hook, not those under the model's names.
        types: Types beside tensors and plain values that the file may hold; see `read_file`.
        partial: Whether a file of one part, such as an image backbone, will do.
    """

    parts: tuple[str, ...] = ()
    averaged: bool = False
    types: tuple[str, ...] = ()
    partial: bool = False

    @classmethod
    def of_config(cls, cfg: Config) -> "Wanted":
        """What a training wants: ``load_parts``, ``load_averaged`` and ``load_types``."""
        return cls(
            parts=_names(cfg.get("load_parts")),
            averaged=bool(cfg.get("load_averaged")),
            types=_names(cfg.get("load_types")),
            partial=True,
        )

    @classmethod
    def to_score(cls, cfg: Config, *, averaged: bool = False) -> "Wanted":
        """What a score wants: all weights. The other keys speak of ``load_from``."""
        return cls(averaged=averaged, types=_names(cfg.get("load_types")))


def _names(value: Any) -> tuple[str, ...]:
    """Several names, or one."""
    return (value,) if isinstance(value, str) else tuple(value or ())


_WHOLE = Wanted()


def examine(model: nn.Module, path: Path, wanted: Wanted = _WHOLE) -> Loading:
    """Say what a file would give to a model, without touching it.

    Args:
        model: The detector; one on torch's meta device will do.
        path: The file; of its tensors only the shapes are read.
        wanted: Of the file.

    Raises:
        CheckpointError: If the file is missing or unreadable or does not fit.
    """
    return _loading(model, path, wanted, device="meta")


def load_pretrained(model: nn.Module, path: Path, wanted: Wanted = _WHOLE) -> tuple[str, ...]:
    """Load weights into a model, and log what is loaded, skipped and left at its start.

    Args:
        model: The detector.
        path: The file.
        wanted: Of the file.

    Returns:
        Names of the AQR entries that keep their initial values.

    Raises:
        CheckpointError: If the file is missing or unreadable or does not fit; the model is as it
            was then.
    """
    loading = _loading(model, path, wanted, device="cpu")
    # Modules ask for the version of what they load; layouts are those of this model by now.
    ready = OrderedDict(loading.weights)
    vars(ready)["_metadata"] = vars(model.state_dict())["_metadata"]
    model.load_state_dict(ready, strict=False)
    for line in loading.lines():
        logger.info("%s", line)
    return loading.fresh


def _loading(model: nn.Module, path: Path, wanted: Wanted, *, device: str) -> Loading:
    content = read_file(path, device=device, types=wanted.types)
    found = weights_of(content, path, averaged=wanted.averaged)
    return fit(model.state_dict(), found, parts=wanted.parts, partial=wanted.partial)
