"""Who follows a sweep: the progress display, the tracker."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.record import Ledger, RungResult, SweepRecord, TrialRecord
from sweeps.spec import SweepSpec

if TYPE_CHECKING:  # its module loads Ray, which a listener does not need
    from sweeps.stopping import Verdict

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SweepContext:
    """The sweep as it starts.

    Attributes:
        directory: Where it keeps all it writes.
        ledger: The trials so far, known points included.
        resumed: It has run before.
    """

    spec: SweepSpec
    directory: Path
    ledger: Ledger
    resumed: bool


class Listener:
    """Told what happens, in the driver's thread; a subclass overrides what it needs.

    The sweep waits for each call, so calls are short. Raising ends nothing but is logged.
    """

    def on_start(self, sweep: SweepContext) -> None:
        """The sweep starts or resumes."""

    def on_trial_start(self, trial: TrialRecord) -> None:
        """A trial starts, or goes on after a resume (`attempts` > 1)."""

    def on_rung(self, trial: TrialRecord, rung: RungResult, verdict: "Verdict") -> None:
        """A score is in the record, and whether the trial goes on."""

    def on_trial_end(self, trial: TrialRecord) -> None:
        """A trial has its outcome."""

    def on_tick(self) -> None:
        """About a second has passed."""

    def on_end(self, record: SweepRecord, *, interrupted: bool) -> None:
        """The sweep ends; an interrupted one can be resumed."""


class Audience:
    """All listeners of a sweep, none of whom can end it."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = tuple(listeners)
        self._complained: set[str] = set()

    def tell(self, say: Callable[[Listener], None]) -> None:
        """Tell everyone; log the first exception of each kind from each listener."""
        for listener in self._listeners:
            try:
                say(listener)
            # A broken display or tracker must not cost the training behind it.
            except Exception as error:
                name = f"{type(listener).__name__}: {type(error).__name__}"
                if name not in self._complained:
                    self._complained.add(name)
                    logger.warning("a listener of the sweep raised %s", name, exc_info=error)
