"""What a sweep has spent, over all of its drivers: wall hours, and the hours of its trials."""

import time
from collections.abc import Callable, Iterable, Mapping

from sweeps.record import Ledger

# Attribute of the sweep.
SPENT = "spent"
# A kill forgets no more than this of what was spent.
SAVE_S = 5.0


class Spending:
    """Counts on from what is in the record.

    Args:
        ledger: Of the sweep.
        begun: Says when each running trial took its place, in seconds of the monotonic clock.
    """

    def __init__(self, ledger: Ledger, begun: Callable[[], Iterable[float]]) -> None:
        before: Mapping[str, float] = ledger.read().attrs.get(
            SPENT, {"hours": 0.0, "trial_hours": 0.0}
        )
        self._ledger, self._begun = ledger, begun
        self._hours_before, self._ended_hours = before["hours"], before["trial_hours"]
        self._started_at = self._saved_at = time.monotonic()

    @property
    def hours(self) -> float:
        """Wall hours in which a driver ran."""
        return self._hours_before + (time.monotonic() - self._started_at) / 3600

    @property
    def trial_hours(self) -> float:
        """Hours for which trials had their places, ended and running ones."""
        return self._ended_hours + sum(self.running_hours())

    def running_hours(self) -> list[float]:
        """The same of each running trial."""
        now = time.monotonic()
        return [(now - since) / 3600 for since in self._begun()]

    def end(self, since: float) -> None:
        """Count a trial that is no longer among the running ones."""
        self._ended_hours += (time.monotonic() - since) / 3600

    def save(self, *, at_once: bool = False) -> None:
        """Write down what has been spent, now and then."""
        if not at_once and time.monotonic() - self._saved_at < SAVE_S:
            return
        self._saved_at = time.monotonic()
        self._ledger.set_attr(SPENT, {"hours": self.hours, "trial_hours": self.trial_hours})
