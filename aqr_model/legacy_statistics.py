"""The statistics of a past run, out of its semantics and an untrained generator.

``python -m aqr_model.legacy_statistics`` builds the R50 AQR head at full size with legacy
semantics, routes batches of four samples and prints what the users' log printed, beside it. No
checkpoint and no data are needed, because the numbers do not come from training: weights start
random (bias 1.5) and legacy maps never train them.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.models.builder import build_head
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from nuscenes.utils.geometry_utils import transform_matrix
from pyquaternion import Quaternion

from aqr_model.aqr import aqr_statistics
from aqr_model.data.synthetic.calibration import (
    CAMERAS,
    LIDAR,
    NATIVE_IMAGE_SIZE,
    Calibration,
)
from aqr_model.preflight.reading import load_config

CONFIG = "aqr_model/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py"
# As the users' log dumps them; its ffn_drop of 0.1 reached no layer of the model it dumps below.
OVERRIDES: dict[str, Any] = {
    "aqr_config.semantics": {"preset": "legacy", "clamped": "bev"},
    "aqr_config.predictor_bias": None,
    "aqr_config.window_sizes": [9, 5],
    "aqr_config.encoder_config.transformerlayers.attn_cfgs.0.dropout": 0.1,
    "renderer_config.max_weight_clamp": 1.5,
    "renderer_config.gaussian_sigma": 1.0,
    "modulator_config.residual_weight": 0.7,
}
IMAGE_SHAPE = (320, 800)
BEV_SHAPE, CAMERA_SHAPE = (128, 128), (6, 20, 50)
# The users' R50 run with clamp 1.5 and residual 0.7: queries of its 32 records, of which 900 are
# the matching ones and the rest ten times the boxes of the batch's fullest sample.
LOGGED_QUERIES = (
    1120, 1210, 1220, 1220, 1270, 1270, 1270, 1290, 1300, 1310, 1370, 1380, 1380, 1390, 1400, 1440,
    1440, 1470, 1470, 1490, 1490, 1500, 1510, 1520, 1530, 1600, 1610, 1660, 1670, 1720, 1730, 1790,
)  # fmt: skip
# Mean over a batch, such that the mean of all samples is the 22 that the log's maps imply.
OTHER_BOXES = 12.0
POSITIVE_SHARE = 0.27  # of BEV features, which the log's BEV change implies


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A line of the users' log: in the record they analysed, and over all 32 records."""

    key: str
    title: str
    analysed: float
    low: float
    high: float
    percent: bool = False


LOGGED = (
    Logged(key="lidar_weights_stats/mean", title="LiDAR weight mean",
           analysed=0.7019, low=0.6791, high=0.7485),
    Logged(key="lidar_weights_stats/std", title="LiDAR weight std",
           analysed=0.1570, low=0.1336, high=0.1783),
    Logged(key="lidar_weights_stats/min", title="LiDAR weight min",
           analysed=0.0938, low=0.0608, high=0.2023),
    Logged(key="lidar_weights_stats/max", title="LiDAR weight max",
           analysed=0.9824, low=0.9735, high=0.9894),
    Logged(key="camera_weights_stats/mean", title="camera weight mean",
           analysed=0.7233, low=0.7098, high=0.7938),
    Logged(key="camera_weights_stats/std", title="camera weight std",
           analysed=0.1673, low=0.1384, high=0.1950),
    Logged(key="camera_weights_stats/min", title="camera weight min",
           analysed=0.1408, low=0.0622, high=0.1946),
    Logged(key="camera_weights_stats/max", title="camera weight max",
           analysed=0.9938, low=0.9919, high=0.9969),
    Logged(key="weight_map_bev_stats/mean", title="BEV map mean",
           analysed=0.0525, low=0.0415, high=0.0558),
    Logged(key="weight_map_bev_stats/std", title="BEV map std",
           analysed=0.1200, low=0.0699, high=0.1331),
    Logged(key="weight_map_bev_stats/max", title="BEV map max",
           analysed=1.5, low=1.5, high=1.5),
    Logged(key="weight_map_pers_stats/mean", title="camera map mean",
           analysed=0.2015, low=0.1381, high=0.2227),
    Logged(key="weight_map_pers_stats/std", title="camera map std",
           analysed=1.2037, low=0.4321, high=1.6827),
    Logged(key="weight_map_pers_stats/max", title="camera map max",
           analysed=70.83, low=18.80, high=94.36),
    Logged(key="modulation_effect_bev/relative_change", title="BEV relative change",
           analysed=0.070, low=0.0663, high=0.0775, percent=True),
    Logged(key="modulation_effect_pers/relative_change", title="camera relative change",
           analysed=0.333, low=0.2706, high=0.3578, percent=True),
    Logged(key="modulation_effect_bev/mean_change", title="BEV mean change",
           analysed=-0.0130, low=-0.0148, high=-0.0127),
    Logged(key="modulation_effect_bev/std_change", title="BEV std of change",
           analysed=0.0615, low=0.0593, high=0.0656),
    Logged(key="modulation_effect_bev/max_change", title="BEV max change",
           analysed=2.34, low=1.62, high=5.47),
    Logged(key="modulation_effect_pers/mean_change", title="camera mean change",
           analysed=-0.0045, low=-0.0055, high=-0.0031),
    Logged(key="modulation_effect_pers/std_change", title="camera std of change",
           analysed=0.1081, low=0.0516, high=0.1805),
    Logged(key="modulation_effect_pers/max_change", title="camera max change",
           analysed=26.4, low=5.53, high=73.11),
)  # fmt: skip


