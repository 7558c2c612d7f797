"""Config files: read as mmcv reads them, with what goes wrong said in a sentence.

A file that assigns a name twice keeps the second value alone, so that whole sections vanish without
a word. That is refused here, with what would be lost.

The users' files carry ``plugin = True`` and ``plugin_dir = "projects/mmdet3d_plugin/"``: the folder
whose types ``import aqr_model`` registers. Both keys are kept and nothing is imported for them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcv import Config

from aqr_model.engine.config_keys import ConfigError
from aqr_model.preflight.dotted import nested, path_of, value_at
from aqr_model.preflight.source import doubled_assignments, files_of

__all__ = ["ConfigError", "apply_overrides", "doubled_assignments", "load_config"]


def load_config(path: Path | str) -> Config:
    """Read a config file with all that it inherits.

    Args:
        path: A config file in mmcv's format.

    Raises:
        ConfigError: If it, or a file that it inherits from, assigns a name twice, or fails when it
            is run.
        FileNotFoundError: If it, or a file that it inherits from, is not there.
    """
    try:
        doubled = [
            str(found) for file in files_of(Path(path)) for found in doubled_assignments(file)
        ]
        if not doubled:
            return Config.fromfile(str(path))
    except FileNotFoundError:
        raise
    # A config is a program: it can fail in any way.
    except Exception as error:
        raise ConfigError(f"{path} must be a config that loads, but {_told(error)}") from error
    raise ConfigError("\n".join(doubled))


def apply_overrides(cfg: Config, overrides: Mapping[str, Any]) -> None:
    """Set dotted keys in a config, one after another.

    As mmcv's ``merge_from_dict``, which can change dicts in a list but no plain value in it, and
    knows no key with dots in it: here ``window_sizes.0`` sets the first of two numbers, and
    ``custom_keys.pts_bbox_head.transformer.lr_mult`` a setting of ``pts_bbox_head.transformer``
    where the config has such an entry.

    Args:
        cfg: Changed in place.
        overrides: Dotted keys with their values; a number steps into a list.

    Raises:
        KeyError, TypeError: If a key leads past a list's end, or through what is neither a dict
            nor a list, or makes an entry of ``custom_keys`` that it cannot mean.
    """
    for key, value in overrides.items():
        *parents, last = path = path_of(_as_dict(cfg), key)
        node = _at(cfg, tuple(parents))
        if isinstance(value, Mapping) and isinstance(node, Mapping):
            # mmcv merges a dict into what is there, which must then be one too.
            if last in node and not isinstance(node[last], Mapping):
                value = {**value, "_delete_": True}
        if isinstance(node, list | tuple) and last.isdigit() and not isinstance(value, Mapping):
            if int(last) >= len(node):
                parent = ".".join(parents)
                raise KeyError(f"`{parent}` has {len(node)} entries, but the key is {key}")
            changed = [value if i == int(last) else old for i, old in enumerate(node)]
            path, value = tuple(parents), type(node)(changed)
        cfg.merge_from_dict(dict([nested(path, value)]))


def _as_dict(cfg: Config) -> dict[str, Any]:
    return dict(cfg.items())


def _at(cfg: Config, path: tuple[str, ...]) -> Any:
    """What stands at a path, None where nothing does."""
    try:
        return value_at(_as_dict(cfg), path)
    except KeyError:
        return None


def _told(error: Exception) -> str:
    """What an error of a config says."""
    cause = error.__context__
    if isinstance(error, ImportError) and not str(error) and isinstance(cause, ImportError):
        # mmcv hides which of the modules fails.
        return f"its `custom_imports` fail with {type(cause).__name__}: {cause}"
    lines = str(error).splitlines()
    return f"it raises {type(error).__name__}{': ' if lines else ''}{lines[0] if lines else ''}"
