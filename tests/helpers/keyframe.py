"""One real nuScenes keyframe as a training set of one sample.

The keyframe's info file is in mmdetection3d's format 1.1, the dataset reads that of 1.0. As a
program it runs one training step of a shipped config, from random weights, and prints what it took
and AQR's statistics: `python tests/aqr_model/keyframe.py CONFIG [KEY=VALUE ...]`.
"""

import ast
import pickle
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aqr_model  # noqa: F401  (its shims, before mmdet3d)

# isort: split
import numpy as np
import torch
from mmcv import Config
from mmdet3d.datasets import build_dataset
from mmdet3d.models import build_model
from parity_cases import Batch

from aqr_model.aqr import aqr_statistics
from aqr_model.cmt.images.pixels import normalised
from aqr_model.data.nuscenes.infos import CAMERAS
from aqr_model.engine.batches import seed_everything
from aqr_model.engine.optim.freezing import Frozen
from aqr_model.engine.transfer import collate, to_device
from aqr_model.preflight.reading import load_config

FOLDER = Path("../shared/data/nuscenes_keyframe").resolve()
ABSENT = "the real keyframe is not beside this checkout"


def available() -> bool:
    return FOLDER.is_dir()


def info_of(record: dict[str, Any], categories: dict[str, int]) -> dict[str, Any]:
    """A record of format 1.1 as one of 1.0: matrices apart, boxes as arrays."""
    names = {label: name for name, label in categories.items()} | {-1: "ignore"}
    objects = record["instances"]
    lidar, ego = (
        np.array(matrix) for matrix in (record["lidar_points"]["lidar2ego"], record["ego2global"])
    )
    return {
        "token": record["token"],
        "scene_name": "keyframe",
        "timestamp": int(record["timestamp"] * 1e6),
        "lidar_path": str(FOLDER / record["lidar_points"]["lidar_path"]),
        "sweeps": [],
        "cams": {name: camera_of(record["images"][name]) for name in CAMERAS},
        "lidar2ego_translation": lidar[:3, 3],
        "ego2global_translation": ego[:3, 3],
        "gt_boxes": np.array([one["bbox_3d"] for one in objects]),
        "gt_names": np.array([names[one["bbox_label_3d"]] for one in objects]),
        "gt_velocity": np.array([one["velocity"] for one in objects]),
        "num_lidar_pts": np.array([one["num_lidar_pts"] for one in objects]),
        "num_radar_pts": np.array([one["num_radar_pts"] for one in objects]),
        "valid_flag": np.array([one["bbox_3d_isvalid"] for one in objects]),
    }


def camera_of(image: dict[str, Any]) -> dict[str, Any]:
    sensor2lidar = np.linalg.inv(np.array(image["lidar2cam"]))
    return {
        "data_path": str(FOLDER / image["img_path"]),
        "sensor2lidar_rotation": sensor2lidar[:3, :3],
        "sensor2lidar_translation": sensor2lidar[:3, 3],
        "cam_intrinsic": np.array(image["cam2img"]),
    }


def write_infos(path: Path) -> Path:
    """Write the keyframe's info file in format 1.0."""
    (source,) = FOLDER.glob("*.pkl")
    content = pickle.loads(source.read_bytes())
    categories = content["metainfo"]["categories"]
    infos = [info_of(record, categories) for record in content["data_list"]]
    path.write_bytes(pickle.dumps({"infos": infos, "metadata": {"version": "v1.0-mini"}}))
    return path


def keyframe_config(name: str, infos: Path, **overrides: Any) -> Config:
    """A shipped config on the keyframe.

    Its training steps stay, but for object sampling, which needs a database.
    """
    cfg = load_config(f"aqr_model/configs/{name}")
    dataset = cfg.data.train.get("dataset", cfg.data.train)
    dataset.pipeline = [s for s in dataset.pipeline if s.type != "UnifiedObjectSample"]
    dataset.data_root, dataset.ann_file = str(FOLDER), str(infos)
    cfg.data.train = dataset
    cfg.merge_from_dict({"load_from": None, **overrides})
    return cfg


def keyframe_batch(cfg: Config, *, seed: int = 3) -> dict[str, Any]:
    """The keyframe, augmented by draws of the seed (3 masks no sensor), as arguments."""
    seed_everything(seed)
    sample = build_dataset(cfg.data.train)[0]
    return to_device(collate([sample]), torch.device("cpu"))


def test_batch(name: str, folder: Path) -> Batch:
    """The keyframe as the test pipeline of a shipped config gives it, with its boxes in range.

    Args:
        name: File of the config.
        folder: For the info file.
    """
    cfg = keyframe_config(name, write_infos(folder / "infos.pkl"))
    truth = build_dataset(cfg.data.train).get_ann_info(0)
    cfg.data.train.pipeline, cfg.data.train.test_mode = cfg.data.val.pipeline, True
    sample = build_dataset(cfg.data.train)[0]
    boxes, labels = truth["gt_bboxes_3d"], truth["gt_labels_3d"]
    low_x, low_y, _, high_x, high_y, _ = cfg.point_cloud_range
    kept = boxes.in_range_bev([low_x, low_y, high_x, high_y]).numpy() & (labels >= 0)
    metas = sample["img_metas"][0].data
    matrices = metas.get("lidar2img", [np.eye(4)] * 6)
    return Batch(
        points=[sample["points"][0].data.numpy()] if "points" in sample else [],
        images=normalised(sample["img"][0].data[None], [metas]).numpy()
        if "img" in sample
        else None,
        lidar2img=np.stack(matrices)[None],
        boxes=[boxes.tensor.numpy()[kept]],
        labels=[labels[kept]],
    )


def main(name: str, overrides: dict[str, Any]) -> None:
    """One step of a shipped config: its loss, time, memory and statistics."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = keyframe_config(name, write_infos(Path(folder) / "infos.pkl"), **overrides)
        batch = keyframe_batch(cfg)
    model = build_model(cfg.model)
    model.init_weights()
    Frozen(model, cfg).train_mode()
    model.pts_bbox_head.collect_aqr = True
    start = time.process_time()
    terms = model(return_loss=True, **batch)
    loss = torch.stack([value for key, value in terms.items() if "loss" in key]).sum()
    middle = time.process_time()
    loss.backward()
    end = time.process_time()
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{len(batch['gt_labels_3d'][0])} objects, {len(batch['points'][0])} points")
    print(f"loss {loss.item():.3f} in {len(terms)} terms; {torch.get_num_threads()} threads")
    print(
        f"CPU time: forward {middle - start:.1f} s, backward {end - middle:.1f} s;"
        f" peak {peak_gb:.1f} GB"
    )
    if model.pts_bbox_head.enable_aqr:
        statistics = aqr_statistics(**model.pts_bbox_head.last_aqr)
        for key, value in statistics.items():
            print(f"{key.removeprefix('aqr/'):45} {value:.4f}")


def parsed(argument: str) -> tuple[str, Any]:
    key, _, text = argument.partition("=")
    try:
        return key, ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return key, text


if __name__ == "__main__":
    main(sys.argv[1], dict(map(parsed, sys.argv[2:])))
