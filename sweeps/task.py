"""What goes to a trial's process and what comes back: its task, its scores, its end.

Tune carries them as JSON in a trial's config and results, and leaves their content alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeps.trials import Outcome, ParamValue, Role, RungResult

# The keys of our results and of a trial's config.
TASK_KEY = "task"
EVENT_KEY = "event"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One attempt at one trial.

    Attributes:
        checkpoint: The newest one in the record.
        seconds: Training time before this attempt.
        role: What the trial is for.
        doom: Why it must not be tried again, after its process died; None: it may.
    """

    label: str
    params: Mapping[str, ParamValue]
    attempt: int
    checkpoint: str | None
    seconds: float
    role: Role = "search"
    doom: str | None = None

    def to_json(self) -> str:
        """Write for a trial's config."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Left in a trial's directory by the process that trains in it, until the training is over.

    Attributes:
        node: Ray's id of its node.
        num_killed: Processes that the kernel had killed there for memory.
    """

    node: str
    num_killed: int | None

    @staticmethod
    def path(workdir: Path) -> Path:
        """Where it lies."""
        return workdir / "process.json"

    @classmethod
    def read(cls, workdir: Path) -> "Mark | None":
        """What a process that died has left; None if it left nothing that can be read."""
        try:
            return cls(**json.loads(cls.path(workdir).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def leave(self, workdir: Path) -> None:
        """Write it."""
        self.path(workdir).write_text(json.dumps(asdict(self)))


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an attempt ended by itself."""

    outcome: Outcome
    reason: str
    seconds: float


Event = RungResult | Ending


def to_result(event: Event, flags: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Put an event into a result for Tune, with what the health rules have said so far."""
    kind = "rung" if isinstance(event, RungResult) else "ending"
    content = {kind: asdict(event), "flags": dict(flags or {})}
    return {EVENT_KEY: json.dumps(content), "done": isinstance(event, Ending)}


def from_result(result: Mapping[str, Any]) -> Event:
    """Take an event out of a result."""
    event = json.loads(result[EVENT_KEY])
    return RungResult(**event["rung"]) if "rung" in event else Ending(**event["ending"])


def flags_of(result: Mapping[str, Any]) -> dict[str, str]:
    """The reason of each health rule that has spoken, by the rule's name."""
    return json.loads(result[EVENT_KEY])["flags"]
