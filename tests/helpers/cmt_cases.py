"""Small CMT heads and inputs for tests."""

import aqr_model  # noqa: F401  (its shims come before any import of mmdet)

# isort: split
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cmt_fill import fill
from mmdet.models.builder import build_head
from mmdet3d.core.bbox import LiDARInstance3DBoxes

PUBLIC_CLASSES = (
    "car truck construction_vehicle bus trailer barrier motorcycle bicycle pedestrian traffic_cone"
).split()
CODE_WEIGHTS = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2]
PC_RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
AQR = {
    "voxel_size": (2.25, 3.375, 8.0),  # 6 x 4 cells of 8 x 8 voxels cover the range
    "enable_aqr": True,
    "aqr_config": {"type": "AQRWeightGenerator", "window_sizes": [3, 3], "num_heads": 2},
    "renderer_config": {"type": "WeightRenderer", "gaussian_sigma": 1.0, "max_weight_clamp": 1.5},
    "modulator_config": {"type": "FeatureModulator", "residual_weight": 0.5},
}


def golden() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parents[1] / "data" / "cmt_head_small.npz") as file:
        return dict(file)


def golden_config() -> dict[str, Any]:
    return json.loads(str(golden()["config"]))


def head_config(
    *,
    hidden_dim: int = 16,
    in_channels: int = 8,
    num_query: int = 9,
    num_layers: int = 2,
    num_heads: int = 2,
    feedforward_channels: int = 32,
    grid_size: tuple[int, int, int] = (48, 32, 40),
    voxel_size: tuple[float, float, float] = (0.1, 0.1, 0.2),
    max_num: int = 20,
    dropout: float = 0.0,
    tasks: list[list[str]] | None = None,
    self_attention: str = "PETRMultiheadAttention",
    **head: Any,
) -> dict[str, Any]:
    attention = {"embed_dims": hidden_dim, "num_heads": num_heads, "dropout": dropout}
    layer = {
        "type": "PETRTransformerDecoderLayer",
        "with_cp": False,
        "attn_cfgs": [
            {"type": self_attention} | attention,
            {"type": "PETRMultiheadFlashAttention"} | attention,
        ],
        "ffn_cfgs": {
            "type": "FFN",
            "embed_dims": hidden_dim,
            "feedforward_channels": feedforward_channels,
            "num_fcs": 2,
            "ffn_drop": 0.0,
            "act_cfg": {"type": "ReLU", "inplace": True},
        },
        "feedforward_channels": feedforward_channels,
        "operation_order": ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
    }
    names = [PUBLIC_CLASSES] if tasks is None else tasks
    return {
        "type": "CmtHead",
        "in_channels": in_channels,
        "hidden_dim": hidden_dim,
        "num_query": num_query,
        "downsample_scale": 8,
        "common_heads": {
            "center": (2, 2),
            "height": (1, 2),
            "dim": (3, 2),
            "rot": (2, 2),
            "vel": (2, 2),
        },
        "tasks": [{"num_class": len(task), "class_names": task} for task in names],
        "bbox_coder": {
            "type": "MultiTaskBBoxCoder",
            "post_center_range": [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            "pc_range": PC_RANGE,
            "max_num": max_num,
            "voxel_size": list(voxel_size),
            "num_classes": sum(map(len, names)),
        },
        "separate_head": {"type": "SeparateTaskHead", "init_bias": -2.19, "final_kernel": 1},
        "transformer": {
            "type": "CmtTransformer",
            "decoder": {
                "type": "PETRTransformerDecoder",
                "return_intermediate": True,
                "num_layers": num_layers,
                "transformerlayers": layer,
            },
        },
        "loss_cls": {
            "type": "FocalLoss",
            "use_sigmoid": True,
            "gamma": 2,
            "alpha": 0.25,
            "reduction": "mean",
            "loss_weight": 2.0,
        },
        "loss_bbox": {"type": "L1Loss", "reduction": "mean", "loss_weight": 0.25},
        "loss_heatmap": {"type": "GaussianFocalLoss", "reduction": "mean", "loss_weight": 1.0},
        "train_cfg": {
            "assigner": {
                "type": "HungarianAssigner3D",
                "cls_cost": {"type": "FocalLossCost", "weight": 2.0},
                "reg_cost": {"type": "BBox3DL1Cost", "weight": 0.25},
                "iou_cost": {"type": "IoUCost", "weight": 0.0},
                "pc_range": PC_RANGE,
                "code_weights": CODE_WEIGHTS,
            },
            "grid_size": list(grid_size),
            "voxel_size": list(voxel_size),
            "out_size_factor": 8,
            "code_weights": CODE_WEIGHTS,
        },
    } | head


def build(**config: Any) -> torch.nn.Module:
    return fill(build_head(head_config(**config)))


def golden_head(**head: Any) -> torch.nn.Module:
    size = golden_config()
    return build(
        feedforward_channels=4 * size["hidden_dim"],
        **{
            key: size[key]
            for key in (
                "hidden_dim in_channels num_query num_layers num_heads grid_size max_num".split()
            )
        },
        **head,
    )


def boxes_3d(tensor: torch.Tensor) -> LiDARInstance3DBoxes:
    return LiDARInstance3DBoxes(tensor, box_dim=9)


def golden_batch() -> tuple[list, list, list[dict], list, list]:
    data = golden()
    height, width = map(int, data["image_hw"])
    boxes = [boxes_3d(torch.from_numpy(data[f"gt_boxes_{i}"])) for i in range(2)]
    labels = [torch.from_numpy(data[f"gt_labels_{i}"]) for i in range(2)]
    metas = [
        {
            "lidar2img": list(data["lidar2img"][i]),
            "pad_shape": [(height, width, 3)] * 6,
            "box_type_3d": LiDARInstance3DBoxes,
            "gt_bboxes_3d": boxes[i],
            "gt_labels_3d": labels[i],
        }
        for i in range(2)
    ]
    features = [torch.from_numpy(data["pts_feat"])], [torch.from_numpy(data["img_feat"])]
    return *features, metas, boxes, labels


def small_batch(
    counts: tuple[int, ...] = (3, 1), *, seed: int = 0, num_classes: int = 10
) -> tuple[list, list, list[dict], list, list]:
    """BEV 4 x 6 (rows, columns), cameras 5 x 10 at stride 16, real calibration."""
    draw = torch.Generator().manual_seed(seed)
    batch = len(counts)
    boxes, labels, metas = [], [], []
    calibration = golden()["lidar2img"]
    for i, count in enumerate(counts):
        uniform = torch.rand(count, 9, generator=draw)
        uniform[:, :3] = uniform[:, :3] * torch.tensor([80.0, 80.0, 2.0]) - torch.tensor(
            [40.0, 40.0, 3.0]
        )
        uniform[:, 3:6] = uniform[:, 3:6] * 4 + 0.5
        boxes.append(boxes_3d(uniform))
        labels.append(torch.randint(num_classes, (count,), generator=draw))
        metas.append(
            {
                "lidar2img": list(calibration[i % 2]),
                "pad_shape": [(80, 160, 3)] * 6,
                "box_type_3d": LiDARInstance3DBoxes,
                "gt_bboxes_3d": boxes[-1],
                "gt_labels_3d": labels[-1],
            }
        )
    bev = torch.randn(batch, 8, 4, 6, generator=draw)
    cameras = torch.randn(batch * 6, 16, 5, 10, generator=draw)
    return [bev], [cameras], metas, boxes, labels
