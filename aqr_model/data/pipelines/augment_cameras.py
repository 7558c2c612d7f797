"""Augmentation of the scene in space where cameras alone see it."""

import logging
from collections.abc import Sequence

import numpy as np
from mmdet3d.datasets import PIPELINES

from aqr_model.data.errors import DataError
from aqr_model.data.pipelines.augment3d import (
    GlobalRotScaleTransAll,
    Results,
    flip_scene,
    move_boxes,
    move_cameras,
    turned,
)

_LOGGER = logging.getLogger(__name__)


@PIPELINES.register_module()
class GlobalRotScaleTransImage(GlobalRotScaleTransAll):
    """Turn about z, scale and mirror the boxes, and the cameras with them; images stay.

    Args:
        rot_range: Lowest and highest angle, radians.
        scale_ratio_range: Lowest and highest scale.
        translation_std: Must be zeros: the public step reads no other.
        reverse_angle: Turn the boxes by the negative angle, away from the cameras, as the public
            config does on mmdet3d 1.0. It was made for older versions, whose boxes turn clockwise.
        training: Unused; public configs carry it.
        flip_dx_ratio: Probability that x changes its sign.
        flip_dy_ratio: Probability that y changes its sign.

    Source: junjie18/CMT, commit d3b1d78, ``transform_3d.py``, for names and the order of draws.
    """

    def __init__(
        self,
        rot_range: Sequence[float] = (-0.3925, 0.3925),
        scale_ratio_range: Sequence[float] = (0.95, 1.05),
        translation_std: Sequence[float] = (0.0, 0.0, 0.0),
        reverse_angle: bool = False,
        training: bool = True,
        flip_dx_ratio: float = 0.0,
        flip_dy_ratio: float = 0.0,
    ) -> None:
        super().__init__(rot_range, scale_ratio_range, translation_std)
        if any(translation_std):
            raise DataError(
                f"translation_std must be zeros for cameras alone, but is {list(translation_std)}."
            )
        for ratio in (flip_dx_ratio, flip_dy_ratio):
            if not 0 <= ratio <= 1:
                raise DataError(f"A flip ratio must lie in [0, 1], but is {ratio}.")
        if reverse_angle:
            _LOGGER.warning(
                "GlobalRotScaleTransImage with reverse_angle=True turns boxes and cameras in"
                " opposite directions: the boxes leave the objects in the images. The public"
                " camera config asks for it. Set reverse_angle=False to turn both together."
            )
        self.reverse_angle = reverse_angle
        self.ratios = {"vertical": flip_dx_ratio, "horizontal": flip_dy_ratio}

    def __call__(self, results: Results) -> Results:
        """Augment boxes and camera matrices in place."""
        if "points" in results:
            raise DataError(
                "GlobalRotScaleTransImage moves no points, but the sample has some: they would no"
                " longer stand where the boxes are. Use GlobalRotScaleTransAll."
            )
        angle = np.random.uniform(low=self.rot_range[0], high=self.rot_range[1])
        scale = np.random.uniform(low=self.scale_ratio_range[0], high=self.scale_ratio_range[1])
        of_boxes = -angle if self.reverse_angle else angle
        boxes = results["gt_bboxes_3d"].tensor
        move_boxes(boxes, turned(of_boxes, scale), scale=scale, angle=of_boxes)
        move_cameras(results, turned(angle, scale))
        for direction, ratio in self.ratios.items():
            if np.random.rand() < ratio:
                flip_scene(results, direction)
        return results
