from pathlib import Path

import pytest
from mmcv import Config

import aqr_model  # noqa: F401  (its shims, before a test imports mmdet3d)


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory) -> Path:
    """A small shifted dataset with its info files: 8 training and 6 validation keyframes."""
    from aqr_model.data.prepare import prepare
    from aqr_model.data.synthetic import SyntheticConfig, write_dataset

    root = tmp_path_factory.mktemp("synthetic") / "shifted"
    config = SyntheticConfig(
        domain="shifted", train_scenes=4, val_scenes=3, keyframes=2, seed=5, azimuths=120
    )
    write_dataset(root, config)
    prepare(root, "v1.0-synth")
    return root


@pytest.fixture(scope="session")
def nano_cfg(synthetic_root):
    """The AQR nano config on that dataset: 6 steps, rungs after 2, 4 and 6, from scratch."""

    def make(name: str = "cmt_aqr_nano.py", **overrides) -> Config:
        cfg = Config.fromfile(f"aqr_model/configs/{name}")
        for split in ("train", "val"):
            cfg.data[split].data_root = str(synthetic_root)
            cfg.data[split].ann_file = str(synthetic_root / f"nuscenes_infos_synth_{split}.pkl")
        settings = {
            "total_epochs": 1.5,
            "load_from": None,
            "evaluation": {"rungs": [1 / 3, 2 / 3, 1.0], "val_shares": [0.5, 0.5, 1.0]},
            "log_config.interval": 2,
            "checkpoint_config.interval": 100,
            "data.workers_per_gpu": 0,
            "model.pts_bbox_head.visualization_interval": 3,
        }
        cfg.merge_from_dict({**settings, **overrides})
        return cfg

    return make


@pytest.fixture(scope="session")
def jittered_base(tmp_path_factory) -> Path:
    """The pretrained nano detector, each weight moved by up to a thousandth.

    The published weights are rounded to half precision, and stand on edges (a value of exactly
    zero, two that are equal) from which a rounding of 1e-7 leads to another gradient. A comparison
    up to rounding must not start there.
    """
    import torch

    content = torch.load("aqr_model/checkpoints/cmt_nano.pth", weights_only=True)
    draw = torch.Generator().manual_seed(0)
    for value in content["state_dict"].values():
        if value.is_floating_point():
            value.mul_(1 + 1e-3 * (2 * torch.rand(value.shape, generator=draw) - 1))
    path = tmp_path_factory.mktemp("base") / "cmt_nano_jittered.pth"
    torch.save(content, path)
    return path
