"""The sensors of a nuScenes vehicle: where they sit and what their cameras see.

The numbers are the ``calibrated_sensor`` values of one public nuScenes log. Poses lead from the
sensor to the ego frame (x forward, y left, z up, origin on the ground below the rear axle).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from pyquaternion import Quaternion

NATIVE_IMAGE_SIZE = (1600, 900)
"""Width and height of nuScenes' images, the size the focal lengths below refer to, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One sensor's pose in the ego frame and, for a camera, its lens.

    Attributes:
        translation: Position in the ego frame, metres.
        rotation: Sensor to ego frame, quaternion (w, x, y, z).
        focal: Focal length in native pixels; 0 for LiDAR.
        principal_point: Column and row in native pixels.
    """

    translation: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    focal: float = 0.0
    principal_point: tuple[float, float] = (0.0, 0.0)

    def intrinsic(self, width: int, height: int) -> np.ndarray:
        """Return the camera matrix for images of this size. [3, 3]."""
        scale_x = width / NATIVE_IMAGE_SIZE[0]
        scale_y = height / NATIVE_IMAGE_SIZE[1]
        return np.array(
            [
                [self.focal * scale_x, 0.0, self.principal_point[0] * scale_x],
                [0.0, self.focal * scale_y, self.principal_point[1] * scale_y],
                [0.0, 0.0, 1.0],
            ]
        )

    def rotation_matrix(self) -> np.ndarray:
        """Return the rotation from the sensor to the ego frame. [3, 3]."""
        return Quaternion(self.rotation).rotation_matrix


LIDAR_CHANNEL = "LIDAR_TOP"

LIDAR = Calibration(
    translation=(0.9437130093574524, 0.0, 1.8402299880981445),
    rotation=(
        0.7077955119164311,
        -0.006492241857679686,
        0.010646214602139482,
        -0.7063073142912114,
    ),
)

CAMERAS: Mapping[str, Calibration] = MappingProxyType(
    {
        "CAM_FRONT": Calibration(
            translation=(1.7007912397384644, 0.01594563201069832, 1.5109575986862183),
            rotation=(
                -0.4998015430554755,
                0.5030316162514281,
                -0.4997798114411504,
                0.49737083819489186,
            ),
            focal=1266.417203046554,
            principal_point=(816.2670197447984, 491.50706579294757),
        ),
        "CAM_FRONT_RIGHT": Calibration(
            translation=(1.5508477687835693, -0.4934048056602478, 1.4957480430603027),
            rotation=(
                0.20603479288882023,
                -0.2026940539967368,
                0.6824507837225665,
                -0.6713610894221409,
            ),
            focal=1260.8474446004698,
            principal_point=(807.968244525554, 495.3344268742088),
        ),
        "CAM_FRONT_LEFT": Calibration(
            translation=(1.5238779783248901, 0.4946313500404358, 1.5093282461166382),
            rotation=(
                0.6757265040490897,
                -0.6736266528015484,
                0.21214014860685004,
                -0.21122826920192475,
            ),
            focal=1272.5979470598488,
            principal_point=(826.6154927353808, 479.75165386361925),
        ),
        "CAM_BACK": Calibration(
            translation=(0.02832603082060814, 0.0034513676073402166, 1.5791034698486328),
            rotation=(
                0.5037872665570173,
                -0.49740249800120007,
                -0.4941850224740791,
                0.5045496096514881,
            ),
            focal=809.2209905677063,
            principal_point=(829.2196003259838, 481.77842384512485),
        ),
        "CAM_BACK_LEFT": Calibration(
            translation=(1.0356910228729248, 0.4847950339317322, 1.5909701585769653),
            rotation=(
                -0.6924185586059354,
                0.7031619418178131,
                0.11648343028801025,
                -0.11203318144826209,
            ),
            focal=1256.7414812095406,
            principal_point=(792.1125740759628, 492.7757465151356),
        ),
        "CAM_BACK_RIGHT": Calibration(
            translation=(1.0148781538009644, -0.4805682301521301, 1.562395453453064),
            rotation=(
                -0.1228098001739398,
                0.13240084180727207,
                0.7004305823327249,
                -0.690496031417272,
            ),
            focal=1259.5137405846733,
            principal_point=(807.2529053838625, 501.19579884916527),
        ),
    }
)



def yaw_quaternion(yaw: float) -> list[float]:
    """Return the rotation by ``yaw`` radians around the vertical axis. (w, x, y, z)."""
    return Quaternion(axis=[0, 0, 1], radians=yaw).elements.tolist()
