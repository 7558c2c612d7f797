"""Pictures of AQR on one sample: the BEV map, the camera maps on their images, the histograms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from aqr_model.aqr import BevGrid

_COLOURS = "RdBu_r"  # blue turns features down, white leaves them, red turns them up
_LEAST_SPAN = 0.05  # of the colours around 1: what moves less is not worth a colour
_LARGEST_ALPHA = 0.6
_NEAREST_M = 0.1
_BOX_EDGES = (
    (0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7),
)  # fmt: skip
_HISTOGRAMS = {
    "lidar_weights_stats": "LiDAR weights",
    "camera_weights_stats": "camera weights",
    "weight_map_bev_stats": "BEV map",
    "weight_map_pers_stats": "camera maps",
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that a picture shows, in NumPy.

    N points, G boxes, V views, Q queries.
    """

    title: str
    points: np.ndarray  # LiDAR frame, metres. [N, >= 2]
    corners: np.ndarray  # of the ground-truth boxes, as mmdet3d orders them. [G, 8, 3]
    images: np.ndarray  # RGB of the padded images, 0 to 255. [V, H, W, 3]
    cameras: Sequence[str]  # names. [V]
    lidar2img: np.ndarray  # metres to homogeneous pixels. [V, 4, 4]
    grid: BevGrid
    bev_map: np.ndarray  # [rows, cols]
    camera_maps: np.ndarray  # [V, h, w]
    queries: np.ndarray  # x, y of the queries on the grid, metres. [Q, 2]
    weights: np.ndarray  # their LiDAR weights. [Q]
    histograms: Mapping[str, Sequence[float]]  # see `aqr.histograms`
    max_weight_clamp: float


def draw(scene: Scene) -> Figure:
    """Draw a sample: BEV map, histograms, and every camera with its map over it."""
    views = len(scene.images)
    across = 3
    height, width = scene.images.shape[1:3]
    down = -(-views // across)
    figure = Figure(figsize=(12, 6.2 + down * (4 * height / width + 0.3)), layout="constrained")
    FigureCanvasAgg(figure)
    rows: Any = figure.subfigures(2, 1, height_ratios=[6.2, down * (4 * height / width + 0.3)])
    above, below = rows
    above.suptitle(scene.title, fontsize=11)
    left, right = above.subfigures(1, 2)
    colours = _colours(scene)
    axes = left.subplots()
    mappable = _draw_bev(axes, scene, colours)
    left.colorbar(mappable, ax=axes, shrink=0.8, label="map M (1 changes nothing)")
    _draw_histograms(right, scene)
    for view, panel in enumerate(below.subplots(down, across, squeeze=False).flat):
        panel.set_axis_off()
        if view < views:
            _draw_camera(panel, scene, view, colours)
    return figure


def save(figure: Figure, path: Path, *, dpi: int = 100) -> Path:
    """Write a figure as a PNG file; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    return path


def _colours(scene: Scene) -> Normalize:
    """One scale for all maps, as wide below 1 as above."""
    return Normalize(1 - _span(scene), 1 + _span(scene))


def _span(scene: Scene) -> float:
    """How far the maps go from 1."""
    furthest = [float(np.abs(m - 1).max()) for m in (scene.bev_map, scene.camera_maps)]
    return max(_LEAST_SPAN, *furthest)


def _draw_bev(axes: Axes, scene: Scene, colours: Normalize) -> Any:
    """The map over its cells, points, boxes, and queries by their LiDAR weight."""
    rows, cols = scene.bev_map.shape
    x0, y0 = scene.grid.point_cloud_range[:2]
    dx, dy = scene.grid.cell_size
    extent = (x0, x0 + cols * dx, y0, y0 + rows * dy)
    shown = axes.imshow(
        scene.bev_map, origin="lower", extent=extent, cmap=_COLOURS, norm=colours, zorder=0
    )
    axes.plot(scene.points[:, 0], scene.points[:, 1], ",", color="0.25", alpha=0.5, zorder=1)
    axes.add_collection(
        LineCollection(list(_footprints(scene.corners)), colors="lime", linewidths=1.2, zorder=3)
    )
    x, y = scene.queries.T
    axes.scatter(
        x, y, s=7, c=scene.weights, cmap="viridis", vmin=0, vmax=1, edgecolors="none", zorder=2
    )
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_xlabel("x [m]")
    axes.set_ylabel("y [m]")
    axes.set_title("BEV map; boxes green, queries by LiDAR weight (dark 0, yellow 1)", fontsize=8)
    return shown


def _footprints(corners: np.ndarray) -> np.ndarray:
    """The ground rectangle of each box, closed. [G, 8, 3] -> [G, 5, 2]."""
    return corners[:, [0, 3, 7, 4, 0], :2]


def _draw_camera(axes: Axes, scene: Scene, view: int, colours: Normalize) -> None:
    """One image, its map over it, and the boxes before it."""
    image = scene.images[view]
    height, width = image.shape[:2]
    rows, cols = scene.camera_maps.shape[1:]
    axes.imshow(image.astype(np.uint8))
    # Token i stands at pixel i * stride.
    step_y, step_x = height / rows, width / cols
    extent = (-step_x / 2, width - step_x / 2, height - step_y / 2, -step_y / 2)
    weight_map = scene.camera_maps[view]
    # Where the map changes nothing, the image shows through.
    strength = np.abs(weight_map - 1) / _span(scene)
    axes.imshow(
        weight_map,
        extent=extent,
        cmap=_COLOURS,
        norm=colours,
        alpha=_LARGEST_ALPHA * strength,
        interpolation="nearest",
    )
    segments = list(_wireframes(scene.corners, scene.lidar2img[view]))
    axes.add_collection(LineCollection(segments, colors="lime", linewidths=0.7))
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_title(scene.cameras[view], fontsize=9)


def _wireframes(corners: np.ndarray, lidar2img: np.ndarray) -> np.ndarray:
    """Edges of the boxes that lie before the camera as a whole. -> [edges, 2, 2] pixels."""
    homogeneous = np.concatenate([corners, np.ones((*corners.shape[:2], 1))], axis=-1)
    image = homogeneous @ lidar2img.T
    image = image[(image[..., 2] > _NEAREST_M).all(axis=1)]
    pixels = image[..., :2] / image[..., 2:3]
    return pixels[:, np.array(_BOX_EDGES)].reshape(-1, 2, 2)


def _draw_histograms(figure: Any, scene: Scene) -> None:
    """Shares of weights and map values in equal bins."""
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, _HISTOGRAMS.items(), strict=True):
        shares = scene.histograms[f"aqr/{name}/histogram"]
        end = 1.0 if "weights" in name else scene.max_weight_clamp
        axes.stairs(shares, np.linspace(0, end, len(shares) + 1), fill=True, color="0.45")
        neutral = 0.5 if "weights" in name else 1.0
        axes.axvline(neutral, color="tab:red", linewidth=0.8)
        axes.set_title(title, fontsize=9)
        axes.set_ylabel("share", fontsize=8)
        axes.tick_params(labelsize=7)