def build_legacy_head(seed: int) -> Any:
    """The R50 AQR head at full size, untrained, with the semantics of the users' run."""
    cfg = load_config(CONFIG)
    prefix = "model.pts_bbox_head."
    cfg.merge_from_dict({prefix + key: value for key, value in OVERRIDES.items()})
    torch.manual_seed(seed)
    settings = {"train_cfg": cfg.model.train_cfg.pts, "test_cfg": cfg.model.test_cfg.pts}
    head = build_head(dict(cfg.model.pts_bbox_head) | settings)
    head.init_weights()
    head.train()
    head.collect_aqr = True
    return head


def num_boxes(num_queries: int, batch: int, rng: np.random.Generator) -> list[int]:
    """Boxes of each sample: the fullest as the queries tell, the others exponential, at least 1."""
    largest = (num_queries - 900) // 10
    others = rng.exponential(OTHER_BOXES, batch - 1).round().clip(1, largest)
    return [largest, *others.astype(int).tolist()]


def random_sample(count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Meta data of a sample with so many boxes, seen by a nuScenes rig after augmentation."""
    columns = [rng.uniform(-50, 50, (count, 2)), rng.uniform(-3, 1, (count, 1))]
    columns += [rng.uniform(0.5, 5, (count, 3)), rng.uniform(-math.pi, math.pi, (count, 1))]
    boxes = np.concatenate([*columns, np.zeros((count, 2))], axis=1)
    return {
        "lidar2img": augmented_cameras(rng),
        "pad_shape": [(*IMAGE_SHAPE, 3)] * CAMERA_SHAPE[0],
        "gt_bboxes_3d": LiDARInstance3DBoxes(torch.from_numpy(boxes).float(), box_dim=9),
        "gt_labels_3d": torch.from_numpy(rng.integers(0, 10, count)),
    }


def augmented_cameras(rng: np.random.Generator) -> list[np.ndarray]:
    """lidar2img of the six views under the R50 recipe's augmentation. [4, 4] each."""
    angle, scale = rng.uniform(-0.785, 0.785), rng.uniform(0.9, 1.1)
    cos, sin = math.cos(angle), math.sin(angle)
    world = np.eye(4)
    world[:3, :3] = scale * np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    world[:3, 3] = rng.normal(0, 0.5, 3)
    world = np.diag([*rng.choice([-1.0, 1.0], 2), 1.0, 1.0]) @ world
    image = _image_transform(rng)
    lidar = _pose(LIDAR)
    matrices = []
    for camera in CAMERAS.values():
        lens = np.eye(4)
        lens[:3, :3] = image @ camera.intrinsic(*NATIVE_IMAGE_SIZE)
        lidar2cam = np.linalg.inv(_pose(camera)) @ lidar
        matrices.append(lens @ lidar2cam @ np.linalg.inv(world))
    return matrices


def _pose(sensor: Calibration) -> np.ndarray:
    """From a sensor to the ego frame. [4, 4]."""
    return transform_matrix(np.array(sensor.translation), Quaternion(sensor.rotation))


def _image_transform(rng: np.random.Generator) -> np.ndarray:
    """Native pixels to those of the resized, cropped and perhaps mirrored image. [3, 3]."""
    height, width = IMAGE_SHAPE
    resize = rng.uniform(0.47, 0.625)
    left = rng.uniform(0, max(NATIVE_IMAGE_SIZE[0] * resize - width, 0))
    top = NATIVE_IMAGE_SIZE[1] * resize - height
    image = np.array([[resize, 0, -left], [0, resize, -top], [0, 0, 1]])
    if rng.random() < 0.5:
        image = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]]) @ image
    return image


