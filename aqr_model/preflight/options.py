"""A config as a command line gives it: a file, and `--cfg-options` over it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from mmcv import Config, DictAction

from aqr_model.preflight.reading import ConfigError, apply_overrides, load_config

# With it, `--cfg-options a=1 b=2` works as in mmcv's tools: the rest reaches the context.
TAKES_OPTIONS = {"allow_extra_args": True}

CfgOptions = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE...", help="Set dotted keys of the config, as in mmcv's tools."),
]


def given_config(
    path: Path,
    options: Sequence[str] | None,
    context: typer.Context,
) -> Config:
    """Read a config file and set what the command line says.

    Args:
        path: The config.
        options: After `--cfg-options`, KEY=VALUE each.
        context: Of the command; its extra arguments are further options.

    Raises:
        ConfigError: If the file or an option cannot be meant.
    """
    cfg = load_config(path)
    if context.args and not options:
        raise ConfigError(f"unexpected arguments: {' '.join(context.args)}")
    given = parse_options([*(options or ()), *context.args])
    try:
        apply_overrides(cfg, given)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"--cfg-options must set keys of the config, but: {error}") from error
    return cfg


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE pairs as mmcv's tools do.

    Args:
        pairs: Such as ``data.samples_per_gpu=4`` or ``model.x=[1,2]``.

    Raises:
        ConfigError: If one is no pair, or its brackets do not match.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", nargs="*", action=DictAction)
    if wrong := [pair for pair in pairs if "=" not in pair.lstrip("=")]:
        raise ConfigError(f"--cfg-options must be KEY=VALUE, but got {wrong[0]!r}")
    try:
        return dict(parser.parse_args(["--", *pairs]).pairs or {})
    except AssertionError as error:
        raise ConfigError(f"--cfg-options: {error}") from error
