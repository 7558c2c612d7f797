"""Object sampling that ends before the training does, without another config file.

CMT's public recipe pastes database objects for 15 epochs and goes on without them for 5, so that
the last epochs see scenes as they are. ``object_sampling_until_epoch = 15`` does the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmcv import Config

from aqr_model.engine import config_keys
from aqr_model.engine.plan import PlanError

READS: config_keys.Reads = {
    "object_sampling_until_epoch": config_keys.NUMBER_FROM_0.or_none(),
}

SAMPLERS = ("UnifiedObjectSample", "ObjectSample")
"""Pipeline steps that paste objects: CMT's into both sensors, mmdet3d's into the points."""


def sampling_epochs(cfg: Config) -> float | None:
    """Epochs with object sampling, from ``object_sampling_until_epoch``; None for all of them.

    Raises:
        PlanError: If it is no number from 0 on, or the training samples no objects anyway.
    """
    until = cfg.get("object_sampling_until_epoch")
    if until is None:
        return None
    if isinstance(until, bool) or not isinstance(until, int | float) or until < 0:
        raise PlanError(
            f"`object_sampling_until_epoch` must be a number of epochs from 0 on, but got {until!r}"
        )
    if not any(step.get("type") in SAMPLERS for step in _steps(cfg.data.train)):
        raise PlanError(
            f"`object_sampling_until_epoch = {until}` needs one of {', '.join(SAMPLERS)} in the "
            "pipeline of `data.train`, which has none; set it to None"
        )
    return float(until)


class SamplingUntil:
    """Takes the object samplers of a dataset out of its pipeline from a step on.

    Asked for every sample, by the process that loads it: what a sample is made of depends on its
    step alone, whatever was loaded before.

    Args:
        dataset: An mmdet3d dataset, wrapped or not.
        stop: First optimizer step without object sampling; None keeps it.
    """

    def __init__(self, dataset: Any, stop: int | None) -> None:
        self.stop = stop
        self._pipelines = [
            (pipeline, pipeline.transforms, [t for t in pipeline.transforms if not _samples(t)])
            for pipeline in ([] if stop is None else _pipelines(dataset))
        ]

    def set(self, step: int) -> None:
        """Make the dataset what it is in a step."""
        for pipeline, full, rest in self._pipelines:
            pipeline.transforms = full if step < (self.stop or 0) else rest


def _samples(transform: Any) -> bool:
    return type(transform).__name__ in SAMPLERS


def _pipelines(dataset: Any) -> Iterator[Any]:
    """The pipelines inside of wrappers such as CBGSDataset."""
    if hasattr(dataset, "dataset"):
        yield from _pipelines(dataset.dataset)
    elif hasattr(dataset, "datasets"):
        for each in dataset.datasets:
            yield from _pipelines(each)
    else:
        yield dataset.pipeline


def _steps(node: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of all pipelines of a dataset's config."""
    if isinstance(node, Mapping):
        yield from node.get("pipeline") or ()
        for key in ("dataset", "datasets"):
            yield from _steps(node.get(key))
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from _steps(value)
