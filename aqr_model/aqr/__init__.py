"""Adaptive Query Routing: what a query trusts, drawn on the features before they are read.

A weight generator gives each object query a LiDAR and a camera weight, a renderer draws them as
maps around the queries' projections, a modulator scales the features by the maps. torch only, with
relative imports: ``PYTHONPATH=aqr_model python -c 'import aqr'`` works without mmdet3d.
"""

from .feature_modulator import FeatureModulator
from .projection import (
    BevGrid,
    Projection,
    project_queries,
    project_to_bev,
    project_to_cameras,
)
from .schedules import make_schedule, read_schedule
from .semantics import AqrSemantics
from .statistics import aqr_statistics, bev_box_mask, gradient_norms, histograms
from .weight_generator import AQRWeightGenerator, QueryWeights
from .weight_renderer import WeightMaps, WeightRenderer

__all__ = [
    "AQRWeightGenerator",
    "AqrSemantics",
    "BevGrid",
    "FeatureModulator",
    "Projection",
    "QueryWeights",
    "WeightMaps",
    "WeightRenderer",
    "aqr_statistics",
    "bev_box_mask",
    "gradient_norms",
    "histograms",
    "make_schedule",
    "project_queries",
    "project_to_bev",
    "project_to_cameras",
    "read_schedule",
]
