"""Trials and sweeps as plain values: what the record says, whoever reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ParamValue = float | int | bool | str
Role = Literal["search", "control", "known", "finalist"]
Outcome = Literal["finished", "stopped", "diverged", "failed"]
State = Literal["running", "complete", "fail"]


@dataclass(frozen=True, kw_only=True)
class RungResult:
    """One score of one trial.

    Attributes:
        fraction: Share of the training budget spent, in (0, 1].
        val_share: Share of the validation scenes scored, in (0, 1].
        epoch: Epochs trained, fractional.
        step: Optimizer steps taken.
        metrics: All metrics, such as `val/nds`.
        checkpoint: File that training can go on from.
        seconds: Wall seconds of training up to here, over all attempts.
    """

    fraction: float
    val_share: float
    epoch: float
    step: int
    metrics: Mapping[str, float]
    checkpoint: str | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as the study holds it.

    Attributes:
        number: Optuna's trial number within its study.
        label: Names the trial's directory and its MLflow run.
        role: Searched, the control, a finalist's repeat, or a known point that was never trained
            here.
        params: Everything the training function gets, derived values resolved, with the seed.
        sampled: The searched axes alone.
        outcome: None while the trial runs or waits for a resume.
        reason: Why it ended so; empty only for a finished trial or a running one.
        value: The objective at full budget and full validation, else None.
        imputed: The study was told an estimate, since the trial was stopped early.
        told: What the study was told, the estimate included.
        seconds: Wall seconds of training over all attempts.
        repeats: Number of the trial that a finalist trains again with another seed.
        flags: What the health rules said of it: the reason, by the rule's name.
    """

    number: int
    label: str
    role: Role
    params: Mapping[str, ParamValue]
    sampled: Mapping[str, ParamValue]
    seed: int
    config_hash: str
    rungs: tuple[RungResult, ...] = ()
    outcome: Outcome | None = None
    reason: str = ""
    value: float | None = None
    imputed: bool = False
    told: float | None = None
    seconds: float = 0.0
    gpu_hours: float = 0.0
    attempts: int = 0
    mlflow_run_id: str | None = None
    state: State = "running"
    repeats: int | None = None
    flags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """All that is known about a sweep.

    Attributes:
        trials: Searched trials, known points and finalists' repeats, by number.
        control: The fine-tuning with AQR off and the seed of all trials, if the sweep has one and
            it began.
        control_repeats: The same with other seeds.
        attrs: Attributes of the sweep itself, such as `spec`, `metric` and `mode`.
    """

    name: str
    trials: tuple[TrialRecord, ...]
    control: TrialRecord | None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    control_repeats: tuple[TrialRecord, ...] = ()

    @property
    def searched(self) -> tuple[TrialRecord, ...]:
        """The trials the sweep chose itself."""
        return tuple(trial for trial in self.trials if trial.role == "search")

    @property
    def finalists(self) -> tuple[TrialRecord, ...]:
        """The repeats of the best trials, with other seeds."""
        return tuple(trial for trial in self.trials if trial.role == "finalist")

    @property
    def controls(self) -> tuple[TrialRecord, ...]:
        """The control with all of its seeds."""
        return (() if self.control is None else (self.control,)) + self.control_repeats

    @property
    def started(self) -> tuple[TrialRecord, ...]:
        """Every trial trained here, the control first."""
        return self.controls + self.searched + self.finalists


def trial_label(role: Role, number: int, config_hash: str) -> str:
    """A trial's identity within its sweep: `t007-0123abcd`, `control-...`, `control2-...`."""
    repeat = str(number + 1) if number else ""
    stem = f"control{repeat}" if role == "control" else f"t{number:03d}"
    return f"{stem}-{config_hash}"
