"""Write a whole dataset: scenes in parallel, tables, manifest, and one rename at the end."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .calibration import CAMERAS, LIDAR_CHANNEL
from .config import SyntheticConfig
from .manifest import FORMAT_VERSION, Manifest, plain_settings, read_manifest
from .recording import SceneJob, record_scene
from .tables import MAP_FILE, SCENE_TABLES, VERSION, Tables, Tokens, map_table, static_tables


class DatasetConflictError(FileExistsError):
    """The folder holds something else than what was asked for."""


def write_dataset(
    root: Path,
    config: SyntheticConfig,
    *,
    workers: int = 1,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Manifest:
    """Write a dataset, unless it is already there.

    The dataset appears under its name only when complete. Its bytes depend on ``config`` alone.

    Args:
        root: Folder to make; its parent may be missing.
        config: All settings.
        workers: Number of processes; 1 works in this one.
        overwrite: Replace a dataset that was made with other settings.
        show_progress: Draw a progress bar on stderr.

    Returns:
        The manifest of what stands in the folder now.

    Raises:
        DatasetConflictError: If the folder holds a dataset with other settings and ``overwrite`` is
            off, or if it holds anything but a synthetic dataset.
    """
    if workers < 1:
        raise ValueError(f"`workers >= 1` must hold, but got {workers}.")
    root = Path(root).absolute()
    if existing := _existing(root, config, overwrite):
        return existing
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.parent / f".{root.name}.partial-{os.getpid()}"
    try:
        manifest = _write_into(partial, config, workers, show_progress)
        if finished_meanwhile := _existing(root, config, overwrite):
            return finished_meanwhile
        _move_into_place(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _existing(root: Path, config: SyntheticConfig, overwrite: bool) -> Manifest | None:
    """Return the manifest of the wanted dataset if it is there; complain if something else is."""
    manifest = read_manifest(root)
    if manifest is None:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise DatasetConflictError(
                f"{root} must be missing, empty or a synthetic dataset, but holds other files. "
                "Choose another folder, or remove it yourself."
            )
        return None
    differences = manifest.differences(config)
    if not differences:
        return manifest
    if not overwrite:
        raise DatasetConflictError(
            f"{root} holds a dataset with other settings: {'; '.join(differences)}. "
            "Choose another folder, or overwrite it (--overwrite)."
        )
    return None


def _write_into(
    folder: Path, config: SyntheticConfig, workers: int, show_progress: bool
) -> Manifest:
    """Write a complete dataset into a new folder."""
    _make_folders(folder)
    jobs = _jobs(folder, config)
    tokens = Tokens.of(config)
    tables = static_tables(tokens, config) | {table: [] for table in SCENE_TABLES}
    for rows in _record_all(jobs, workers, show_progress):
        for table in SCENE_TABLES:
            tables[table] += rows[table]
    tables["map"] = map_table(tokens, tables["log"])
    _write_tables(folder, tables, _split_names(config))
    manifest = Manifest(
        settings=plain_settings(config),
        format_version=FORMAT_VERSION,
        counts={table: len(rows) for table, rows in tables.items()},
        num_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )
    manifest.write(folder)
    return manifest


def _make_folders(folder: Path) -> None:
    for name in (VERSION, "maps", f"sweeps/{LIDAR_CHANNEL}", f"samples/{LIDAR_CHANNEL}"):
        (folder / name).mkdir(parents=True)
    for channel in CAMERAS:
        (folder / "samples" / channel).mkdir()
    cv2.imwrite(str(folder / MAP_FILE), np.full((8, 8), 255, np.uint8))


def _split_names(config: SyntheticConfig) -> dict[str, list[str]]:
    """Return the scene names of every split."""
    return {
        split: [
            f"synth-{config.domain}-{config.seed}-{split.removeprefix('synth_')}-{index:04d}"
            for index in range(count)
        ]
        for split, count in config.splits.items()
    }


def _jobs(folder: Path, config: SyntheticConfig) -> list[SceneJob]:
    places = [
        (split_number, index, name)
        for split_number, names in enumerate(_split_names(config).values())
        for index, name in enumerate(names)
    ]
    return [
        SceneJob(
            config=config,
            root=folder,
            split_number=split_number,
            index=index,
            number=number,
            name=name,
        )
        for number, (split_number, index, name) in enumerate(places)
    ]


def _record_all(jobs: list[SceneJob], workers: int, show_progress: bool) -> Iterator[Tables]:
    """Record all scenes and yield their tables in the order of the jobs."""
    with _single_threaded_opencv(), _results(jobs, workers) as results:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("scenes"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        with Progress(*columns, console=console, disable=not show_progress) as progress:
            yield from progress.track(results, total=len(jobs), description="Recording")


@contextmanager
def _results(jobs: list[SceneJob], workers: int) -> Iterator[Iterator[Tables]]:
    """Give the results of all jobs, from this process or from a pool."""
    if workers == 1:
        yield map(record_scene, jobs)
        return
    # Forked, for a fresh interpreter would import torch and mmdet3d with the package, seconds each.
    # It is safe here: children run NumPy and single-threaded OpenCV only, and they all start before
    # the progress bar's thread does, inside the first submit.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(min(workers, max(1, len(jobs))), mp_context=context)
    try:
        yield pool.map(record_scene, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _single_threaded_opencv() -> Iterator[None]:
    """Keep OpenCV from using its thread pool, which does not survive a fork."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _write_tables(folder: Path, tables: Tables, splits: dict[str, list[str]]) -> None:
    for name, content in {**tables, "splits": splits}.items():
        path = folder / VERSION / f"{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")


def _move_into_place(partial: Path, root: Path) -> None:
    """Give the finished folder its name; an old dataset is removed only after that."""
    old = root.parent / f".{root.name}.old-{os.getpid()}"
    if root.exists():
        root.rename(old)
    partial.rename(root)
    shutil.rmtree(old, ignore_errors=True)
