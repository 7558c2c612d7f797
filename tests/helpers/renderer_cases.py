"""Query weights at and beyond the borders of small maps, for the users' renderer and for ours."""

from typing import Any

import numpy as np
import torch

# The users draw camera maps by two methods; by the others theirs stay 0.
CAMERA_METHODS = ("gaussian", "direct")
METHODS = ("gaussian", "bilinear", "direct", "distance_weighted")
BEV, CAMERAS = (9, 12), (2, 9, 12)
# Whole and broken places before, on and behind a border of n tokens.
_PLACES = (-3.0, -1.0, -0.999, -0.5, 0.0, 3.25)


def settings(method: str) -> dict[str, Any]:
    """Arguments that both take."""
    return {
        "render_method": method,
        "gaussian_sigma": 1.0,
        "max_weight_clamp": 1.5,
        "bev_feature_shape": BEV,
        "pers_feature_shape": CAMERAS,
    }


def _scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [B, Q] and cells [B, Q, 2]; a sample for each place, so that none hides another."""
    places = []
    for row in (*_PLACES, *(BEV[0] - 1 - place for place in _PLACES)):
        for col in (*_PLACES, *(BEV[1] - 1 - place for place in _PLACES)):
            places.append([[row, col], [4.0, 6.0]])  # and one that is inside
    cells = torch.tensor(places)
    weights = torch.from_numpy(np.random.RandomState(3).uniform(0.1, 0.9, cells.shape[:2])).float()
    return weights, cells


def draw(renderer: Any) -> dict[str, np.ndarray]:
    """Both maps."""
    weights, cells = _scene()
    views = torch.cat([torch.ones(*weights.shape, 1), cells], dim=-1)
    bev = renderer.render_bev_weights(weights.clone(), cells)
    camera = renderer.render_perspective_weights(weights.clone(), views)
    maps = {"bev": bev.numpy(), "camera": camera.numpy()}
    return maps if renderer.render_method in CAMERA_METHODS else {"bev": maps["bev"]}
