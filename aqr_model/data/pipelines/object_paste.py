"""Pasting objects of the ground-truth database into cloud and images together."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.utils import build_from_cfg
from mmdet3d.core.bbox import box_np_ops
from mmdet3d.datasets import PIPELINES
from mmdet3d.datasets.builder import OBJECTSAMPLERS
from numpy.typing import NDArray

from aqr_model.data.boxes import image_rectangles
from aqr_model.data.errors import DataError
from aqr_model.data.pipelines.object_sampler import SampledObjects

Results = dict[str, Any]
_Rectangle = tuple[tuple[slice, slice], int]  # of a pasted object, or of the scene's below 0
_NOBODY = -1


@PIPELINES.register_module(name=["UnifiedObjectSample", "ObjectSample"], force=True)
class UnifiedObjectSample:
    """Paste database objects into the cloud, and their image patches into the images.

    Under mmdet3d's name too, which the public LiDAR config has: mmdet3d's own draws depend on what
    its process drew before, so that a resumed training would see other objects.

    Boxes and labels follow the scene's own; the scene's points inside a pasted box give way to the
    object's. In each view pasted objects are painted from far to near; they cover or mix with what
    is there, also where an object of the scene is nearer. (The public code means to paint the
    scene's objects among them, but its crops are views of the very image it paints on, so that they
    change nothing. The public checkpoints were trained so.) It must come before any other
    augmentation: patches fit the original images.

    Args:
        db_sampler: Config of the sampler, ``UnifiedDataBaseSampler`` by default.
        sample_2d: Paste into the images too.
        sample_method: ``depth``, the order of painting; kept for the public configs.
        modify_points: Also drop points that a pasted object hides: those whose pixel, in any view,
            lies in the rectangle of a pasted object that is nearer than all others there and not
            their own.
        mixup_rate: Weight of a pasted patch over what is below; negative covers it fully.

    Source: CMT (ICCV 2023), cut-and-paste of both sensors.
    """

    def __init__(
        self,
        db_sampler: Mapping[str, Any],
        sample_2d: bool = False,
        sample_method: str = "depth",
        modify_points: bool = False,
        mixup_rate: float = -1,
    ) -> None:
        if sample_method != "depth":
            raise DataError(f"sample_method must be 'depth', but is {sample_method!r}.")
        if mixup_rate > 1:
            raise DataError(f"mixup_rate must be at most 1, but is {mixup_rate}.")
        if modify_points and not sample_2d:
            raise DataError("modify_points needs the images: sample_2d must be True with it.")
        config = {"type": "UnifiedDataBaseSampler", **db_sampler}
        self.db_sampler = build_from_cfg(config, OBJECTSAMPLERS)
        if sample_2d:
            self.db_sampler.require_patches()
        self.sample_2d = sample_2d
        self.modify_points = modify_points
        self.mixup_rate = mixup_rate

    def __call__(self, results: Results) -> Results:
        """Add objects; does nothing if there is nothing to add."""
        if self.sample_2d and "img" not in results:
            raise DataError("sample_2d needs images; load them before UnifiedObjectSample.")
        if "points" not in results:
            raise DataError("Objects are pasted into points; load them before UnifiedObjectSample.")
        boxes, labels = results["gt_bboxes_3d"], results["gt_labels_3d"]
        scene_boxes = boxes.tensor.numpy()
        sampled = self.db_sampler.sample(scene_boxes, labels, with_images=self.sample_2d)
        if sampled is None:
            return results
        all_boxes = boxes.new_box(np.concatenate([scene_boxes, sampled.boxes]))
        results["gt_bboxes_3d"] = all_boxes
        results["gt_labels_3d"] = np.concatenate([labels, sampled.labels])
        points, owners = _merged(results["points"].tensor, sampled)
        if self.sample_2d:
            corners = all_boxes.corners.numpy()
            visible = self._paste_images(results, corners, sampled, points.numpy(), owners)
            points = points[torch.from_numpy(visible)] if self.modify_points else points
        results["points"] = results["points"].new_point(points)
        return results

    def _paste_images(
        self,
        results: Results,
        corners: NDArray[np.float32],
        sampled: SampledObjects,
        points: NDArray[np.float32],
        owners: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Paint every view in place; returns which points stay visible, if that is asked for."""
        visible = np.ones(len(points), dtype=bool)
        num_own = len(corners) - len(sampled.boxes)
        for image, matrix in zip(results["img"], results["lidar2img"], strict=True):
            rectangles, depths = image_rectangles(corners, matrix, *image.shape[:2])
            far_to_near = [
                (np.s_[top:bottom, left:right], int(i) - num_own)
                for i in np.argsort(depths)[::-1]
                for left, top, right, bottom in [rectangles[i]]
                if right and (i < num_own or sampled.patches[i - num_own] is not None)
            ]
            for where, owner in far_to_near:
                if owner >= 0:
                    self._blend(image[where], sampled.patches[owner])
            if self.modify_points:
                tops = _tops(image.shape[:2], far_to_near)
                visible &= _unhidden(points, owners, matrix, tops)
        return visible

    def _blend(self, below: NDArray[Any], patch: Any) -> None:
        fitting = cv2.resize(patch, below.shape[1::-1])
        if self.mixup_rate >= 0:
            rate = self.mixup_rate
            fitting = cv2.addWeighted(below, 1 - rate, fitting, rate, 0, dtype=cv2.CV_64F)
        below[:] = fitting.astype(below.dtype)  # rounded down, as the public code does


