"""What the sweep and a training function say to each other; knows neither Ray nor torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from sweeps.logs import tail
from sweeps.trials import ParamValue


class Report(Protocol):
    """What a training function tells the sweep."""

    def rung(
        self,
        metrics: Mapping[str, float],
        *,
        fraction: float,
        val_share: float,
        epoch: float,
        step: int,
        checkpoint: Path | None,
    ) -> None:
        """Hand over the score at a rung; blocks until the sweep has decided, raises to stop."""
        ...

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Log losses and statistics."""
        ...

    def artifact(self, path: Path) -> None:
        """Name a file for the tracker."""
        ...


class TrainFn(Protocol):
    """Trains one trial; picklable. It lets exceptions of `report` pass.

    In a gang each process calls it with the same arguments, and `sweeps.seat` says which of them it
    is; what any but the first reports goes nowhere.
    """

    def __call__(
        self,
        params: Mapping[str, ParamValue],
        *,
        report: Report,
        workdir: Path,
        resume_from: Path | None,
    ) -> None:
        """Train to the full budget, from a checkpoint if there is one.

        Whoever saved that checkpoint at a rung may have died before its score was heard: report
        the rung of the step it was saved at again. One that was heard keeps its first score.
        """
        ...


class TrialStopped(Exception):
    """Ends a training normally: it goes no further. Its text is the reason, if it has one."""


class TrialPreempted(Exception):
    """Raised by a training that was told to leave its place and has saved its state."""


class PeerFailed(Exception):
    """Raised by a process of a gang that ends because of another's error, which it names."""


class GangFailed(Exception):
    """A training of several processes ended with an error; says in which of them, and how."""


class ProcessLost(Exception):
    """A process of a trial is gone; its training can go on from the newest checkpoint."""


class TrialFailed(Exception):
    """A training ended with an error; says where its log is and how it ends."""

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(f"{message}\nlog: {log}\n{tail(log)}".rstrip())
