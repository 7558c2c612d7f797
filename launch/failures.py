"""Errors that users can act on, each as what to say and the exit code that goes with it."""

from dataclasses import dataclass

from rich.console import RenderableType

from launch import display

USAGE_ERROR, FAILURE, INTERRUPTED = 2, 1, 130


@dataclass(frozen=True, kw_only=True)
class Explained:
    """What to print, and the exit code."""

    text: RenderableType
    code: int


def explain(error: BaseException) -> Explained | None:
    """What to say of an error; None for one that only a programmer can act on."""
    from launch.jobs import ClusterError
    from launch.stack import ServerError
    from sweeps.export import ExportError
    from sweeps.section import SpecError
    from sweeps.storage import StorageError

    if isinstance(error, SpecError):
        return Explained(text=display.problems(error), code=USAGE_ERROR)
    if isinstance(error, ClusterError | ServerError):
        return Explained(text=str(error), code=FAILURE)
    if isinstance(error, ExportError):
        return Explained(text=str(error), code=USAGE_ERROR)
    if isinstance(error, StorageError):
        return Explained(text=_sentence(str(error)), code=FAILURE)
    return _of_the_sweep(error)


def _of_the_sweep(error: BaseException) -> Explained | None:
    import sys

    # Whoever raised one of these has loaded the module; everybody else needs no Ray for this.
    run = sys.modules.get("sweeps.run")
    search = sys.modules.get("sweeps.search")
    if search is not None and isinstance(error, search.TrialsFail):
        return Explained(text=_sentence(str(error)), code=FAILURE)
    if run is not None and isinstance(error, run.SweepRefused):
        return Explained(text=_sentence(str(error)), code=USAGE_ERROR)
    if run is not None and isinstance(error, run.SweepInterrupted):
        return Explained(text=_sentence(str(error)), code=INTERRUPTED)
    if isinstance(error, KeyboardInterrupt):
        return Explained(text="Interrupted.", code=INTERRUPTED)
    return None


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
