"""Checkpoint files: read without running what they hold, or refused with the reason."""

import argparse
import pickle
import pkgutil
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used, with the reason."""


def read_file(path: Path, *, device: str = "cpu", types: Sequence[str] = ()) -> Any:
    """Read what torch saved. Nothing that the file names is imported or called.

    A pickle can call any function. So torch reads numbers, text and tensors alone, and here the
    harmless types that mmcv and its users put beside them; see `_harmless`.

    Args:
        path: The file.
        device: Where the tensors go; ``meta`` reads their shapes alone.
        types: Further types that the file may hold, by their dotted names. They are imported and
            called: name only types of a file whose source you trust.

    Raises:
        CheckpointError: If the file is missing or unreadable, or holds other types.
    """
    if path.is_dir():
        raise CheckpointError(f"a checkpoint must stand at {path}, but that is a folder")
    if not path.is_file():
        raise CheckpointError(f"a checkpoint must stand at {path}, but there is no such file")
    with torch.serialization.safe_globals([*_harmless(), *map(_imported, types)]):
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except pickle.UnpicklingError as error:
            if names := _refused(path, str(error)):
                listed = ", ".join(names)
                raise CheckpointError(
                    f"{path} must hold tensors and plain values, but holds objects of {listed}, "
                    "which could run any code. If you trust where the file comes from, name them: "
                    f"`load_types = {names}`"
                ) from error
            raise CheckpointError(
                f"{path} cannot be read as a checkpoint: {_reason(error)}; it begins with"
                f" {_beginning(path)!r}"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
            raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error


def _reason(error: Exception) -> str:
    """What torch says, without its advice to run what the file names."""
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    return text.partition("Check the documentation")[0].strip()


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def _harmless() -> Iterator[Any]:
    """Types that run no code of a file: NumPy's numbers and arrays, dicts with attributes."""
    makers = {"scalar": np.float64(0), "_reconstruct": np.empty(0)}
    for name, value in makers.items():
        make = value.__reduce__()[0]
        yield from ((make, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core"))
    yield from (np.ndarray, np.dtype)
    codes = "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "SU"
    yield from {type(np.dtype(code)) for code in codes}
    # What mmcv's Config is made of; a dict does as well for whoever reads the file here.
    yield from ((OrderedDict, n) for n in ("mmcv.utils.config.ConfigDict", "addict.addict.Dict"))
    yield argparse.Namespace


def _imported(name: str) -> tuple[Any, str]:
    try:
        return pkgutil.resolve_name(name), name
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"`load_types` must name types that can be imported, but got {name!r}: {error}"
        ) from error


def _refused(path: Path, message: str) -> list[str]:
    """The types that torch did not read."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except ValueError:  # a file of torch before 1.6, or by mmdet's publish_model: one at a time
        return re.findall(r"GLOBAL (\S+)", message)[:1]
