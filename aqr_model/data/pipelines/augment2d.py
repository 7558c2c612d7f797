"""Augmentation and normalisation of the camera images, with their projections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import mmcv
import numpy as np
from mmdet3d.datasets import PIPELINES
from numpy.typing import NDArray

from aqr_model.data.errors import DataError

Floats = NDArray[np.float64]
Results = dict[str, Any]
_CONF_KEYS = ("H", "W", "final_dim", "resize_lim", "bot_pct_lim", "rot_lim", "rand_flip")


@dataclass(frozen=True, kw_only=True)
class ImageMotion:
    """How a camera image becomes the network's input.

    Attributes:
        scale: Resize factor of the projections.
        columns: Width of the resized image, rounded down to whole pixels.
        rows: Its height.
        left: Columns cut off at the left after resizing.
        top: Rows cut off at the top after resizing; below 0, rows are added.
        flip: Mirror left and right.
        degrees: Turn about the centre, counter-clockwise as seen.
    """

    scale: float
    columns: int
    rows: int
    left: int
    top: int
    flip: bool
    degrees: float

    def matrix(self, width: int, height: int) -> Floats:
        """Map (x, y, 1) of the source to the output of a size; pixel i spans [i, i + 1]. [3, 3]."""
        moved = np.array(
            [[self.scale, 0, -self.left], [0, self.scale, -self.top], [0, 0, 1]], dtype=np.float64
        )
        if self.flip:
            moved = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]) @ moved
        return np.vstack([self._turn(width, height), [0, 0, 1]]) @ moved

    def apply(self, image: NDArray[Any], width: int, height: int) -> NDArray[Any]:
        """Resize, cut, mirror and turn an image; black where the source ends. [height, width, 3].

        The resized image has whole pixels, the projections keep the exact scale: at the right and
        the lower border the image lies up to a pixel off. The public checkpoints were trained so.
        """
        resized = cv2.resize(image, (self.columns, self.rows))
        moved = np.zeros((height, width, 3), dtype=image.dtype)
        cut = resized[max(self.top, 0) : self.top + height, self.left : self.left + width]
        first = max(-self.top, 0)
        moved[first : first + len(cut), : cut.shape[1]] = cut
        if self.flip:
            moved = cv2.flip(moved, 1)
        if not self.degrees:
            return moved
        return cv2.warpAffine(moved.astype(np.float32), self._turn(width, height), (width, height))

    def _turn(self, width: int, height: int) -> Floats:
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), self.degrees, 1.0)
        return np.asarray(turn, dtype=np.float64)


@PIPELINES.register_module()
class ResizeCropFlipImage:
    """Resize, crop, flip and turn the views, all alike, and their projections with them.

    Args:
        data_aug_conf: ``H`` and ``W`` of the camera images, ``final_dim`` (height, width),
            ``resize_lim``, ``bot_pct_lim`` (share cut off at the bottom), ``rot_lim`` (degrees)
            and ``rand_flip``.
        training: Draw at random. If false, the smallest scale that fills the output, the middle
            of ``bot_pct_lim``, centred columns, no flip, no turn.
    """

    def __init__(self, data_aug_conf: Mapping[str, Any], training: bool = True) -> None:
        if set(data_aug_conf) != set(_CONF_KEYS):
            raise DataError(
                f"data_aug_conf must have the keys {sorted(_CONF_KEYS)}, but has "
                f"{sorted(data_aug_conf)}."
            )
        self.conf = dict(data_aug_conf)
        self.training = training

    def __call__(self, results: Results) -> Results:
        """Augment the images; adds their homogeneous matrix to the projections."""
        height, width = self.conf["final_dim"]
        motion = self._drawn() if self.training else self._fixed()
        for image in results["img"]:
            self._check_size(image)
        results["img"] = [motion.apply(image, width, height) for image in results["img"]]
        results["img_shape"] = [image.shape for image in results["img"]]
        results["pad_shape"] = results["img_shape"]
        lifted = np.eye(4)
        matrix = motion.matrix(width, height)
        lifted[:2, :2], lifted[:2, 2] = matrix[:2, :2], matrix[:2, 2]
        for key in ("lidar2img", "cam_intrinsic"):
            results[key] = [lifted @ projection for projection in results[key]]
        return results

    def _drawn(self) -> ImageMotion:
        conf, (_, width) = self.conf, self.conf["final_dim"]
        scale = np.random.uniform(*conf["resize_lim"])
        columns = int(conf["W"] * scale)
        top = self._top(scale, np.random.uniform(*conf["bot_pct_lim"]))
        left = int(np.random.uniform(0, max(0, columns - width)))
        flip = bool(conf["rand_flip"] and np.random.choice([0, 1]))
        return self._motion(scale, top, left, flip, np.random.uniform(*conf["rot_lim"]))

    def _fixed(self) -> ImageMotion:
        conf, (height, width) = self.conf, self.conf["final_dim"]
        scale = max(height / conf["H"], width / conf["W"])
        left = max(0, int(conf["W"] * scale) - width) // 2
        top = self._top(scale, float(np.mean(conf["bot_pct_lim"])))
        return self._motion(scale, top, left, flip=False, degrees=0.0)

    def _top(self, scale: float, bottom: float) -> int:
        return int((1 - bottom) * int(self.conf["H"] * scale)) - self.conf["final_dim"][0]

    def _motion(
        self, scale: float, top: int, left: int, flip: bool, degrees: float
    ) -> ImageMotion:
        return ImageMotion(
            scale=scale,
            columns=int(self.conf["W"] * scale),
            rows=int(self.conf["H"] * scale),
            left=left,
            top=top,
            flip=flip,
            degrees=degrees,
        )

    def _check_size(self, image: NDArray[Any]) -> None:
        if image.shape[:2] != (self.conf["H"], self.conf["W"]):
            raise DataError(
                f"Camera images must have the size of data_aug_conf, {self.conf['H']} x "
                f"{self.conf['W']}, but one has {image.shape[0]} x {image.shape[1]}."
            )


@PIPELINES.register_module()
class NormalizeMultiviewImage:
    """Subtract means and divide by standard deviations, into float32.

    Where nothing after it reads pixels, `leave_to_device` lets whole pixels stay as they are: the
    detector then does the same to them, and a quarter of the bytes goes through loading processes
    and to the device.

    Args:
        mean: Of each channel, in the order of the output. [3]
        std: Of each channel. [3]
        to_rgb: Turn BGR into RGB first.

    Attributes:
        device_multiple: Images of uint8 whose sizes are multiples of it are left to the device;
            None: none are.
    """

    device_multiple: int | None = None

    def __init__(self, mean: Sequence[float], std: Sequence[float], to_rgb: bool = True) -> None:
        self.mean = np.array(mean, dtype=np.float32)
        self.std = np.array(std, dtype=np.float32)
        self.to_rgb = to_rgb
        # Of float32, so that the device computes the same.
        self._scales, self._shifts = 1 / self.std, self.mean / self.std

    def __call__(self, results: Results) -> Results:
        """Normalise every view, or note for the device how to."""
        if not all(self._is_left(image) for image in results["img"]):
            results["img"] = [self._normalised(image) for image in results["img"]]
        results["img_norm_cfg"] = {"mean": self.mean, "std": self.std, "to_rgb": self.to_rgb}
        return results

    def _is_left(self, image: NDArray[Any]) -> bool:
        multiple = self.device_multiple
        # What is padded after normalising is padded with the mean colour: pixels cannot hold it.
        return (
            multiple is not None
            and image.dtype == np.uint8
            and not any(size % multiple for size in image.shape[:2])
        )

    def _normalised(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Lay the values out plane by plane: the later turn into [C, H, W] then copies nothing."""
        planes = np.empty((3, *image.shape[:2]), dtype=np.float32)
        channels = cv2.split(image)
        for plane, channel, scale, shift in zip(
            planes,
            channels[::-1] if self.to_rgb else channels,
            self._scales,
            self._shifts,
            strict=True,
        ):
            np.multiply(channel, scale, out=plane)
            plane -= shift
        return planes.transpose(1, 2, 0)


@PIPELINES.register_module()
class PadMultiViewImage:
    """Pad every view at the right and the bottom.

    Args:
        size_divisor: Height and width become multiples of it.
        pad_val: What to pad with.
    """

    def __init__(self, size_divisor: int, pad_val: float = 0) -> None:
        self.size_divisor = size_divisor
        self.pad_val = pad_val

    def __call__(self, results: Results) -> Results:
        """Pad, and note the shapes afterwards, a list over views."""
        results["img"] = [self._pad(image) for image in results["img"]]
        results["pad_shape"] = [image.shape for image in results["img"]]
        results["img_shape"] = results["pad_shape"]  # as the public code, not the shape before
        results["pad_size_divisor"] = self.size_divisor
        return results

    def _pad(self, image: NDArray[Any]) -> NDArray[Any]:
        if all(size % self.size_divisor == 0 for size in image.shape[:2]):
            return image
        return mmcv.impad_to_multiple(image, self.size_divisor, pad_val=self.pad_val)
