"""Pictures of AQR for a checkpoint and a sample, and during a training."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from mmdet3d.models import build_model
from recorder import Recorder
from typer.testing import CliRunner

from aqr_model.aqr import BevGrid
from aqr_model.engine.monitor import AqrMonitor
from aqr_model.engine.weights.states import save_weights
from aqr_model.report.pictures import Scene, draw, save
from aqr_model.report.viewer import Viewer
from aqr_model.visualize import app


@pytest.fixture(scope="module")
def model(nano_cfg):
    """A nano detector whose predictor is not silent."""
    torch.manual_seed(0)
    built = build_model(nano_cfg().model)
    built.init_weights()
    torch.nn.init.normal_(built.pts_bbox_head.aqr_weight_generator.weight_predictor.weight)
    return built


@pytest.fixture(scope="module")
def looked(nano_cfg, model):
    return Viewer(nano_cfg()).look(model.eval(), 2)


def picture(path):
    return cv2.imread(str(path))


def test_scene_holds_the_sample(nano_cfg, model, looked):
    scene, values = looked
    cfg = nano_cfg()
    viewer = Viewer(cfg)
    assert scene.images.shape == (6, 128, 320, 3)
    assert scene.bev_map.shape == (32, 32)
    assert scene.camera_maps.shape == (6, 8, 20)
    info = viewer.dataset.data_infos[2]
    assert info["token"] in scene.title
    assert len(scene.corners) == len(viewer.dataset.get_ann_info(2)["gt_labels_3d"]) > 0
    # The picture of the first camera is its file, resized and cut: colours and rows agree.
    shown = cv2.imread(viewer.dataset.get_data_info(2)["img_filename"][0])[..., ::-1]
    shown = cv2.resize(shown, None, fx=0.82, fy=0.82)
    rows = shown[-128:, : scene.images.shape[2]]
    assert np.abs(scene.images[0][:, : rows.shape[1]] - rows).mean() < 8
    assert values["aqr/lidar_weights_stats/std"] > 0
    assert "aqr/weight_map_bev_stats/mean_in_boxes" in values
    assert sum(values["aqr/lidar_weights_stats/histogram"]) == pytest.approx(1.0)
    head = model.pts_bbox_head
    assert head.last_aqr is None
    assert not head.collect_aqr


def test_map_is_that_of_the_queries_at_their_metres(looked):
    scene, _ = looked
    start, size = np.array(scene.grid.point_cloud_range[:2]), np.array(scene.grid.cell_size)
    x, y = ((scene.queries - start) / size - 0.5).T
    rows, cols = np.mgrid[:32, :32]
    away = (rows[..., None] - y) ** 2 + (cols[..., None] - x) ** 2
    wanted = 1 + ((2 * scene.weights - 1) * np.exp(-away / 2)).sum(axis=-1)
    np.testing.assert_allclose(scene.bev_map, wanted.clip(0, 1.5), atol=1e-4)


def plain_scene(**changes):
    """A scene that does nothing: neutral maps, grey images, no boxes."""
    shares = dict.fromkeys(
        (
            f"aqr/{name}/histogram"
            for name in (
                "lidar_weights_stats",
                "camera_weights_stats",
                "weight_map_bev_stats",
                "weight_map_pers_stats",
            )
        ),
        [0.05] * 20,
    )
    scene = Scene(
        title="plain",
        points=np.zeros((0, 3)),
        corners=np.zeros((0, 8, 3)),
        images=np.full((2, 60, 100, 3), 128.0),
        cameras=["LEFT", "RIGHT"],
        lidar2img=np.tile(np.eye(4), (2, 1, 1)),
        grid=BevGrid(point_cloud_range=(-8, -6, -5, 8, 6, 3), voxel_size=(0.5, 0.5), stride=2),
        bev_map=np.ones((12, 16)),
        camera_maps=np.ones((2, 6, 10)),
        queries=np.zeros((0, 2)),
        weights=np.zeros(0),
        histograms=shares,
        max_weight_clamp=1.5,
    )
    return replace(scene, **changes)


@pytest.mark.parametrize(("value", "stronger"), [(1.4, 2), (0.6, 0)])  # BGR: red up, blue down
def test_colours_say_up_and_down(tmp_path, value, stronger):
    maps = np.ones((2, 6, 10))
    maps[1] = value
    paths = [
        save(draw(plain_scene(camera_maps=each)), tmp_path / name)
        for each, name in ((maps, "tinted.png"), (np.ones_like(maps), "plain.png"))
    ]
    tinted, plain = (picture(path).astype(int) for path in paths)
    assert tinted.shape == plain.shape
    lower = slice(int(0.72 * len(tinted)), None)  # the images stand at the bottom
    left, right = slice(50, 380), slice(450, 780)
    assert (plain[lower, left] == tinted[lower, left]).mean() > 0.99
    change = (tinted - plain)[lower, right].mean(axis=(0, 1))
    assert change.argmax() == stronger
    assert np.ptp(change) > 10


def test_boxes_before_a_camera_are_drawn_into_it(tmp_path):
    lidar2img = np.array([[50, 0, 50.0, 0], [0, 50, 30, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    box = np.stack(np.meshgrid([-1, 1], [-1, 1], [4, 6]), axis=-1).reshape(1, 8, 3).astype(float)
    matrices = np.stack([lidar2img, lidar2img * [[1], [1], [-1], [1]]])  # the other looks away
    drawn = picture(save(draw(plain_scene(corners=box, lidar2img=matrices)), tmp_path / "a.png"))
    lower = drawn[int(0.72 * len(drawn)) :].astype(int)
    green = (lower[..., 1] - lower[..., 0] > 60) & (lower[..., 1] - lower[..., 2] > 60)
    assert green[:, 50:380].sum() > 50
    assert green[:, 450:780].sum() == 0


def test_command_writes_picture_and_numbers(nano_cfg, model, tmp_path):
    cfg = nano_cfg()
    cfg.dump(str(tmp_path / "config.py"))
    save_weights(model, tmp_path / "weights.pth")
    token = Viewer(cfg).dataset.data_infos[1]["token"]
    arguments = [str(tmp_path / "config.py"), str(tmp_path / "weights.pth"), "--sample", token]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--dpi", "50"])
    assert result.exit_code == 0, result.output
    assert picture(tmp_path / "out" / "sample_00001.png").shape[1] == 600
    values = json.loads((tmp_path / "out" / "sample_00001.json").read_text())
    assert (
        values["aqr/effective/max_weight_clamp"]
        == cfg.model.pts_bbox_head.renderer_config["max_weight_clamp"]
    )


def test_there_must_be_aqr_and_the_sample(nano_cfg):
    cfg = nano_cfg()
    with pytest.raises(ValueError, match=r"token or a number from 0 to 5, but got '6'"):
        Viewer(cfg).index("6")
    cfg.model.pts_bbox_head.enable_aqr = False
    with pytest.raises(ValueError, match=r"`model\.pts_bbox_head\.enable_aqr` must be True"):
        Viewer(cfg)


def test_pictures_during_a_training(nano_cfg, model, tmp_path):
    cfg = nano_cfg(picture_interval=2, picture_sample=1)
    cfg.model.pts_bbox_head.visualization_interval = 0
    report = Recorder()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monitor = AqrMonitor(model, cfg, report, workdir=tmp_path)
    for step in range(5):
        monitor.before_step(step)
        monitor.after_backward(step)
    names = [path.name for path in report.files]
    assert names == ["aqr_0000002.png", "aqr_0000004.png"]
    assert all(picture(path) is not None for path in report.files)
    assert report.logs == {}
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
