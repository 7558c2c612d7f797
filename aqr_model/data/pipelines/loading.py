"""Reading a sample's files. Damage is reported by file name; the dataset adds the sample."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from mmdet3d.datasets import PIPELINES
from mmdet3d.datasets.pipelines import loading
from numpy.typing import NDArray

from aqr_model.data.errors import DataError, SampleFileError

Results = dict[str, Any]
_COLOUR = {"unchanged": cv2.IMREAD_UNCHANGED, "color": cv2.IMREAD_COLOR}


@PIPELINES.register_module(force=True)
class LoadPointsFromFile(loading.LoadPointsFromFile):
    """mmdet3d's step, with checked files."""

    def _load_points(self, pts_filename: str) -> NDArray[np.float32]:
        return _checked_points(super()._load_points, pts_filename, self.load_dim)


@PIPELINES.register_module(force=True)
class LoadPointsFromMultiSweeps(loading.LoadPointsFromMultiSweeps):
    """mmdet3d's step, with checked files.

    With fewer ``sweeps_num`` than a sample has, training draws among them unless ``test_mode=True``
    asks for the nearest; evaluation always takes the nearest, because a score must not depend on
    a draw.
    """

    def __call__(self, results: Results) -> Results:
        """Add the points of earlier sweeps, in the keyframe's LiDAR frame, with their age."""
        if "ann_info" not in results:
            results["sweeps"] = results["sweeps"][: self.sweeps_num]
        return super().__call__(results)

    def _load_points(self, pts_filename: str) -> NDArray[np.float32]:
        return _checked_points(super()._load_points, pts_filename, self.load_dim)


@PIPELINES.register_module(force=True)
class LoadMultiViewImageFromFiles:
    """Read the images of all cameras, BGR, into a list of [H, W, 3].

    Args:
        to_float32: Convert; later steps do it where they need it, so rather not.
        color_type: ``unchanged`` or ``color``.
    """

    def __init__(self, to_float32: bool = False, color_type: str = "unchanged") -> None:
        if color_type not in _COLOUR:
            raise DataError(f"color_type must be one of {list(_COLOUR)}, but is {color_type!r}.")
        self.to_float32 = to_float32
        self.flag = _COLOUR[color_type]

    def __call__(self, results: Results) -> Results:
        """Add the images and mmdet3d's usual keys about them."""
        names = results["img_filename"]
        images = [read_image(name, self.flag) for name in names]
        if self.to_float32:
            images = [image.astype(np.float32) for image in images]
        shape = (*images[0].shape, len(images))
        results |= {
            "filename": names,
            "img": images,
            "img_shape": shape,
            "ori_shape": shape,
            "pad_shape": shape,
            "scale_factor": 1.0,
            "img_norm_cfg": {
                "mean": np.zeros(3, dtype=np.float32),
                "std": np.ones(3, dtype=np.float32),
                "to_rgb": False,
            },
        }
        return results


def read_image(name: str, flag: int = cv2.IMREAD_UNCHANGED) -> NDArray[Any]:
    """Read a colour image, BGR. [H, W, 3].

    Raises:
        SampleFileError: If the file is missing, cut short or no colour image.
    """
    try:
        content = np.fromfile(name, dtype=np.uint8)
        if _cut_short(content.tobytes()):
            raise SampleFileError(f"{name} must be a whole image, but is cut short.")
        image = cv2.imdecode(content, flag)
    except (OSError, cv2.error) as error:
        raise SampleFileError(f"{name} cannot be read: {error}.") from error
    if image is None or image.ndim != 3:
        raise SampleFileError(f"{name} must be a colour image, but does not decode as one.")
    return image


def _cut_short(content: bytes) -> bool:
    """Tell whether the end is missing; decoders fill it with grey and say nothing.

    In a JPEG file every scan (FF DA) is followed by the end mark (FF D9) at some point, and neither
    occurs inside compressed data. A PNG file ends with the chunk IEND.
    """
    if content.startswith(b"\xff\xd8"):
        return content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda")
    return content.startswith(b"\x89PNG") and b"IEND" not in content[-64:]


def _checked_points(
    load: Callable[[str], NDArray[np.float32]], name: str, num_values: int
) -> NDArray[np.float32]:
    try:
        points = load(name)
    except (OSError, ValueError) as error:
        raise SampleFileError(f"{name} cannot be read: {error}.") from error
    if points.size == 0:
        raise SampleFileError(f"{name} must hold points, but is empty.")
    if points.size % num_values:
        raise SampleFileError(
            f"{name} must hold {num_values} float32 values a point, but holds {points.size} "
            "values; it is cut short or of another format."
        )
    if not np.isfinite(points).all():
        raise SampleFileError(f"{name} must hold finite values only, but does not.")
    return points
