"""Where the relative paths of a spec lead.

On a laptop there is one place, the current directory. A job on a cluster has two: the uploaded copy
of the code, where it starts, and the directory on the shared file system where `submit` was called,
which holds what does not travel: data, checkpoints, results.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT_VARIABLE = "AQR_ROOT"
COMMIT_VARIABLE = "AQR_COMMIT"


class WorkplaceError(RuntimeError):
    """The directory that a job should work in is not there."""


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """The two directories of a running sweep.

    Attributes:
        code: Where specs and configs are found first.
        root: Where all other relative paths lead.
    """

    code: Path
    root: Path

    def find(self, path: Path) -> Path:
        """A spec or config: beside the code, else below the root; absolute either way."""
        beside_code = self.code / path
        return beside_code if beside_code.exists() else self.root / path

    def enter(self) -> None:
        """Make the root the current directory."""
        os.chdir(self.root)


def here(environment: Mapping[str, str] = os.environ) -> Workplace:
    """The workplace of this process.

    Raises:
        WorkplaceError: If the root that `submit` named does not exist on this machine.
    """
    start = Path.cwd()
    root = Path(environment.get(ROOT_VARIABLE, start))
    if not root.is_dir():
        raise WorkplaceError(
            f"This job resolves relative paths against {root}, which does not exist on this node."
            " Submit from a directory that the cluster shares, or name one with --root."
        )
    return Workplace(code=start, root=root)
