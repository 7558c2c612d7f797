"""Checkpoint files: read, or refused with the reason."""

import pickle
from pathlib import Path
from typing import Any

import torch


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used, with the reason."""


def read_file(path: Path) -> dict[str, Any]:
    """Read what torch saved.

    Raises:
        CheckpointError: If the file is missing or unreadable.
    """
    if not path.is_file():
        raise CheckpointError(f"a checkpoint must stand at {path}, but there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
