"""A dataset's tables through nuscenes-devkit: opened once a process, checked, with its splits."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from nuscenes.nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes

from aqr_model.data.errors import DataError

_OFFICIAL_SPLITS: Mapping[str, tuple[str, ...]] = {
    "v1.0-trainval": ("train", "val"),
    "v1.0-mini": ("mini_train", "mini_val"),
    "v1.0-test": ("test",),
}
_TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)


def open_tables(dataroot: str | Path, version: str) -> NuScenes:
    """Open the tables of a dataset version; a second call in the process costs nothing.

    Raises:
        DataError: If the folder or a table is missing, damaged or empty.
    """
    return _open(str(Path(dataroot)), version, fingerprint(dataroot, version))


def fingerprint(dataroot: str | Path, version: str) -> str:
    """Identify the present state of the tables by their names, sizes and times of change.

    Raises:
        DataError: If the folder or a table is missing.
    """
    folder = Path(dataroot) / version
    if not folder.is_dir():
        raise DataError(
            f"{folder} must be a folder with the tables of version {version!r}, but there is "
            "none; check dataroot and version, or create the dataset first."
        )
    missing = [name for name in _TABLES if not (folder / f"{name}.json").is_file()]
    if missing:
        raise DataError(f"{folder} must hold all 13 nuScenes tables, but lacks {missing}.")
    parts = [
        f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}"
        for path in sorted(folder.glob("*.json"))
    ]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def require_samples(
    dataroot: str | Path, version: str, tokens: Iterable[str], *, source: str
) -> None:
    """Check that a version's tables hold samples, without opening all of them.

    Args:
        dataroot: Folder of the dataset.
        version: Its version.
        tokens: The samples.
        source: What names them, for the message.

    Raises:
        DataError: If the tables are missing or lack a sample.
    """
    known = _sample_tokens(str(Path(dataroot)), version, fingerprint(dataroot, version))
    wanted = list(tokens)
    unknown = [token for token in wanted if token not in known]
    if unknown:
        raise DataError(
            f"{source} must name samples of {dataroot}, version {version!r}, but {len(unknown)} of "
            f"{len(wanted)} are not in its tables (first: {unknown[0]}). Build the info files from "
            f"these tables: python -m aqr_model.data.prepare --dataroot {dataroot} --version "
            f"{version}."
        )


def split_scenes(dataroot: str | Path, version: str) -> dict[str, tuple[str, ...]]:
    """Scene names of each split: the devkit's for official versions, else from splits.json.

    Raises:
        DataError: If a custom version has no usable splits.json.
    """
    if version in _OFFICIAL_SPLITS:
        scenes = create_splits_scenes()
        return {name: tuple(sorted(scenes[name])) for name in _OFFICIAL_SPLITS[version]}
    path = Path(dataroot) / version / "splits.json"
    if not path.is_file():
        raise DataError(
            f"{path} must list the scenes of each split, because {version!r} is not an official "
            f"version ({', '.join(_OFFICIAL_SPLITS)}); write it as {{split: [scene names]}}."
        )
    splits = _read_json(path)
    if not isinstance(splits, dict) or not all(isinstance(v, list) for v in splits.values()):
        raise DataError(f"{path} must map split names to lists of scene names.")
    return {name: tuple(sorted(scenes)) for name, scenes in splits.items()}


@functools.lru_cache(maxsize=4)
def _sample_tokens(dataroot: str, version: str, _state: str) -> frozenset[str]:
    return frozenset(r["token"] for r in _read_json(Path(dataroot) / version / "sample.json"))


@functools.lru_cache(maxsize=2)
def _open(dataroot: str, version: str, _state: str) -> NuScenes:
    folder = Path(dataroot) / version
    _check_small_tables(folder)
    try:
        return NuScenes(version=version, dataroot=dataroot, verbose=False)
    except (AssertionError, KeyError, ValueError) as error:
        for name in _TABLES:  # names the damaged table, where one does not parse
            _read_json(folder / f"{name}.json")
        raise DataError(f"nuscenes-devkit cannot open {folder}: {error!r}.") from error


def _check_small_tables(folder: Path) -> None:
    """Check what the devkit answers with a bare KeyError or only much later."""
    if not _read_json(folder / "sample.json"):
        raise DataError(f"{folder / 'sample.json'} must hold at least one sample, but is empty.")
    maps = _read_json(folder / "map.json")
    mapped = {token for record in maps for token in record["log_tokens"]}
    unmapped = [r["token"] for r in _read_json(folder / "log.json") if r["token"] not in mapped]
    if unmapped:
        raise DataError(
            f"{folder / 'map.json'} must name every log in its log_tokens, but {len(unmapped)} "
            f"are missing (first: {unmapped[0]}); one map record with a small image will do."
        )


def _read_json(path: Path) -> list[dict] | dict:
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
