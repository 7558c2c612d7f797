"""The place of this process in the gang of its trial, and whether it must leave it.

A training function asks here. Both belong to the process as a whole: it has one place, and the
SIGTERM that announces the end of a machine (spot instances, SLURM, a drained node) goes to it.
"""

import signal
import threading
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True, kw_only=True)
class Seat:
    """The place of a process in its gang.

    Attributes:
        rank: Of the process; 0 reports.
        size: Processes of the gang; 1: there is no gang, and nothing to join.
        local_rank: Which of the visible GPUs is its own.
        address: Where rank 0 listens for the others.
        port: Likewise.
        listener: Descriptor of the listening socket at that port; rank 0 alone has it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    listener: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"`0 <= rank < size` must hold, but got {self.rank} of {self.size}")


_ALONE = Seat()
_seat = _ALONE
_told_to_leave = threading.Event()


def current_seat() -> Seat:
    """The place of this process; alone unless a gang has placed it."""
    return _seat


def take_seat(seat: Seat = _ALONE) -> None:
    """Place this process."""
    global _seat
    _seat = seat


def must_leave() -> bool:
    """Whether this process was told to end soon: save, then raise `TrialPreempted`."""
    return _told_to_leave.is_set()


def heed_sigterm() -> None:
    """Take SIGTERM as the notice that `must_leave` gives; call it in the main thread.

    Whoever sends it kills the process when the grace period is over, so nothing else is done.
    """
    signal.signal(signal.SIGTERM, _note_sigterm)


def _note_sigterm(number: int, frame: FrameType | None) -> None:
    _told_to_leave.set()
