"""Cases by which the data side is compared with the public CMT, and what is kept of an outcome.

``scripts/parity/data.py`` runs the public code and writes the golden numbers; the tests run ours on
the same samples, with the draws of the public code.
"""

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.parallel import DataContainer
from scene_cases import HEIGHT, WIDTH, scene, write_infos, write_object
from tape import Tape

from aqr_model.data.nuscenes.dataset import CLASS_NAMES

Results = dict[str, Any]
Outcome = dict[str, Any]
RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
GROUPS = {"car": 5, "pedestrian": 5, "bus": 3, "traffic_cone": 4}
COLLECTED = {"points", "img", "lidar2img", "pad_shape", "img_shape"}  # every pipeline has them
_KEPT = 240  # values of an array in the golden numbers
_LEFT_OUT = (
    # What no step changes, and what nothing in the public configs reads.
    *("sweeps", "ann_info", "box_type_3d", "box_mode_3d", "filename", "img_filename"),
    *("img_sweeps", "radar_info", "img_timestamp", "depths", "pad_fixed_size"),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Steps on seeded samples.

    Attributes:
        steps: Their configs, in the public vocabulary.
        seeds: Of samples and draws.
        sample: Makes the sample of a seed.
    """

    steps: Sequence[Mapping[str, Any]]
    seeds: Sequence[int] = field(default=range(4))
    sample: Callable[[int], Results] = lambda seed: small_sample(seed)


def small_sample(seed: int) -> Results:
    """A scene as it stands after its files are read, with smooth images."""
    data, rng = scene(seed), np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 9, 16, 3)).astype(np.uint8)
    images = [image.repeat(10, axis=0).repeat(10, axis=1) for image in coarse]
    return data | {"img": images, "bbox3d_fields": ["gt_bboxes_3d"], "img_fields": []}


def small_cases(database: Path) -> dict[str, Case]:
    """Every step of the public training pipelines, with its options where they matter."""
    resize = {"type": "ResizeCropFlipImage", "data_aug_conf": image_options()}
    turned = {**resize, "data_aug_conf": image_options(rot_lim=(-20.0, 20.0))}
    enlarged = {**resize, "data_aug_conf": image_options(resize_lim=(0.5, 0.7))}
    normalise = {
        "type": "NormalizeMultiviewImage",
        "mean": [103.530, 116.280, 123.675],
        "std": [57.375, 57.120, 58.395],
        "to_rgb": False,
    }
    paste = pasting(database)
    mask = {"type": "ModalMask3D"}
    in_space = [
        {
            "type": "GlobalRotScaleTransAll",
            "rot_range": [-0.3925 * 2, 0.3925 * 2],
            "scale_ratio_range": [0.9, 1.1],
            "translation_std": [0.5, 0.5, 0.5],
        },
        {
            "type": "CustomRandomFlip3D",
            "sync_2d": False,
            "flip_ratio_bev_horizontal": 0.5,
            "flip_ratio_bev_vertical": 0.5,
        },
    ]
    filters = [
        {"type": "PointsRangeFilter", "point_cloud_range": RANGE},
        {"type": "ObjectRangeFilter", "point_cloud_range": RANGE},
        {"type": "ObjectNameFilter", "classes": list(CLASS_NAMES[:5])},
    ]
    last = [normalise, {"type": "PadMultiViewImage", "size_divisor": 32}]
    return {
        "UnifiedObjectSample, mixup": Case(steps=[paste], seeds=range(6)),
        "UnifiedObjectSample, covering": Case(steps=[{**paste, "mixup_rate": -1}]),
        "UnifiedObjectSample, points alone": Case(steps=[{**paste, "sample_2d": False}]),
        "UnifiedObjectSample, hidden points": Case(steps=[{**paste, "modify_points": True}]),
        "ModalMask3D, training": Case(steps=[{**mask, "mode": "train"}], seeds=range(8)),
        "ModalMask3D, images": Case(steps=[{**mask, "mode": "test", "mask_modal": "image"}]),
        "ModalMask3D, points": Case(steps=[{**mask, "mode": "test", "mask_modal": "points"}]),
        "GlobalRotScaleTransAll": Case(steps=in_space[:1]),
        "CustomRandomFlip3D": Case(steps=in_space[1:]),
        "range and name filters": Case(steps=[*in_space, *filters]),
        "PointShuffle": Case(steps=[{"type": "PointShuffle"}], seeds=[0]),
        "ResizeCropFlipImage, training": Case(steps=[resize]),
        "ResizeCropFlipImage, enlarged": Case(steps=[enlarged]),
        "ResizeCropFlipImage, turned": Case(steps=[turned]),
        "ResizeCropFlipImage, test": Case(steps=[{**resize, "training": False}], seeds=[0]),
        "NormalizeMultiviewImage, PadMultiViewImage": Case(steps=last, seeds=[0]),
        "all steps, one after the other": Case(
            steps=[
                paste,
                {**mask, "mode": "train"},
                *in_space,
                *filters,
                {"type": "PointShuffle"},
                resize,
                *last,
            ],
            seeds=range(6),
        ),
    }


def image_options(**changes: Any) -> dict[str, Any]:
    """``data_aug_conf`` for the small images."""
    options = {"resize_lim": (0.74, 0.98), "final_dim": (64, 128), "bot_pct_lim": (0.0, 0.1)}
    options |= {"rot_lim": (0.0, 0.0), "H": HEIGHT, "W": WIDTH, "rand_flip": True}
    return options | changes


def pasting(info_path: Path, groups: Mapping[str, int] = GROUPS) -> dict[str, Any]:
    """The public configs' step on a database."""
    return {
        "type": "UnifiedObjectSample",
        "sample_2d": True,
        "mixup_rate": 0.5,
        "db_sampler": {
            "type": "UnifiedDataBaseSampler",
            "data_root": f"{info_path.parent}/",
            "info_path": str(info_path),
            "rate": 1.0,
            "prepare": {
                "filter_by_difficulty": [-1],
                "filter_by_min_points": dict.fromkeys(CLASS_NAMES, 5),
            },
            "classes": list(CLASS_NAMES),
            "sample_groups": dict(groups),
            "points_loader": {
                "type": "LoadPointsFromFile",
                "coord_type": "LIDAR",
                "load_dim": 5,
                "use_dim": [0, 1, 2, 3, 4],
            },
        },
    }


def write_small_database(root: Path) -> Path:
    """A crowd of objects before the camera, so that boxes collide and patches overlap."""
    rng = np.random.default_rng(7)
    entries = []
    for name in CLASS_NAMES:
        for k in range(9):
            low, high = [4, -14, -2, 0.4, 0.4, 0.5, -3], [24, 14, 0, 5, 2.5, 3, 3]
            entry = write_object(
                root,
                name,
                rng.uniform(low, high),
                num_points=3 if k == 8 else 12,  # one of nine has too few points
                colour=rng.integers(0, 255, (24, 32, 3)),
                **({"image_path": ""} if k == 7 else {}),
            )
            entries.append(entry)
    return write_infos(root, entries)


def outcome(results: Mapping[str, Any]) -> Outcome:
    """What is compared of a sample, by key: arrays, numbers, texts, and lists of them."""
    kept = {key: _plain(value) for key, value in results.items() if key not in _LEFT_OUT}
    metas = kept.pop("img_metas", {})
    return kept | {key: value for key, value in metas.items() if key not in _LEFT_OUT}


def outcome_of_info(info: Mapping[str, Any]) -> Outcome:
    """What is compared of an info record: all but the paths, which ours keeps relative."""
    sensors = {f"sweep {k}": sweep for k, sweep in enumerate(info["sweeps"])} | info["cams"]
    found = {key: value for key, value in info.items() if key not in ("cams", "sweeps")}
    found |= {f"{name}: {key}": v for name, sensor in sensors.items() for key, v in sensor.items()}
    found["gt_velocity"] = np.nan_to_num(info["gt_velocity"], nan=1e3)
    return {key: value for key, value in found.items() if not key.endswith("_path")}


def without_order(steps: Sequence[Any]) -> list[Any]:
    """All steps but the one that shuffles the points."""
    return [step for step in steps if type(step).__name__ != "PointShuffle"]


def mask_digest(images: torch.Tensor) -> Outcome:
    """What masked images of ones show: rows and columns that are visible as a whole, and how much.

    Args:
        images: [1, 1, H, W]
    """
    mask = images[0, 0].numpy()
    return {"rows": mask.min(axis=1), "columns": mask.min(axis=0), "shown": float(mask.sum())}


def _plain(value: Any) -> Any:
    if isinstance(value, DataContainer):
        return _plain(value.data)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], DataContainer):
        return _plain(value[0])  # test pipelines give a list of variants
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if hasattr(value, "tensor"):  # boxes and points
        return value.tensor.numpy()
    if (
        isinstance(value, list | tuple)
        and value
        and isinstance(value[0], np.ndarray | torch.Tensor)
    ):
        return np.stack([np.asarray(one) for one in value])
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def relative_difference(theirs: Any, ours: Any) -> float:
    """Largest difference over the largest value, a column each for points and boxes.

    Infinite where shapes, or values that are no numbers, differ.
    """
    if isinstance(theirs, dict):
        return max((relative_difference(v, ours[k]) for k, v in theirs.items()), default=0.0)
    theirs, ours = np.asarray(theirs), np.asarray(ours)
    if theirs.shape != ours.shape:
        return float("inf")
    if theirs.dtype.kind not in "fiu":
        return 0.0 if (theirs == ours).all() else float("inf")
    if theirs.size == 0:
        return 0.0
    axis = 0 if theirs.ndim == 2 else None
    difference = np.abs(theirs.astype(np.float64) - ours).max(axis=axis)
    scale = np.abs(theirs.astype(np.float64)).max(axis=axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(difference == 0, 0.0, difference / scale)))


