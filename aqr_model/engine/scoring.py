"""Detections are scored in a process of its own, while the training goes on.

``python -m aqr_model.engine.scoring`` is that process: it reads one :class:`Request` and writes
the scores, or the error, both pickled.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be scored.

    Attributes:
        dataset: The config's ``data.val``.
        imports: The config's ``custom_imports``, which register what the dataset names.
        val_share: Share of the validation scenes.
        detections: Of all samples of that share, in the order of the dataset.
        workdir: Folder for the devkit's summary.
    """

    dataset: Mapping[str, Any]
    imports: Mapping[str, Any]
    val_share: float
    detections: Sequence[Mapping[str, Any]]
    workdir: Path


class ScoringProcess:
    """Scores a request, on the CPU.

    Nothing but pipes joins the two processes: where the training dies, the other one ends at the
    latest when it has scored.

    Args:
        request: What is to be scored.
    """

    def __init__(self, request: Request) -> None:
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "aqr_model.engine.scoring"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        )
        self._answer = self._said = b""
        # Of its own thread, because a pipe holds little and the process must first be up.
        self._thread = threading.Thread(
            target=self._exchange, args=(pickle.dumps(request),), daemon=True
        )
        self._thread.start()

    def is_over(self) -> bool:
        """Whether `result` would not wait."""
        return not self._thread.is_alive()

    def result(self) -> dict[str, float]:
        """Wait for the scores.

        Raises:
            Exception: What scoring raised.
            RuntimeError: If the process ended without an answer.
        """
        self._thread.join()
        if self._process.returncode:
            raise RuntimeError(
                f"the process that scores ended with exit code {self._process.returncode}: "
                f"{self._said.decode(errors='replace')[-2000:].strip() or 'it said nothing'}"
            )
        found = pickle.loads(self._answer)
        if isinstance(found, BaseException):
            raise found
        return found

    def cancel(self) -> None:
        """End it, whatever it is at."""
        self._process.kill()
        self._thread.join()

    def _exchange(self, request: bytes) -> None:
        self._answer, self._said = self._process.communicate(request)


def _score(request: Request) -> dict[str, float] | BaseException:
    """Score a request as the training itself would."""
    from mmcv.utils import import_modules_from_strings
    from mmdet3d.datasets import build_dataset

    from aqr_model.data import CustomNuScenesDataset

    if request.imports:
        import_modules_from_strings(**request.imports)
    try:
        dataset = build_dataset(dict(request.dataset), {"test_mode": True})
        assert isinstance(dataset, CustomNuScenesDataset)
        return dataset.with_share(request.val_share).evaluate(
            request.detections, jsonfile_prefix=request.workdir, keep_results=False
        )
    except (ArithmeticError, OSError, ValueError) as error:
        return error


def main() -> None:
    """Answer the request on standard input."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no part of the answer
    with answer:
        pickle.dump(_score(pickle.load(sys.stdin.buffer)), answer)


if __name__ == "__main__":
    # By its real name, so that the request's class is the one that was pickled.
    from aqr_model.engine import scoring

    scoring.main()
