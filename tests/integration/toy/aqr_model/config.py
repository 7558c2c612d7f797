"""Reads configs; the toy has no registries that its types could be missing from."""

from mmcv import Config


def load_config(path):
    return Config.fromfile(str(path))


def require_known_types(cfg):
    assert "model" in cfg


def apply_overrides(cfg, overrides):
    cfg.merge_from_dict(dict(overrides))
