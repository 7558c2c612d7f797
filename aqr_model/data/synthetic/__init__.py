"""A synthetic dataset in nuScenes' own format: moving boxes, LiDAR, six cameras.

``python -m aqr_model.data.synthetic --root FOLDER`` writes one; so does ``write_dataset``. Nothing
in this package needs torch or mmdet3d.
"""

from .config import SyntheticConfig
from .domain import DOMAINS, Domain
from .manifest import Manifest, read_manifest
from .tables import VERSION
from .writer import DatasetConflictError, write_dataset

__all__ = [
    "DOMAINS",
    "VERSION",
    "DatasetConflictError",
    "Domain",
    "Manifest",
    "SyntheticConfig",
    "read_manifest",
    "write_dataset",
]
