"""Samples become a batch, and a batch goes to the device of the model.

mmcv's `collate` and `scatter` are not used: with torch 2 mmcv 1.7's `scatter` fails on any GPU, and
its containers keep torch's loader from pinning what is in them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmcv.parallel import DataContainer
from torch import Tensor

from aqr_model.aqr.crossings import upload

_ON_HOST = ("img_metas", "gt_bboxes_3d", "gt_labels_3d")  # the head sends what it makes of them


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join samples, without the containers that mmdet3d's pipelines put their values into.

    Args:
        samples: From `Collect3D`; a test pipeline gives lists, one entry a variant of the sample.

    Returns:
        Images of one shape as one tensor, [B, ...]; everything else as a list of B values.

    Raises:
        ValueError: If images of one batch differ in shape or type.
    """
    return {key: _joined([sample[key] for sample in samples], key) for key in samples[0]}


def _joined(values: Sequence[Any], key: str) -> Any:
    first = values[0]
    if isinstance(first, list | tuple):
        return [_joined(variant, key) for variant in zip(*values, strict=True)]
    stacked = isinstance(first, DataContainer) and first.stack
    held: list[Any] = [
        value.data if isinstance(value, DataContainer) else value for value in values
    ]
    if not stacked:
        return held
    types = {str(value.dtype) for value in held}
    if len(types) > 1:
        raise ValueError(
            f"`{key}` of one batch must have one type, but got {sorted(types)}. Let the pipeline"
            " give uint8 always or float32 always."
        )
    shapes = {tuple(value.shape) for value in held}
    if len(shapes) > 1:
        raise ValueError(
            f"`{key}` of one batch must have one shape, but got {sorted(shapes)}. Resize or pad the"
            " images to one size in the pipeline."
        )
    return torch.stack(held)


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Send a batch to a device, but for ground truth and meta data.

    Args:
        batch: From `collate`.
        device: Where the model stands.

    Returns:
        The keyword arguments of the detector.
    """
    found = [
        tensor for key, value in batch.items() if key not in _ON_HOST for tensor in _tensors(value)
    ]
    sent = iter(upload(found, device, "batch"))
    return {
        key: value if key in _ON_HOST else _replaced(value, sent) for key, value in batch.items()
    }


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _replaced(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nesting with other tensors."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {key: _replaced(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(inner, tensors) for inner in value]
    return value
