"""Drawing objects from the ground-truth database for a scene."""

import logging
import os
import pickle
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmcv.utils import build_from_cfg
from mmdet3d.datasets import PIPELINES
from mmdet3d.datasets.builder import OBJECTSAMPLERS
from numpy.typing import NDArray
from torch import Tensor

from aqr_model.data.boxes import footprints, overlap_from_above
from aqr_model.data.errors import DataError
from aqr_model.data.pipelines.loading import read_image

_LOGGER = logging.getLogger(__name__)
_FILTERS = ("filter_by_difficulty", "filter_by_min_points")
_POINTS_LOADER = {
    "type": "LoadPointsFromFile",
    "coord_type": "LIDAR",
    "load_dim": 5,
    "use_dim": [0, 1, 2, 3, 4],
}


@dataclass(frozen=True, kw_only=True)
class SampledObjects:
    """Objects to paste into a scene.

    Attributes:
        boxes: [S, 7 or 9]
        labels: [S]
        points: Of all objects, in the LiDAR frame. [P, features]
        owners: Object of each point. [P]
        patches: The image patch of each object, for every view that sees it; None for an object
            that no camera saw whole.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    points: Tensor
    owners: NDArray[np.int64]
    patches: list[NDArray[np.uint8] | None]


@dataclass(frozen=True, kw_only=True)
class _Shelf:
    """The objects of one class, as a few arrays.

    A large database has a million objects; as Python objects they would be copied into every
    loading process, because reading them changes their reference counts.

    Attributes:
        boxes: [N, 9]
        footprints: [N, 4, 2]
        point_files: [N]
        patch_files: Empty for an object without a patch. [N]
    """

    boxes: NDArray[np.float32]
    footprints: NDArray[np.float32]
    point_files: NDArray[np.bytes_]
    patch_files: NDArray[np.bytes_]

    def __len__(self) -> int:
        return len(self.boxes)


@OBJECTSAMPLERS.register_module()
class UnifiedDataBaseSampler:
    """Draw objects of each class, so many that a scene has as many as its group says.

    Draws depend on Python's global generator alone, not on earlier draws: a resumed training sees
    what it would have seen.

    Args:
        info_path: Database infos, from :mod:`aqr_model.data.prepare` or CMT's converter.
        data_root: What paths in it are relative to; its own folder by default.
        rate: Share of the missing objects to draw.
        prepare: ``filter_by_difficulty``, a list of difficulties to leave out, and
            ``filter_by_min_points``, the fewest points by class.
        sample_groups: By class, up to how many objects a scene is filled.
        classes: Names in the order of labels.
        points_loader: Pipeline step that reads an object's points.
    """

    def __init__(
        self,
        info_path: str,
        data_root: str | None,
        rate: float,
        prepare: Mapping[str, Any],
        sample_groups: Mapping[str, int],
        classes: Sequence[str],
        points_loader: Mapping[str, Any] = _POINTS_LOADER,
    ) -> None:
        self.info_path = info_path
        self.data_root = data_root or os.path.dirname(info_path)
        self.rate = rate
        self.labels = {name: label for label, name in enumerate(classes)}
        self.groups = {name: int(count) for name, count in sample_groups.items()}
        self._check(prepare)
        self.points_loader = build_from_cfg(dict(points_loader), PIPELINES)
        found = _load(info_path)
        absent = sorted(set(self.groups) - set(found))
        if absent:
            raise DataError(
                f"{info_path} must hold the classes of sample_groups, but lacks {absent}; it holds "
                f"{sorted(found)}."
            )
        self.shelves = {name: _shelf(_filtered(name, found[name], prepare)) for name in self.groups}
        for shelf in self.shelves.values():
            self._require_first(shelf.point_files.tolist())
        counts = {
            name: f"{len(shelf)} of {len(found[name])}" for name, shelf in self.shelves.items()
        }
        _LOGGER.info("objects of %s after filtering: %s", info_path, counts)

    def sample(
        self, boxes: NDArray[np.float32], labels: NDArray[np.int64], *, with_images: bool
    ) -> SampledObjects | None:
        """Draw objects that collide neither with the scene's nor with each other.

        Args:
            boxes: Of the scene. [N, 7 or 9]
            labels: Of the scene. [N]
            with_images: Read their image patches too.

        Returns:
            The objects, or None if there are none to add.
        """
        drawn: list[tuple[str, int]] = []
        taken = footprints(boxes)
        for name, most in self.groups.items():
            missing = most - int((labels == self.labels[name]).sum())
            indices = self._draw(name, int(np.round(self.rate * missing)))
            candidates = self.shelves[name].footprints[indices]
            apart = _apart(candidates, taken)
            taken = np.concatenate([taken, candidates[apart]])
            drawn += [(name, indices[i]) for i in apart]
        if not drawn:
            return None
        added = np.stack([self.shelves[name].boxes[i, : boxes.shape[1]] for name, i in drawn])
        return self._read(drawn, added, with_images)

    def require_patches(self) -> None:
        """Refuse a database that was built for points alone.

        Raises:
            DataError: If there are objects, but none has an image patch, or its file is missing.
        """
        names = [name for shelf in self.shelves.values() for name in shelf.patch_files]
        patches = [name for name in names if name]
        self._require_first(patches)
        if names and not patches:
            raise DataError(
                f"{self.info_path} must name image patches of its objects (`image_path`) to paste "
                "them into images, but names none: it was built for LiDAR alone. Build it with "
                "python -m aqr_model.data.prepare --dataroot DATAROOT --version VERSION "
                "--database, or set sample_2d=False to paste into the points only."
            )

    def _draw(self, name: str, count: int) -> list[int]:
        """Indices of distinct objects."""
        size = len(self.shelves[name])
        return random.sample(range(size), min(count, size)) if count > 0 and size else []

    def _read(
        self, drawn: Sequence[tuple[str, int]], boxes: NDArray[np.float32], with_images: bool
    ) -> SampledObjects:
        clouds = []
        patches: list[NDArray[np.uint8] | None] = []
        for (name, index), box in zip(drawn, boxes, strict=True):
            shelf = self.shelves[name]
            file = self._path(shelf.point_files[index])
            points = self.points_loader({"pts_filename": file})["points"].tensor
            points[:, :3] += torch.from_numpy(box[:3])
            clouds.append(points)
            patch = shelf.patch_files[index] if with_images else b""
            patches.append(read_image(self._path(patch)) if patch else None)
        return SampledObjects(
            boxes=boxes,
            labels=np.array([self.labels[name] for name, _ in drawn], dtype=np.int64),
            points=torch.cat(clouds),
            owners=np.repeat(np.arange(len(clouds)), [len(cloud) for cloud in clouds]),
            patches=patches,
        )

    def _path(self, path: bytes) -> str:
        return os.path.join(self.data_root, os.fsdecode(bytes(path)))

    def _require_first(self, names: Sequence[bytes]) -> None:
        """Look for the first file, so that a database without its folder is noticed at once."""
        if len(names) and not os.path.isfile(path := self._path(names[0])):
            raise DataError(
                f"{self.info_path} must stand beside the files that it names, but there is no "
                f"{path}; copy its folder too, or set data_root."
            )

    def _check(self, prepare: Mapping[str, Any]) -> None:
        unknown = sorted(set(prepare) - set(_FILTERS))
        if unknown:
            raise DataError(f"prepare must have keys among {list(_FILTERS)}, but has {unknown}.")
        strangers = sorted(set(self.groups) - set(self.labels))
        if strangers:
            raise DataError(
                f"sample_groups must name classes among {list(self.labels)}, but has {strangers}."
            )
        if not self.rate >= 0 or min(self.groups.values(), default=0) < 0:
            raise DataError(
                "rate and the numbers of sample_groups must be >= 0, but are "
                f"{self.rate} and {self.groups}."
            )


def _load(path: str) -> dict[str, list[dict[str, Any]]]:
    try:
        with open(path, "rb") as file:
            found = pickle.load(file)
    except FileNotFoundError as error:
        raise DataError(
            f"info_path must be a database info file, but there is no {path}; build it with "
            "python -m aqr_model.data.prepare --dataroot DATAROOT --version VERSION --database."
        ) from error
    except (EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} cannot be read as database infos: {error!r}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} must map classes to lists of objects, but holds a {type(found)}.")
    return found


def _filtered(
    name: str, entries: Iterable[dict[str, Any]], prepare: Mapping[str, Any]
) -> list[dict[str, Any]]:
    difficulties = set(prepare.get("filter_by_difficulty", ()))
    fewest = int(prepare.get("filter_by_min_points", {}).get(name, 0))
    return [
        entry
        for entry in entries
        if entry["difficulty"] not in difficulties and entry["num_points_in_gt"] >= fewest
    ]


def _shelf(entries: Sequence[Mapping[str, Any]]) -> _Shelf:
    boxes = [entry["box3d_lidar"] for entry in entries] or np.zeros((0, 9))
    boxes = np.array(boxes, dtype=np.float32)
    patches = [os.fsencode(entry.get("image_path", "")) for entry in entries]
    return _Shelf(
        boxes=boxes,
        footprints=footprints(boxes),
        point_files=np.array([os.fsencode(entry["path"]) for entry in entries], dtype=np.bytes_),
        patch_files=np.array(patches, dtype=np.bytes_),
    )


def _apart(drawn: NDArray[np.float32], taken: NDArray[np.float32]) -> list[int]:
    """Choose boxes that overlap neither with what is taken nor with one another.

    Of two that overlap, the one drawn first gives way, as in the public sampler: also to one that
    gives way itself, later.

    Args:
        drawn: Footprints, in the order of drawing. [N, 4, 2]
        taken: Footprints. [M, 4, 2]
    """
    blocked = overlap_from_above(drawn, taken).any(axis=1)
    overlapping = overlap_from_above(drawn, drawn)
    standing = np.ones(len(drawn), dtype=bool)
    for index in range(len(drawn)):
        standing[index] = False  # not in its own way
        standing[index] = not (blocked[index] or overlapping[index, standing].any())
    return np.flatnonzero(standing).tolist()
