"""Reads configs as mmcv does."""

from mmcv import Config


class ConfigError(ValueError):
    """Never raised here."""


def load_config(path):
    return Config.fromfile(str(path))


def apply_overrides(cfg, overrides):
    cfg.merge_from_dict(dict(overrides))
