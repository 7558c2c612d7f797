"""Which code ran."""

import os
import subprocess
from pathlib import Path

from launch.workplace import COMMIT_VARIABLE

CHECKOUT = Path(__file__).resolve().parents[1]
COMMIT_TAG = "mlflow.source.git.commit"
GIT_TIMEOUT_S = 10.0


def commit() -> str | None:
    """The commit of this code, `-dirty` appended if files differ; None outside a git checkout.

    A job runs from a copy without `.git`; `submit` tells it the commit.
    """
    told = os.environ.get(COMMIT_VARIABLE)
    if told:
        return told
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    return f"{head}-dirty" if _git("status", "--porcelain") else head


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(CHECKOUT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
