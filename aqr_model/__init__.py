"""AQR-CMT: the detector, its data and its training.

Importing this package applies the shims of :mod:`aqr_model.compat` and registers every part with
mmdet3d. The mathematics in ``aqr_model/aqr`` needs torch alone: with this folder on the path,
``import aqr`` works by itself.
"""

from aqr_model import compat

compat.apply()

from aqr_model import cmt, data  # noqa: E402  (registration needs the shims)

__all__ = ["cmt", "compat", "data"]
