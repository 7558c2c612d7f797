"""Stands in for the detector: the sweep engine and the command line are the real ones."""

import warnings

warnings.filterwarnings("ignore", message="On January 1, 2023")
import mmcv  # noqa: E402, F401
