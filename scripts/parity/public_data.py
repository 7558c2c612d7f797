"""The public CMT's data code, run from a folder outside this repository, unchanged.

What today's libraries no longer have is put in its place here: NumPy's old aliases, and registries
of its own, so that its steps stand beside ours of the same names.
"""

import importlib.util
import pickle
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmcv import Config, Registry

import aqr_model  # noqa: F401  (its shims, before mmdet3d)

# isort: split
import mmdet.datasets
import mmdet3d.datasets
from mmdet3d.datasets import pipelines as mmdet3d_steps

_PLUGIN = "projects/mmdet3d_plugin"
_FILES = {
    "dbsampler": "datasets/pipelines/dbsampler.py",
    "transforms": "datasets/pipelines/transform_3d.py",
    "dataset": "datasets/custom_nuscenes_dataset.py",
    "grid_mask": "models/utils/grid_mask.py",
}
_DATABASE_TOOL = "tools/data_converter/create_gt_database.py"
_INFOS_TOOL = "tools/data_converter/nuscenes_converter.py"
# Steps that the public configs take from mmdet3d; ours stand under some of their names.
_FROM_MMDET3D = (
    "Collect3D",
    "DefaultFormatBundle3D",
    "GlobalRotScaleTrans",
    "LoadAnnotations3D",
    "LoadMultiViewImageFromFiles",
    "LoadPointsFromFile",
    "LoadPointsFromMultiSweeps",
    "ObjectNameFilter",
    "ObjectRangeFilter",
    "PointShuffle",
    "PointsRangeFilter",
    "RandomFlip3D",
)


class PublicData:
    """The public code's classes.

    Args:
        root: Folder of the public repository.

    Attributes:
        grid_mask: The module ``GridMask`` of its model.
    """

    def __init__(self, root: Path) -> None:
        for name, kind in (("int", int), ("long", np.int64), ("bool", bool)):
            if name not in np.__dict__:
                setattr(np, name, kind)
        self.root = root
        self._steps, self._samplers = Registry("public steps"), Registry("public samplers")
        self._datasets = Registry("public datasets")
        for name in _FROM_MMDET3D:
            self._steps.register_module(module=getattr(mmdet3d_steps, name))
        with self._own_registries():
            modules = {name: _load(root / _PLUGIN / file) for name, file in _FILES.items()}
        self.grid_mask = modules["grid_mask"].GridMask

    def config(self, name: str) -> Config:
        """A file of its ``projects/configs``."""
        return Config.fromfile(str(self.root / "projects/configs" / name))

    def pipeline(self, configs: Sequence[Mapping[str, Any]]) -> list[Callable[[dict], Any]]:
        """Build its steps; those of test-time augmentation inside their wrapper.

        Its database sampler walks through a shuffled list of objects. Here it draws from the list
        as ours does, because a walk cannot be put on a tape.
        """
        steps = [self._step(dict(config)) for config in configs]
        for step in steps:
            if hasattr(step, "db_sampler"):
                samplers = step.db_sampler.sampler_dict
                for name, objects in step.db_sampler.group_db_infos.items():
                    samplers[name] = _Drawn(objects)
        return steps

    def dataset(self, **options: Any) -> Any:
        """Its ``CustomNuScenesDataset``."""
        return self._datasets.build({"type": "CustomNuScenesDataset", **options})

    def database(self, infos: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
        """Cut a database with its own tool; paths in it are relative to the folder."""
        tool = _load(self.root / _DATABASE_TOOL)

        def build(config: dict[str, Any]) -> Any:
            options = {key: value for key, value in config.items() if key != "type"}
            return self.dataset(**options | {"pipeline": self.pipeline(options["pipeline"])})

        with patch.object(tool, "build_dataset", build):
            tool.create_groundtruth_database(
                "CustomNuScenesDataset", str(folder), "public", str(infos)
            )
        return pickle.loads((folder / "public_dbinfos_train.pkl").read_bytes())

    def infos(self, tables: Any) -> list[dict[str, Any]]:
        """Infos of all keyframes of the devkit's tables, by its own converter."""
        plugin = ModuleType("projects.mmdet3d_plugin.datasets")
        plugin.CustomNuScenesDataset = self._datasets.get("CustomNuScenesDataset")
        parents = {name: ModuleType(name) for name in ("projects", "projects.mmdet3d_plugin")}
        with patch.dict(sys.modules, {**parents, plugin.__name__: plugin}):
            converter = _load(self.root / _INFOS_TOOL)
        every_scene = [scene["token"] for scene in tables.scene]
        return converter._fill_trainval_infos(tables, every_scene, [])[0]

    def _step(self, config: dict[str, Any]) -> Callable[[dict], Any]:
        if config["type"] == "MultiScaleFlipAug3D":
            inside = self.pipeline(config.pop("transforms"))
            return mmdet3d_steps.MultiScaleFlipAug3D(
                transforms=inside, **{k: v for k, v in config.items() if k != "type"}
            )
        return self._steps.build(config)

    @contextmanager
    def _own_registries(self) -> Iterator[None]:
        with (
            patch.object(mmdet.datasets.builder, "PIPELINES", self._steps),
            patch.object(mmdet3d.datasets, "PIPELINES", self._steps),
            patch.object(mmdet3d.datasets.builder, "OBJECTSAMPLERS", self._samplers),
            patch.object(mmdet.datasets, "DATASETS", self._datasets),
        ):
            yield


class _Drawn:
    """Stands for mmdet3d's ``BatchSampler``."""

    def __init__(self, objects: Sequence[Any]) -> None:
        self._objects = objects

    def sample(self, count: int) -> list[Any]:
        size = len(self._objects)
        return [self._objects[i] for i in random.sample(range(size), min(int(count), size))]


@contextmanager
def on_cpu() -> Iterator[None]:
    """Let ``.cuda()`` leave tensors where they are."""
    with patch.object(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor):
        yield


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"public_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