def _tops(size: tuple[int, int], far_to_near: Sequence[_Rectangle]) -> NDArray[np.int16]:
    """The pasted object whose rectangle lies on top of each pixel, or -1. [H, W]."""
    tops = np.full(size, _NOBODY, dtype=np.int16)
    for where, owner in far_to_near:
        tops[where] = max(owner, _NOBODY)
    return tops


def _merged(
    points: torch.Tensor, sampled: SampledObjects
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Points of scene and objects, the scene's without those in pasted boxes, with their owners."""
    if points.shape[1] != sampled.points.shape[1]:
        raise DataError(
            "points_loader must read as many values a point as the scene has, "
            f"{points.shape[1]}, but reads {sampled.points.shape[1]}."
        )
    scene = points.numpy()
    inside = box_np_ops.points_in_rbbox(scene[:, :3], sampled.boxes)  # [N, S]
    outside = np.ones(len(scene), dtype=bool)
    outside[np.flatnonzero(inside) // len(sampled.boxes)] = False  # quicker than `any`
    kept = np.flatnonzero(outside)
    owners = np.concatenate([np.full(len(kept), _NOBODY), sampled.owners])
    # NumPy gathers narrow rows several times faster than torch.
    merged = np.concatenate([scene.take(kept, axis=0), sampled.points.numpy()])
    return torch.from_numpy(merged), owners


def _unhidden(
    points: NDArray[np.float32],
    owners: NDArray[np.int64],
    lidar2img: NDArray[np.float64],
    tops: NDArray[np.int16],
) -> NDArray[np.bool_]:
    """Points that no pasted object but their own covers in a view. [P]."""
    height, width = tops.shape
    seen = points[:, :3] @ lidar2img[:3, :3].T + lidar2img[:3, 3]
    front = np.flatnonzero(seen[:, 2] > 0)
    pixels = seen[front, :2] / seen[front, 2:]
    inside = ((pixels > 0) & (pixels < [width, height])).all(axis=1)
    front, pixels = front[inside], pixels[inside].astype(np.int64)
    top = tops[pixels[:, 1], pixels[:, 0]]
    unhidden = np.ones(len(points), dtype=bool)
    unhidden[front] = (top == _NOBODY) | (top == owners[front])
    return unhidden