def digest(found: Outcome) -> Outcome:
    """An outcome with large arrays thinned out: some values, their mean, and the shape."""
    return {key: _thinned(value) for key, value in found.items()}


def _thinned(value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.size <= _KEPT:
        return value
    rows = value if value.ndim == 2 else value.reshape(-1)
    return {
        "shape": list(value.shape),
        "mean": float(value.mean(dtype=np.float64)),
        "some": rows[:: value.size // _KEPT],
    }


def save_golden(path: Path, cases: Mapping[str, tuple[Tape, Outcome]]) -> None:
    """Write tapes and digests: one array of all numbers, and a JSON text that says where."""
    values: list[np.ndarray] = []

    def packed(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            start = sum(map(len, values))
            values.append(value.reshape(-1).astype(np.float32))
            return {"array": [start, list(value.shape)]}
        if isinstance(value, dict):
            return {key: packed(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [packed(one) for one in value]
        return value.item() if isinstance(value, np.generic) else value

    def exact(value: Any) -> Any:
        return np.asarray(value).tolist()

    index = {
        name: {"tape": [[kind, exact(drawn)] for kind, drawn in tape], "outcome": packed(found)}
        for name, (tape, found) in cases.items()
    }
    np.savez_compressed(path, index=json.dumps(index), values=np.concatenate(values))


def load_golden(path: Path) -> dict[str, tuple[Tape, Outcome]]:
    """Read what :func:`save_golden` wrote."""
    with np.load(path) as file:
        index, values = json.loads(str(file["index"])), file["values"]

    def unpacked(value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"array"}:
            start, shape = value["array"]
            return values[start : start + int(np.prod(shape))].reshape(shape)
        if isinstance(value, dict):
            return {key: unpacked(one) for key, one in value.items()}
        return [unpacked(one) for one in value] if isinstance(value, list) else value

    return {
        name: ([_drawn(*draw) for draw in case["tape"]], unpacked(case["outcome"]))
        for name, case in index.items()
    }


def _drawn(kind: str, value: Any) -> tuple[str, Any]:
    if kind == "randperm":
        return kind, torch.tensor(value)
    listed = isinstance(value, list) and kind != "sample"
    return kind, np.array(value) if listed else value


def class_infos(path: Path, seed: int = 0, count: int = 60) -> Path:
    """Infos of samples with some of the classes each, rare ones rarely, for balanced sampling."""
    rng = np.random.default_rng(seed)
    share = np.linspace(0.9, 0.1, len(CLASS_NAMES))
    infos = [
        _class_info(k, [*np.array(CLASS_NAMES)[rng.random(10) < share], "animal"])
        for k in range(count)
    ]
    path.write_bytes(pickle.dumps({"infos": infos, "metadata": {"version": "v1.0-mini"}}))
    return path


def _class_info(k: int, names: Sequence[str]) -> dict[str, Any]:
    count = len(names)
    return {
        "token": f"sample-{k}",
        "timestamp": k,
        "gt_names": np.array(names),
        "gt_boxes": np.ones((count, 7)),
        "gt_velocity": np.zeros((count, 2)),
        "num_lidar_pts": np.ones(count, dtype=int),
        "valid_flag": np.ones(count, dtype=bool),
    }


def pairs(cases: Mapping[str, Case]) -> Iterator[tuple[str, Case, int]]:
    """Every case with every of its seeds, named."""
    for name, case in cases.items():
        for seed in case.seeds:
            yield f"{name} / {seed}", case, seed
