"""Build info files and object databases that are up to date with the tables.

One ``nuscenes_infos_<split>.pkl`` a split, in the form mmdet3d 1.0's NuScenesDataset reads, and of
the training split ``nuscenes_dbinfos_<split>.pkl`` with the folder of objects it names, from which
``UnifiedObjectSample`` pastes. What matches the tables it was built from is left as it is.
"""

import functools
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nuscenes.nuscenes import NuScenes
from rich.console import Console
from rich.progress import track

from aqr_model.data.prepare import database
from aqr_model.data.errors import DataError
from aqr_model.data.files import write_whole
from aqr_model.data.nuscenes.infos import Info, build_info, sensor_files
from aqr_model.data.nuscenes.tables import fingerprint, open_tables, split_scenes

_FORMAT = 2  # raise it when infos change, so that old files are built anew
_DATABASE_FORMAT = 2  # the same for the object database
MAX_SWEEPS = 10
_STAMP = "nuscenes_infos.json"


def prepare(dataroot: str | Path, version: str, out: str | Path | None = None) -> dict[str, Path]:
    """Build the info file of every split that is not up to date.

    Args:
        dataroot: Folder with samples/, sweeps/ and the version's tables.
        version: Folder name of the tables, ``v1.0-trainval`` for example.
        out: Folder for the info files; the dataroot by default.

    Returns:
        Info file of each split.

    Raises:
        DataError: If tables, splits or sensor files are missing or damaged.
    """
    folder = Path(out or dataroot)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = {"version": version, "tables": fingerprint(dataroot, version), "format": _FORMAT}
    stamps = _read_stamps(folder)
    paths: dict[str, Path] = {}
    for split, scenes in split_scenes(dataroot, version).items():
        path = paths[split] = folder / info_file(split)
        if stamps.get(path.name) == stamp and path.is_file():
            continue
        infos = _build_split(open_tables(dataroot, version), split, scenes)
        _check_files(Path(dataroot), infos)
        metadata = {"version": version, "split": split, "scenes": list(scenes)}
        write_whole(path, pickle.dumps({"infos": infos, "metadata": metadata}, protocol=4))
        stamps[path.name] = stamp
        write_whole(folder / _STAMP, json.dumps(stamps, indent=2).encode())
    return paths


def prepare_database(
    dataroot: str | Path,
    version: str,
    out: str | Path | None = None,
    *,
    num_sweeps: int = MAX_SWEEPS,
    workers: int = 1,
) -> dict[str, Path]:
    """Build the object database of every training split that is not up to date.

    Args:
        dataroot: Folder with samples/, sweeps/ and the version's tables.
        version: Folder name of the tables.
        out: Folder for info files and database; the dataroot by default.
        num_sweeps: Earlier LiDAR sweeps whose points an object gets, as many as training uses.
        workers: Processes; the result does not depend on it.

    Returns:
        Database infos of each split whose name ends with ``train``; the info files that it needs
        are prepared too.

    Raises:
        DataError: If tables, splits or sensor files are missing or damaged.
    """
    if not 0 <= num_sweeps <= MAX_SWEEPS or workers < 1:
        raise DataError(
            f"0 <= sweeps <= {MAX_SWEEPS} and workers >= 1 must hold, but got (sweeps="
            f"{num_sweeps}, workers={workers})."
        )
    folder = Path(out or dataroot)
    paths: dict[str, Path] = {}
    for split, info_path in prepare(dataroot, version, out).items():
        if not split.endswith("train"):
            continue
        path = paths[split] = folder / database_file(split)
        stamp = {"tables": fingerprint(dataroot, version), "format": _DATABASE_FORMAT}
        stamps = _read_stamps(folder)
        whole_stamp = {**stamp, "version": version, "sweeps": num_sweeps}
        there = path.is_file() and (folder / database.FOLDER).is_dir()
        if there and stamps.get(path.name) == whole_stamp:
            continue
        found = database.build_database(
            pickle.loads(info_path.read_bytes())["infos"],
            dataroot=Path(dataroot),
            folder=folder,
            num_sweeps=num_sweeps,
            stamp=stamp,
            workers=workers,
        )
        write_whole(path, pickle.dumps(found, protocol=4))
        stamps[path.name] = whole_stamp
        write_whole(folder / _STAMP, json.dumps(stamps, indent=2).encode())
    return paths


def database_file(split: str) -> str:
    """File name of a split's database infos, as :func:`info_file` names its infos."""
    return f"nuscenes_dbinfos_{split.removeprefix('mini_')}.pkl"


def info_file(split: str) -> str:
    """File name of a split's infos; the mini splits share the names of the full ones."""
    return f"nuscenes_infos_{split.removeprefix('mini_')}.pkl"


def _build_split(tables: NuScenes, split: str, scenes: Iterable[str]) -> list[Info]:
    wanted = set(scenes)
    tokens = {r["token"]: r["name"] for r in tables.scene if r["name"] in wanted}
    absent = wanted - set(tokens.values())
    if absent:
        raise DataError(
            f"Split {split!r} must name scenes of the scene table, but {sorted(absent)[:3]} "
            f"({len(absent)} in all) are not there."
        )
    samples = [sample for sample in tables.sample if sample["scene_token"] in tokens]
    shown = track(samples, f"infos of {split}", console=Console(stderr=True))
    return [build_info(tables, sample, max_sweeps=MAX_SWEEPS) for sample in shown]


def _check_files(dataroot: Path, infos: Iterable[Info]) -> None:
    """Find missing sensor files now, not in the middle of an epoch."""
    missing = [
        (info["token"], name)
        for info in infos
        for name in sensor_files(info)
        if os.path.basename(name) not in _names_in(dataroot / os.path.dirname(name))
    ]
    _names_in.cache_clear()
    if missing:
        token, name = missing[0]
        raise DataError(
            f"Every file of the tables must lie under {dataroot}, but {len(missing)} are missing "
            f"(first: {name} of sample {token}); complete the download or the dataset."
        )


@functools.cache
def _names_in(folder: Path) -> frozenset[str]:
    """List a folder once: asking a network file system file by file takes minutes."""
    return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()


def _read_stamps(folder: Path) -> dict[str, Mapping[str, Any]]:
    try:
        return json.loads((folder / _STAMP).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}  # nothing is known of the files here, so all are built
