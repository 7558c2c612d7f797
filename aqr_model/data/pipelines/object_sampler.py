"""Drawing objects from the ground-truth database for a scene."""

import logging
import os
import pickle
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

from aqr_model.data.boxes import overlap_from_above
from aqr_model.data.errors import DataError
from aqr_model.data.nuscenes.infos import CAMERAS
from aqr_model.data.pipelines.loading import read_image

_LOGGER = logging.getLogger(__name__)
_FILTERS = ("filter_by_difficulty", "filter_by_min_points")
_ANY_VIEW = -1
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
        patches: For each object, its image patch by view; a single patch from a public database
            serves every view.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    points: Tensor
    owners: NDArray[np.int64]
    patches: list[dict[int, NDArray[np.uint8]]]

    def patch(self, index: int, view: int) -> NDArray[np.uint8] | None:
        """Look up the patch of an object for a view, None if the view has none."""
        patches = self.patches[index]
        return patches.get(view, patches.get(_ANY_VIEW))


@dataclass(frozen=True, kw_only=True)
class _Shelf:
    """The objects of one class, as a few arrays.

    A large database has a million objects; as Python objects they would be copied into every
    loading process, because reading them changes their reference counts.

    Attributes:
        boxes: [N, 9]
        point_files: [N]
        patch_files: Of all objects one after the other. [M]
        patch_views: Index of the camera, or -1 for every camera. [M]
        patch_starts: Where an object's patches start. [N + 1]
    """

    boxes: NDArray[np.float32]
    point_files: NDArray[np.bytes_]
    patch_files: NDArray[np.bytes_]
    patch_views: NDArray[np.int8]
    patch_starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.boxes)

    def patch_files_of(self, index: int) -> dict[int, str]:
        """Patch file by view."""
        own = slice(self.patch_starts[index], self.patch_starts[index + 1])
        files = self.patch_files[own]
        views = self.patch_views[own]
        return {int(v): os.fsdecode(bytes(f)) for v, f in zip(views, files, strict=True)}


@OBJECTSAMPLERS.register_module()
class UnifiedDataBaseSampler:
    """Draw objects of each class, so many that a scene has as many as its group says.

    Draws depend on NumPy's global generator alone, not on earlier draws: a resumed training sees
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
        taken = boxes
        for name, most in self.groups.items():
            missing = most - int((labels == self.labels[name]).sum())
            for index in self._draw(name, int(np.round(self.rate * missing))):
                box = self.shelves[name].boxes[index, : boxes.shape[1]]
                if not overlap_from_above(box, taken):
                    taken = np.concatenate([taken, box[None]])
                    drawn.append((name, int(index)))
        return self._read(drawn, taken[len(boxes) :], with_images) if drawn else None

    def _draw(self, name: str, count: int) -> NDArray[np.int64]:
        """Indices of distinct objects; Generator.choice does not shuffle the whole shelf for it."""
        size = len(self.shelves[name])
        if count <= 0 or size == 0:
            return np.zeros(0, dtype=np.int64)
        generator = np.random.default_rng(np.random.randint(2**32, dtype=np.uint32))
        return generator.choice(size, min(count, size), replace=False)

    def _read(
        self, drawn: Sequence[tuple[str, int]], boxes: NDArray[np.float32], with_images: bool
    ) -> SampledObjects:
        clouds = []
        patches: list[dict[int, NDArray[np.uint8]]] = []
        for (name, index), box in zip(drawn, boxes, strict=True):
            shelf = self.shelves[name]
            file = self._path(os.fsdecode(bytes(shelf.point_files[index])))
            points = self.points_loader({"pts_filename": file})["points"].tensor
            points[:, :3] += torch.from_numpy(box[:3])
            clouds.append(points)
            files = shelf.patch_files_of(index) if with_images else {}
            patches.append({v: read_image(self._path(f)) for v, f in files.items()})
        return SampledObjects(
            boxes=boxes,
            labels=np.array([self.labels[name] for name, _ in drawn], dtype=np.int64),
            points=torch.cat(clouds),
            owners=np.repeat(np.arange(len(clouds)), [len(cloud) for cloud in clouds]),
            patches=patches,
        )

    def _path(self, path: str) -> str:
        return os.path.join(self.data_root, path)

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
    patches = [_patch_paths(entry) for entry in entries]
    boxes = [entry["box3d_lidar"] for entry in entries]
    return _Shelf(
        boxes=np.array(boxes, dtype=np.float32) if boxes else np.zeros((0, 9), np.float32),
        point_files=np.array([os.fsencode(entry["path"]) for entry in entries], dtype=np.bytes_),
        patch_files=np.array(
            [os.fsencode(path) for own in patches for path in own.values()], dtype=np.bytes_
        ),
        patch_views=np.array([view for own in patches for view in own], dtype=np.int8),
        patch_starts=np.cumsum([0, *(len(own) for own in patches)]),
    )


def _patch_paths(entry: Mapping[str, Any]) -> dict[int, str]:
    """Patch file by view; a public database has one for all views, or the empty string."""
    if "image_paths" in entry:
        return {CAMERAS.index(camera): path for camera, path in entry["image_paths"].items()}
    return {_ANY_VIEW: entry["image_path"]} if entry.get("image_path") else {}
