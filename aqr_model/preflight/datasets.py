"""The datasets of a config: every step of their pipelines built, and the datasets on stand-ins.

The data themselves need not be there. An info file of a few made-up samples, and a database of one
object of each class, take the place of the files that a dataset reads when it is built.
"""

import pickle
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv import ConfigDict
from mmcv.utils import build_from_cfg
from mmdet3d.datasets import DATASETS, PIPELINES, NuScenesDataset, build_dataset

from aqr_model.data import CLASS_NAMES, CustomNuScenesDataset
from aqr_model.preflight.building import attempt_known, heard
from aqr_model.preflight.findings import Findings

_HELP = (
    "`make data` writes the synthetic datasets, `python -m aqr_model.data.prepare --help` shows how"
    " to prepare nuScenes"
)
_NUM_SAMPLES = 4
Node = Mapping[str, Any]


def check_datasets(
    config: Mapping[str, Any], findings: Findings, *, splits: Sequence[str], files: bool = True
) -> None:
    """Build the datasets of a config as far as it goes without data.

    Args:
        config: A config.
        findings: Take every reason why one cannot be built.
        splits: Of `data`: train, val.
        files: The files that they name must be there.
    """
    missing: list[str] = []
    for split in splits:
        own, place = (config.get("data") or {}).get(split), f"data.{split}"
        if isinstance(own, list | tuple):
            own = {"type": "ConcatDataset", "datasets": list(own)}
        if not isinstance(own, Mapping):
            continue  # said where keys are checked
        for key, leaf in _leaves(own, place):
            _check_steps(leaf.get("pipeline") or [], f"{key}.pipeline", findings)
            missing += [f"{k} {f!r}" for k, f in _named_files(leaf, key) if not Path(f).is_file()]
            if not isinstance(leaf.get("ann_file"), str):
                findings.refuse(
                    f"{key}.ann_file",
                    f"must be one info file, but got {leaf.get('ann_file')!r}. Several are read as"
                    " a list of datasets, each with a file.",
                )
            if split == "val":
                _check_variants(leaf.get("pipeline") or (), f"{key}.pipeline", findings)
        with heard(findings, place):
            _check_whole(own, split, place, findings)
    if missing and files:
        findings.refuse("data", f"{' and '.join(missing)} must be there, but are not: {_HELP}.")


def _check_steps(steps: Any, place: str, findings: Findings) -> None:
    """Build each step of a pipeline by itself, inner steps first."""
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        findings.refuse(place, f"must be a list of steps, but got {steps!r}.")
        return
    for i, step in enumerate(steps):
        here = f"{place}.{i}"
        if not isinstance(step, Mapping) or "type" not in step:
            findings.refuse(here, f"must be a dict with a `type`, but got {step!r}.")
            continue
        if "transforms" in step:
            _check_steps(step["transforms"], f"{here}.transforms", findings)
            step = {**step, "transforms": []}
        with tempfile.TemporaryDirectory() as folder, heard(findings, here):
            attempt_known(
                lambda cfg: build_from_cfg(ConfigDict(cfg), PIPELINES),
                _with_database(step, Path(folder)),
                here,
                findings,
            )


def _check_variants(steps: Any, place: str, findings: Findings) -> None:
    """Refuse test-time augmentation, which would fail at the first score."""
    for i, step in enumerate(steps):
        if not isinstance(step, Mapping) or "transforms" not in step:
            continue
        scales = [step.get("img_scale"), step.get("pts_scale_ratio")]
        if step.get("flip") or any(isinstance(each, list) and len(each) > 1 for each in scales):
            findings.refuse(
                f"{place}.{i}",
                "must give one variant of each sample, because test-time augmentation is no part"
                " of CMT. Set `flip=False`, one `img_scale` and one `pts_scale_ratio`.",
            )


def _check_whole(own: Node, split: str, place: str, findings: Findings) -> None:
    """Build a dataset, wrappers included, on stand-ins and without its steps."""
    if not all(_reads_infos(leaf) for _, leaf in _leaves(own, place)):
        return  # what another dataset reads cannot be made up
    with tempfile.TemporaryDirectory() as folder:
        infos = _write_infos(Path(folder), [leaf for _, leaf in _leaves(own, place)])
        arguments = {"test_mode": True} if split == "val" else None
        dataset = attempt_known(
            lambda cfg: build_dataset(ConfigDict(cfg), arguments),
            _on_stand_in(own, infos),
            place,
            findings,
        )
    if split == "val" and dataset is not None and not isinstance(dataset, CustomNuScenesDataset):
        findings.refuse(
            place,
            "must be a CustomNuScenesDataset, which is scored by nuScenes' devkit, but got"
            f" {own.get('type')}.",
        )


