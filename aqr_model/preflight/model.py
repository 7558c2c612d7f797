"""The detector of a config, built without memory for its weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmcv import ConfigDict
from mmdet3d.models import DETECTORS, build_model
from mmdet3d.models.detectors import MVXTwoStageDetector
from torch import nn

from aqr_model.preflight.building import attempt_known, heard
from aqr_model.preflight.dotted import walk
from aqr_model.preflight.findings import Findings

_PLACE = "model"


def check_model(
    config: Mapping[str, Any], findings: Findings, *, files: bool = True
) -> nn.Module | None:
    """Build the detector on torch's `meta` device, which holds shapes alone.

    Args:
        config: A config.
        findings: Take every reason why it cannot be built, and what its parts say of themselves.
        files: Pretrained weights that a part names must be there.

    Returns:
        The detector; None if it, or one of its parts, cannot be built.
    """
    own = config.get(_PLACE)
    if not isinstance(own, Mapping):
        return None  # said where keys are checked
    if files:
        _check_files(own, findings)
    with heard(findings, _PLACE):
        model = attempt_known(
            lambda cfg: _built(cfg, config),
            own,
            _PLACE,
            findings,
            without_parts=_has_optional_parts(own),
        )
    parts = [name for name, part in own.items() if isinstance(part, Mapping) and "type" in part]
    return model if model is not None and all(hasattr(model, name) for name in parts) else None


def _built(own: dict[str, Any], config: Mapping[str, Any]) -> nn.Module:
    cfgs = {"train_cfg": config.get("train_cfg"), "test_cfg": config.get("test_cfg")}
    try:
        with torch.device("meta"):
            return build_model(ConfigDict(own), **cfgs)
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
        # Some parts compute with the values of tensors when they are built.
        return build_model(ConfigDict(own), **cfgs)


def _has_optional_parts(own: Mapping[str, Any]) -> bool:
    detector = DETECTORS.get(str(own.get("type")))
    return isinstance(detector, type) and issubclass(detector, MVXTwoStageDetector)


def _check_files(own: Mapping[str, Any], findings: Findings) -> None:
    for key, file in _pretrained(own):
        if "://" not in file and not Path(file).is_file():
            findings.refuse(
                f"{_PLACE}.{key}", f"must name a file of weights, but {file!r} is not there."
            )


def _pretrained(own: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Files that parts of the model start from, in the old way of mmcv and in the new."""
    for path, value in walk(own):
        key = ".".join(path)
        if isinstance(value, Mapping) and value.get("type") == "Pretrained":
            yield f"{key}.checkpoint", str(value.get("checkpoint"))
        elif "pretrained" in path[-2:] and isinstance(value, str):
            yield key, value
