"""Simulated loss of a sensor."""

from typing import Any

import numpy as np
from mmdet3d.datasets import PIPELINES

from aqr_model.data.errors import DataError

_IMAGE_SHARE, _POINTS_SHARE = 0.25, 0.25


@PIPELINES.register_module()
class ModalMask3D:
    """Blank one sensor: images become zero, points collapse into the origin.

    The sensor is zeroed and not left out, because the fusion head needs both; the number of
    points stays.

    Args:
        mode: ``train``: images in a quarter of the samples, points in another quarter, else
            nothing. ``test``: always what ``mask_modal`` says.
        mask_modal: ``image`` or ``points``; for ``test`` only.

    Source: CMT (ICCV 2023), masked-modal training.
    """

    def __init__(self, mode: str = "test", mask_modal: str = "image") -> None:
        for name, value, allowed in (
            ("mode", mode, ("train", "test")),
            ("mask_modal", mask_modal, ("image", "points")),
        ):
            if value not in allowed:
                raise DataError(f"{name} must be one of {allowed}, but is {value!r}.")
        self.mode = mode
        self.mask_modal = mask_modal

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Blank in place."""
        if "img" not in results or "points" not in results:
            raise DataError(
                "ModalMask3D blanks one of two sensors, but the sample has one alone. Take the step"
                " out of the pipeline."
            )
        modal = self._drawn() if self.mode == "train" else self.mask_modal
        if modal == "image":
            results["img"] = [np.zeros_like(image) for image in results["img"]]
        elif modal == "points":
            results["points"].tensor.zero_()
        return results

    def _drawn(self) -> str | None:
        draw = np.random.rand()
        if draw > 1 - _IMAGE_SHARE:
            return "image"
        return "points" if draw > 1 - _IMAGE_SHARE - _POINTS_SHARE else None
