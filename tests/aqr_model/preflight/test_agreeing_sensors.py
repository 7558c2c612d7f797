"""A config whose head, data sets and pipelines disagree about sensors is refused by name."""

from pathlib import Path

import pytest
from mmcv import Config
from typer.testing import CliRunner

from aqr_model import evaluate, train, visualize
from aqr_model.preflight.findings import Findings
from aqr_model.preflight.reading import load_config
from aqr_model.preflight.sensors import check_sensors
from aqr_model.user_errors import USER_ERROR

CONFIGS = Path("aqr_model/configs").resolve()
USERS = Path("tests/data/users")


def changed(name: str, **overrides) -> Config:
    cfg = load_config(CONFIGS / f"cmt_{name}.py")
    cfg.merge_from_dict(overrides)
    return cfg


def found(cfg: Config, splits=("train", "val")) -> Findings:
    findings = Findings()
    check_sensors(cfg, findings, splits)
    return findings


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_the_shipped_configs_agree(path):
    assert found(load_config(path)) == Findings()


def test_configs_in_the_users_vocabulary_agree():
    assert found(load_config(USERS / "r50_base.py")) == Findings()


@pytest.mark.parametrize(
    ("name", "overrides", "key", "said"),
    [
        (
            "lidar_nano",
            {"data.val.modality.use_lidar": False},
            "data.val.modality.use_lidar",
            "must be True, because CmtLidarHead reads lidar",
        ),
        (
            "camera_vov_1600x640_cbgs",
            {"data.train.dataset.modality.use_camera": False},
            "data.train.dataset.modality.use_camera",
            "must be True, because CmtImageHead reads camera",
        ),
        (
            "nano",
            {"data.train.modality": {"use_camera": False}},
            "data.train.modality.use_camera",
            "must be True, because CmtHead reads camera",
        ),
        (
            "lidar_nano",
            {"data.train.pipeline.9.keys": ["points", "img", "gt_bboxes_3d", "gt_labels_3d"]},
            "data.train.pipeline.9.keys",
            "must hold 'points' and nothing of another sensor, because CmtLidarHead reads lidar",
        ),
        (
            "camera_nano",
            {"data.val.pipeline.1.transforms.4.keys": ["points"]},
            "data.val.pipeline.1.transforms.4.keys",
            "must hold 'img' and nothing of another sensor",
        ),
        (
            "camera_nano",
            {"data.train.pipeline.2": {"type": "ModalMask3D", "mode": "train", "_delete_": True}},
            "data.train.pipeline.2",
            "ModalMask3D blanks one of two sensors, and CmtImageHead reads camera alone",
        ),
    ],
)
def test_where_sensors_disagree_is_named(name, overrides, key, said):
    cfg = changed(name, **overrides)
    (error,) = found(cfg).errors
    assert error.key == key
    assert said in error.text


def test_all_that_disagrees_is_said_at_once():
    cfg = load_config(CONFIGS / "cmt_nano.py")
    cfg.model.pts_bbox_head.type = "CmtImageHead"
    cfg.data.val.modality = {"use_lidar": True}
    assert len(found(cfg).errors) == 3  # both pipelines' keys, and a flag
    assert len(found(cfg, ("train",)).errors) == 1


def test_what_nobody_reads_is_a_warning():
    """The public camera config sets `use_lidar` and loads no points."""
    cfg = changed("camera_nano", **{"data.train.modality.use_lidar": True})
    points = {"type": "LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": 5}
    cfg.data.train.pipeline.insert(0, points)
    findings = found(cfg)
    assert findings.errors == []
    assert [str(warning) for warning in findings.warnings] == [
        "data.train.modality.use_lidar: changes nothing: CmtImageHead reads no lidar.",
        "data.train.pipeline.0: (LoadPointsFromFile) reads files for nothing: CmtImageHead reads no"
        " lidar.",
    ]


def test_the_commands_say_so_before_they_start(tmp_path):
    config = tmp_path / "routed_lidar.py"
    config.write_text(
        f"_base_ = [{str(CONFIGS / 'cmt_lidar_nano.py')!r}]\n"
        "model = dict(pts_bbox_head=dict(enable_aqr=True))\n"
    )
    plain = str(CONFIGS / "cmt_lidar_nano.py")
    for module, arguments, said in (
        (train, [str(config), "--work-dir", str(tmp_path / "work")], "this head reads lidar alone"),
        (evaluate, [str(config), "no_such.pth"], "this head reads lidar alone"),
        (visualize, [plain, "no_such.pth"], "detectors of one sensor have none"),
    ):
        result = CliRunner().invoke(module.app, arguments)
        assert result.exit_code == USER_ERROR, result.output
        assert result.stderr.startswith("error: ")
        assert said in result.stderr
    assert not (tmp_path / "work").exists()
