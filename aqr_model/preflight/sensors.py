"""Whether a config reads, loads and masks the same sensors, before anything is built."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmcv import Config

from aqr_model.preflight.findings import Findings

_COLLECTED = {"lidar": "points", "camera": "img"}
_LOADERS = {
    "lidar": ("LoadPointsFromFile", "LoadPointsFromMultiSweeps"),
    "camera": ("LoadMultiViewImageFromFiles",),
}
Fault = tuple[str, str]  # dotted key, what must hold there


def check_sensors(
    cfg: Config, findings: Findings, splits: Sequence[str] = ("train", "val")
) -> None:
    """Check that the head reads the sensors that the data sets give.

    Args:
        cfg: A config; ``import aqr_model`` must have registered the project's types.
        findings: Take every fault, and what is asked for and read by nobody.
        splits: Keys of ``data`` to look at.
    """
    for key, text in _faults(cfg, splits):
        findings.refuse(key, text)
    for key, text in _idle(cfg, splits):
        findings.warn(key, text)


def _faults(cfg: Config, splits: Sequence[str]) -> Iterator[Fault]:
    """Where the sensors of a config disagree."""
    head, read = _head(cfg)
    for place, dataset in _datasets(cfg, splits):
        modality = dataset.get("modality") or {"use_lidar": True}
        for sensor in read:
            if not modality.get(f"use_{sensor}"):
                yield (
                    f"{place}.modality.use_{sensor}",
                    f"must be True, because {head} reads {sensor}, but it is not.",
                )
        for key, step in _steps(dataset.get("pipeline", ()), f"{place}.pipeline"):
            if step.get("type") == "Collect3D" and _sensors_of(step) != read:
                yield (
                    f"{key}.keys",
                    f"must hold {_listed(read)} and nothing of another sensor, because {head} reads"
                    f" {' and '.join(read)}, but they are {list(step.get('keys', ()))}.",
                )
            if step.get("type") == "ModalMask3D" and len(read) == 1:
                yield (
                    key,
                    f"must not be there: ModalMask3D blanks one of two sensors, and {head} reads"
                    f" {read[0]} alone. Take the step out.",
                )


def _idle(cfg: Config, splits: Sequence[str]) -> Iterator[Fault]:
    """What a config asks of sensors that its head does not read."""
    head, read = _head(cfg)
    for sensor in [sensor for sensor in _LOADERS if read and sensor not in read]:
        for place, dataset in _datasets(cfg, splits):
            if (dataset.get("modality") or {}).get(f"use_{sensor}"):
                yield (
                    f"{place}.modality.use_{sensor}",
                    f"changes nothing: {head} reads no {sensor}.",
                )
            for key, step in _steps(dataset.get("pipeline", ()), f"{place}.pipeline"):
                if step.get("type") in _LOADERS[sensor]:
                    yield (
                        key,
                        f"({step['type']}) reads files for nothing: {head} reads no {sensor}.",
                    )


def _head(cfg: Config) -> tuple[str, tuple[str, ...]]:
    """Type of the head and the sensors that it reads; none of a head that does not say."""
    from mmdet.models.builder import HEADS

    name = (cfg.get("model") or {}).get("pts_bbox_head", {}).get("type", "")
    return name, getattr(HEADS.get(name), "sensors", ())


def _datasets(cfg: Config, splits: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Places and configs of data sets, taken out of wrappers such as CBGSDataset."""
    if not _head(cfg)[1]:
        return
    for split in splits:
        place, dataset = f"data.{split}", (cfg.get("data") or {}).get(split) or {}
        while isinstance(dataset.get("dataset"), Mapping):
            place, dataset = f"{place}.dataset", dataset["dataset"]
        if dataset:
            yield place, dataset


def _steps(pipeline: Sequence[Any], place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Places and configs of all steps, those inside other steps too."""
    for i, step in enumerate(pipeline):
        yield f"{place}.{i}", step
        yield from _steps(step.get("transforms", ()), f"{place}.{i}.transforms")


def _sensors_of(collect: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(s for s, key in _COLLECTED.items() if key in collect.get("keys", ()))


def _listed(sensors: Sequence[str]) -> str:
    return " and ".join(repr(_COLLECTED[sensor]) for sensor in sensors)
