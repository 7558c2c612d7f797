"""The manifest: written last, it says that a dataset is complete and how it was made."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import SyntheticConfig

MANIFEST_NAME = "manifest.json"

FORMAT_VERSION = 1
"""Raised whenever the same settings give other data than before."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What stands in a dataset's folder.

    Attributes:
        settings: The config as plain JSON values.
        format_version: ``FORMAT_VERSION`` of the writer.
        counts: Rows by table.
        num_bytes: Size of all files but the manifest.
    """

    settings: Mapping[str, Any]
    format_version: int
    counts: Mapping[str, int]
    num_bytes: int

    def write(self, root: Path) -> None:
        """Write the manifest into a dataset's folder."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (root / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    def differences(self, config: SyntheticConfig) -> list[str]:
        """Say how the dataset differs from what these settings would give; empty if it does not."""
        found: list[str] = []
        if self.format_version != FORMAT_VERSION:
            found.append(f"format version is {self.format_version}, wanted {FORMAT_VERSION}")
        for name, wanted in plain_settings(config).items():
            if (there := self.settings.get(name)) != wanted:
                found.append(f"{name} is {there}, wanted {wanted}")
        return found


def read_manifest(root: Path) -> Manifest | None:
    """Read the manifest of a dataset's folder; none if the folder has none."""
    path = root / MANIFEST_NAME
    if not path.is_file():
        return None
    return Manifest(**json.loads(path.read_text(encoding="utf-8")))


def plain_settings(config: SyntheticConfig) -> dict[str, Any]:
    """Return the settings as they look after a round trip through JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
