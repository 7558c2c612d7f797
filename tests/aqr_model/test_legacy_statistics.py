"""A past run's statistics out of an untrained head at full size."""

import numpy as np
import pytest
import torch

from aqr_model import legacy_statistics as legacy
from aqr_model.aqr import project_to_cameras


def test_boxes_fill_the_logged_queries():
    rng = np.random.default_rng(0)
    counts = [legacy.num_boxes(queries, 4, rng) for queries in legacy.LOGGED_QUERIES * 20]
    fullest = np.array([max(one) for one in counts])
    assert (fullest * 10 + 900).tolist() == list(legacy.LOGGED_QUERIES * 20)
    assert min(map(min, counts)) >= 1
    assert np.mean(counts) == pytest.approx(22, abs=1)


def test_some_camera_nearly_always_sees_the_range_s_corner():
    """Where empty denoising slots stand; facts of the users' run say 98.8 %."""
    rng = np.random.default_rng(0)
    cameras = torch.tensor(np.stack([legacy.augmented_cameras(rng) for _ in range(300)])).float()
    corner = torch.tensor([-54.0, -54.0, -5.0]).expand(300, 1, 3)
    _, visible = project_to_cameras(
        corner, cameras, image_shape=legacy.IMAGE_SHAPE, shape=legacy.CAMERA_SHAPE[1:]
    )
    assert visible.any(dim=1).float().mean() > 0.95


@pytest.mark.parametrize(
    ("clamp", "residual", "logged_bev", "logged_camera"),
    [(1.5, 0.7, 0.070, 0.333), (2.5, 0.6, 0.106, 0.361)],
)
def test_one_share_of_empty_cells_explains_two_runs(
    monkeypatch, clamp, residual, logged_bev, logged_camera
):
    """The relative change counts the cells that are not empty: a quarter more of them would show.

    The share was read off the first run; the second one, with another clamp and residual, has the
    same data.
    """
    settings = {
        "renderer_config.max_weight_clamp": clamp,
        "modulator_config.residual_weight": residual,
    }
    monkeypatch.setattr(legacy, "OVERRIDES", {**legacy.OVERRIDES, **settings})
    (found,) = legacy.batch_statistics(legacy.build_legacy_head(0), [1400], batch=2, seed=0)
    assert found["aqr/modulation_effect_bev/relative_change"] == pytest.approx(logged_bev, rel=0.15)
    change = found["aqr/modulation_effect_pers/relative_change"]
    assert change == pytest.approx(logged_camera, rel=0.25)


def test_an_untrained_legacy_head_shows_the_log_s_numbers():
    head = legacy.build_legacy_head(seed=0)
    (found,) = legacy.batch_statistics(head, [1730], batch=4, seed=0)
    assert head.last_aqr["weights"].lidar.shape == (4, 1730)
    assert 0.04 < found["aqr/weight_map_bev_stats/mean"] < 0.08
    assert found["aqr/weight_map_bev_stats/max"] == 1.5
    assert found["aqr/weight_map_pers_stats/max"] > 20 * 1.5
    assert 0.06 < found["aqr/modulation_effect_bev/relative_change"] < 0.08
    assert 0.2 < found["aqr/modulation_effect_pers/relative_change"] < 0.4
    for weights in ("lidar_weights_stats", "camera_weights_stats"):
        assert 0.6 < found[f"aqr/{weights}/mean"] < 0.92
        assert 0.1 < found[f"aqr/{weights}/std"] < 0.25
    printed = legacy.table([found])
    assert "| camera map max |" in printed
    assert "| 70.83 |" in printed
