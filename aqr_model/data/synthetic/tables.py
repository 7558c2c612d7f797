"""The nuScenes tables that do not depend on what happens: classes, attributes, sensors, maps."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from .calibration import CAMERAS, LIDAR, LIDAR_CHANNEL
from .classes import ATTRIBUTES, OBJECT_CLASSES
from .config import SyntheticConfig

VERSION = "v1.0-synth"
"""Name of the folder with the tables, and the ``version`` that the devkit is given."""

MAP_FILE = "maps/stub.png"

Row = dict[str, object]
Tables = dict[str, list[Row]]

SCENE_TABLES = (
    "log",
    "scene",
    "sample",
    "sample_data",
    "ego_pose",
    "sample_annotation",
    "instance",
)
"""Tables that grow with every scene."""

_VISIBILITY_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")
_VISIBILITY_BOUNDS = (0.4, 0.6, 0.8)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Makes tokens that differ between datasets and are the same in every run.

    Attributes:
        namespace: What tells this dataset from others.
    """

    namespace: str

    @classmethod
    def of(cls, config: SyntheticConfig) -> "Tokens":
        """Return the tokens of the dataset with these settings."""
        return cls(namespace=f"{config.domain}/{config.seed}")

    def token(self, table: str, *parts: object) -> str:
        """Return the token of one row: 32 hexadecimal digits, as in nuScenes."""
        text = "/".join([self.namespace, table, *map(str, parts)])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def visibility_token(share: float) -> str:
    """Return the visibility level of an object of which this share is visible."""
    return str(1 + sum(share >= bound for bound in _VISIBILITY_BOUNDS))


def static_tables(tokens: Tokens, config: SyntheticConfig) -> Tables:
    """Return the tables that are the same for all scenes."""
    return {
        "category": [
            {
                "token": tokens.token("category", object_class.category),
                "name": object_class.category,
                "description": f"Synthetic {object_class.name.replace('_', ' ')}.",
                "index": index,
            }
            for index, object_class in enumerate(OBJECT_CLASSES)
        ],
        "attribute": [
            {"token": tokens.token("attribute", name), "name": name, "description": ""}
            for name in ATTRIBUTES
        ],
        "visibility": [
            {
                "token": str(number),
                "level": level,
                "description": f"Visible part in all cameras, per cent: {level[1:]}.",
            }
            for number, level in enumerate(_VISIBILITY_LEVELS, start=1)
        ],
        "sensor": [
            {
                "token": tokens.token("sensor", channel),
                "channel": channel,
                "modality": "lidar" if channel == LIDAR_CHANNEL else "camera",
            }
            for channel in (LIDAR_CHANNEL, *CAMERAS)
        ],
        "calibrated_sensor": _calibrated_sensors(tokens, config),
    }


def _calibrated_sensors(tokens: Tokens, config: SyntheticConfig) -> list[Row]:
    rows: list[Row] = []
    for channel, calibration in {LIDAR_CHANNEL: LIDAR, **CAMERAS}.items():
        is_camera = channel in CAMERAS
        rows.append(
            {
                "token": tokens.token("calibrated_sensor", channel),
                "sensor_token": tokens.token("sensor", channel),
                "translation": list(calibration.translation),
                "rotation": list(calibration.rotation),
                "camera_intrinsic": (
                    calibration.intrinsic(*config.image_size).tolist() if is_camera else []
                ),
            }
        )
    return rows


def map_table(tokens: Tokens, logs: Iterable[Row]) -> list[Row]:
    """Return the one map, valid for all logs; the devkit does not load without."""
    return [
        {
            "token": tokens.token("map"),
            "log_tokens": [log["token"] for log in logs],
            "category": "semantic_prior",
            "filename": MAP_FILE,
        }
    ]
