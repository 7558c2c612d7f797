"""Build the info files of a dataset: ``python -m aqr_model.data.prepare --dataroot D --version V``.

One ``nuscenes_infos_<split>.pkl`` a split, in the form mmdet3d 1.0's NuScenesDataset reads. A file
that matches the tables it was built from is left as it is.
"""

import argparse
import functools
import json
import os
import pickle
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nuscenes.nuscenes import NuScenes
from rich.progress import track

from aqr_model.data.errors import DataError
from aqr_model.data.infos import Info, build_info, sensor_files
from aqr_model.data.tables import fingerprint, open_tables, split_scenes

_FORMAT = 1  # raise it when infos change, so that old files are built anew
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
        _write(path, pickle.dumps({"infos": infos, "metadata": metadata}, protocol=4))
        stamps[path.name] = stamp
        _write(folder / _STAMP, json.dumps(stamps, indent=2).encode())
    return paths


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
    return [build_info(tables, sample) for sample in track(samples, f"infos of {split}")]


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


def _write(path: Path, content: bytes) -> None:
    """Write whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build mmdet3d info files from nuScenes tables.")
    parser.add_argument("--dataroot", required=True, help="folder with samples/ and the tables")
    parser.add_argument("--version", required=True, help="v1.0-trainval, v1.0-mini or your own")
    parser.add_argument("--out", help="folder for the info files (default: dataroot)")
    args = parser.parse_args()
    try:
        paths = prepare(args.dataroot, args.version, args.out)
    except DataError as error:
        sys.exit(f"error: {error}")
    for split, path in paths.items():
        print(f"{split}: {path}")


if __name__ == "__main__":
    main()