def _leaves(node: Any, place: str) -> Iterator[tuple[str, Node]]:
    """The datasets inside wrappers such as CBGSDataset, with their dotted keys."""
    if isinstance(node, list | tuple):
        for i, each in enumerate(node):
            yield from _leaves(each, f"{place}.{i}")
    elif isinstance(node, Mapping) and "dataset" in node:
        yield from _leaves(node["dataset"], f"{place}.dataset")
    elif isinstance(node, Mapping) and "datasets" in node:
        yield from _leaves(node["datasets"], f"{place}.datasets")
    elif isinstance(node, Mapping):
        yield place, node


def _named_files(leaf: Node, place: str) -> Iterator[tuple[str, str]]:
    """Info files of a dataset, and databases of the objects that its pipeline pastes."""
    if isinstance(name := leaf.get("ann_file"), str):
        yield f"{place}.ann_file", name
    for i, step in enumerate(leaf.get("pipeline") or ()):
        sampler = step.get("db_sampler") if isinstance(step, Mapping) else None
        if isinstance(sampler, Mapping) and isinstance(name := sampler.get("info_path"), str):
            yield f"{place}.pipeline.{i}.db_sampler.info_path", name


def _reads_infos(leaf: Node) -> bool:
    kind = DATASETS.get(str(leaf.get("type")))
    return kind is not None and issubclass(kind, NuScenesDataset)


def _on_stand_in(node: Any, infos: Path) -> Any:
    """A dataset's config with stand-ins for its info files, and without steps."""
    if isinstance(node, list | tuple):
        return [_on_stand_in(each, infos) for each in node]
    inside = {key: node[key] for key in ("dataset", "datasets") if key in node}
    if inside:
        return {**node, **{key: _on_stand_in(each, infos) for key, each in inside.items()}}
    return {**node, "ann_file": str(infos), "pipeline": []}


def _write_infos(folder: Path, leaves: Sequence[Node]) -> Path:
    """Samples of as many scenes, each with an object of every class."""
    given = [leaf["classes"] for leaf in leaves if isinstance(leaf.get("classes"), list | tuple)]
    names = list(dict.fromkeys([*CLASS_NAMES, *(str(name) for each in given for name in each)]))
    count = len(names)
    infos = [
        {
            "token": f"stand-in {i}",
            "scene_name": f"scene {i}",
            "timestamp": i,
            "lidar_path": "",
            "sweeps": [],
            "cams": {},
            "gt_names": np.array(names),
            "gt_boxes": np.ones((count, 7)),
            "gt_velocity": np.zeros((count, 2)),
            "num_lidar_pts": np.ones(count, dtype=np.int64),
            "num_radar_pts": np.ones(count, dtype=np.int64),
            "valid_flag": np.ones(count, dtype=bool),
        }
        for i in range(_NUM_SAMPLES)
    ]
    content = {"infos": infos, "metadata": {"version": "stand-in"}}
    return _written(folder / "infos.pkl", content)


def _with_database(step: Node, folder: Path) -> Node:
    """A step whose database of objects is replaced by one object of each class."""
    sampler = step.get("db_sampler")
    if not isinstance(sampler, Mapping) or "info_path" not in sampler:
        return step
    classes = [*CLASS_NAMES, *map(str, sampler.get("classes") or ())]
    objects = {
        name: [
            {
                "name": name,
                "path": "stand-in.bin",
                "image_path": "stand-in.png",
                "image_idx": "stand-in",
                "gt_idx": 0,
                "box3d_lidar": np.ones(9, dtype=np.float32),
                "num_points_in_gt": 1_000_000,
                "difficulty": 0,
                "group_id": 0,
                "score": 1.0,
            }
        ]
        for name in classes
    }
    for name in ("stand-in.bin", "stand-in.png"):
        (folder / name).touch()
    places = {"info_path": str(_written(folder / "objects.pkl", objects))}
    if sampler.get("data_root") is not None:
        places["data_root"] = str(folder)
    return {**step, "db_sampler": {**sampler, **places}}


def _written(path: Path, content: Any) -> Path:
    with path.open("wb") as file:
        pickle.dump(content, file)
    return path
