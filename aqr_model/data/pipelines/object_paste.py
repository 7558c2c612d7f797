"""Pasting objects of the ground-truth database into cloud and images together."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.utils import build_from_cfg
from mmdet3d.datasets import PIPELINES
from mmdet3d.datasets.builder import OBJECTSAMPLERS
from numpy.typing import NDArray

from aqr_model.data.boxes import corners, image_rectangles, points_inside
from aqr_model.data.errors import DataError
from aqr_model.data.pipelines.object_sampler import SampledObjects

Results = dict[str, Any]
_NOBODY = -1


@PIPELINES.register_module(name=["UnifiedObjectSample", "ObjectSample"], force=True)
class UnifiedObjectSample:
    """Paste database objects into the cloud, and their image patches into the images.

    Under mmdet3d's name too, which the public LiDAR config has: mmdet3d's own draws depend on what
    its process drew before, so that a resumed training would see other objects.

    Boxes and labels follow the scene's own; the scene's points inside a pasted box give way to the
    object's. In each view objects are painted from far to near, the scene's own (their rectangle of
    the original image) among the pasted ones, so that what is nearer lies on top. It must come
    before any other augmentation: patches fit the original images.

    Args:
        db_sampler: Config of the sampler, ``UnifiedDataBaseSampler`` by default.
        sample_2d: Paste into the images too.
        sample_method: ``depth``, the order of painting; kept for the public configs.
        modify_points: Also drop points that a pasted object hides: those whose pixel, in any view,
            is covered last by a pasted object that is not their own.
        mixup_rate: Weight of a painted rectangle over what is below; negative covers it fully.

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
        all_boxes = np.concatenate([scene_boxes, sampled.boxes])
        results["gt_bboxes_3d"] = boxes.new_box(all_boxes)
        results["gt_labels_3d"] = np.concatenate([labels, sampled.labels])
        points, owners = _merged(results["points"].tensor, sampled)
        if self.sample_2d:
            visible = self._paste_images(results, all_boxes, sampled, points.numpy(), owners)
            points = points[torch.from_numpy(visible)] if self.modify_points else points
        results["points"] = results["points"].new_point(points)
        return results

    def _paste_images(
        self,
        results: Results,
        boxes: NDArray[np.float32],
        sampled: SampledObjects,
        points: NDArray[np.float32],
        owners: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Paint every view in place; returns which points stay visible, if that is asked for."""
        box_corners = corners(boxes)
        visible = np.ones(len(points), dtype=bool)
        for view, (image, matrix) in enumerate(
            zip(results["img"], results["lidar2img"], strict=True)
        ):
            rectangles, depths = image_rectangles(box_corners, matrix, *image.shape[:2])
            order = self._painting_order(rectangles, depths, sampled, view)
            if not order:
                continue
            tops = self._paint(image, rectangles, order, sampled, view)
            if tops is not None:
                visible &= _unhidden(points, owners, matrix, tops)
        return visible

    @staticmethod
    def _painting_order(
        rectangles: NDArray[np.int64],
        depths: NDArray[np.float64],
        sampled: SampledObjects,
        view: int,
    ) -> list[int]:
        """Boxes to paint, far to near; the scene's own beyond all pasted ones change nothing."""
        num_own = len(rectangles) - len(sampled.boxes)
        shown = rectangles[:, 2] > rectangles[:, 0]
        for index in range(len(sampled.boxes)):
            shown[num_own + index] &= sampled.patch(index, view) is not None
        order = [int(i) for i in np.argsort(-depths, kind="stable") if shown[i]]
        first = next((k for k, i in enumerate(order) if i >= num_own), len(order))
        return order[first:]

    def _paint(
        self,
        image: NDArray[Any],
        rectangles: NDArray[np.int64],
        order: list[int],
        sampled: SampledObjects,
        view: int,
    ) -> NDArray[np.int16] | None:
        """Paint in place.

        Returns:
            The pasted object on top of each pixel, or -1, if ``modify_points`` needs it. [H, W]
        """
        num_own = len(rectangles) - len(sampled.boxes)
        original = image.copy()
        tops = np.full(image.shape[:2], _NOBODY, dtype=np.int16) if self.modify_points else None
        for index in order:
            left, top, right, bottom = rectangles[index]
            where = np.s_[top:bottom, left:right]
            patch = original[where] if index < num_own else sampled.patch(index - num_own, view)
            self._blend(image, where, patch)
            if tops is not None:
                tops[where] = max(index - num_own, _NOBODY)
        return tops

    def _blend(self, image: NDArray[Any], where: tuple[slice, slice], patch: Any) -> None:
        below = image[where]
        if patch.shape[:2] != below.shape[:2]:
            patch = cv2.resize(patch, below.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        patch = patch.astype(image.dtype, copy=False)
        if self.mixup_rate < 0:
            image[where] = patch
        else:
            image[where] = cv2.addWeighted(below, 1 - self.mixup_rate, patch, self.mixup_rate, 0)


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
    outside = np.ones(len(scene), dtype=bool)
    columns = scene[:, :3].copy(order="F")
    for box in sampled.boxes:
        outside[points_inside(columns, box)] = False
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
    pixels = np.floor(seen[front, :2] / seen[front, 2:])
    inside = ((pixels >= 0) & (pixels < [width, height])).all(axis=1)
    front, pixels = front[inside], pixels[inside].astype(np.int64)
    top = tops[pixels[:, 1], pixels[:, 0]]
    unhidden = np.ones(len(points), dtype=bool)
    unhidden[front] = (top == _NOBODY) | (top == owners[front])
    return unhidden