def random_features(batch: int, channels: int, draw: torch.Generator) -> tuple[Any, Any]:
    """BEV features after a ReLU, 27 % of them positive, and signed camera features."""
    threshold = torch.special.ndtri(torch.tensor(1 - POSITIVE_SHARE)).item()
    bev = (torch.randn(batch, channels, *BEV_SHAPE, generator=draw) - threshold).relu()
    views, rows, cols = CAMERA_SHAPE
    return bev, torch.randn(batch * views, channels, rows, cols, generator=draw)


@torch.no_grad()
def batch_statistics(
    head: Any, queries: Sequence[int], *, batch: int, seed: int
) -> Iterator[dict[str, float]]:
    """Statistics of one batch for each entry of `queries`."""
    rng, draw = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for num_queries in queries:
        metas = [random_sample(count, rng) for count in num_boxes(num_queries, batch, rng)]
        head.decoder_inputs(*random_features(batch, head.hidden_dim, draw), metas)
        head.last_aqr["gt_boxes"] = None  # the boxes are random: nothing to say about them
        yield aqr_statistics(**head.last_aqr)


def table(found: Sequence[dict[str, float]]) -> str:
    """Markdown: ours and the log's, over all batches."""
    lines = [
        "| statistic | ours: mean (min to max) | their 32 records: min to max | analysed record |",
        "|---|---|---|---|",
    ]
    for row in LOGGED:
        values = [one[f"aqr/{row.key}"] for one in found]
        mean, low, high = sum(values) / len(values), min(values), max(values)
        ours = f"{_shown(mean, row)} ({_shown(low, row)} to {_shown(high, row)})"
        theirs = f"{_shown(row.low, row)} to {_shown(row.high, row)}"
        lines.append(f"| {row.title} | {ours} | {theirs} | {_shown(row.analysed, row)} |")
    return "\n".join(lines)


def _shown(value: float, row: Logged) -> str:
    if row.percent:
        return f"{100 * value:.1f} %"
    return f"{value:.2f}" if max(abs(row.analysed), abs(value)) >= 1 else f"{value:.4f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Compare legacy AQR's statistics with a past run.")
    parser.add_argument("--batches", type=int, default=len(LOGGED_QUERIES), help="batches in all")
    parser.add_argument("--generators", type=int, default=4, help="untrained heads they fall on")
    options = parser.parse_args()
    # Spread over the log's records, which are sorted, where not all are wanted.
    places = np.linspace(0, len(LOGGED_QUERIES) - 1, options.batches).round().astype(int)
    queries = [LOGGED_QUERIES[place] for place in places]
    found = [
        statistics
        for seed in range(options.generators)
        for statistics in batch_statistics(
            build_legacy_head(seed), queries[seed :: options.generators], batch=4, seed=seed
        )
    ]
    print(
        f"R50 head at full size, {options.generators} untrained generators, {len(found)} batches of"
        f" 4 samples.\n\n{table(found)}\n\n"
        f"Features are random: {100 * POSITIVE_SHARE:.0f} % of BEV positive, cameras signed. The"
        " last six rows scale with\ntheir size, which is that of a standard normal: compare signs"
        " and orders only."
    )


if __name__ == "__main__":
    main()
