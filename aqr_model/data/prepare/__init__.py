"""From nuScenes tables to what training reads: info files and the object database.

May import `aqr_model.data.nuscenes` and what lies beside it; no torch.
"""

from aqr_model.data.prepare.build import database_file, info_file, prepare, prepare_database

__all__ = ["database_file", "info_file", "prepare", "prepare_database"]
