"""The record of a sweep: two Optuna studies in one storage, and their plain view.

This file alone knows how trials are laid out in the studies. Readers (analysis, report, export, the
command line) work on `SweepRecord`; the driver writes through `Ledger`.

The control stands in a study of its own, because its parameters lie outside the search space and
Optuna's samplers intersect the spaces of all completed trials.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeps.entries import Change
from sweeps.storage import close, open_for_writing, open_storage, sqlite_file, sqlite_url
from sweeps.trials import (
    Outcome,
    ParamValue,
    Role,
    RungResult,
    State,
    SweepRecord,
    TrialRecord,
    trial_label,
)
from sweeps.write_ahead import DiskWait, fold

# Two values of one rung are told apart by Optuna's integer step: the rung's place in the spec.
_STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "fail",
}


def control_study(name: str) -> str:
    """Name of the study that holds the sweep's control."""
    return f"{name}/control"


def read_sweep(storage_url: str, name: str) -> SweepRecord:
    """Read a sweep, also while its driver writes.

    Raises:
        FileNotFoundError: If there is no such storage.
        KeyError: If the storage holds no sweep of this name.
        StorageError: If the database cannot be used.
    """
    storage = open_storage(storage_url)
    try:
        return _read(storage, name)
    finally:
        close(storage)


def _read(storage: RDBStorage, name: str) -> SweepRecord:
    attrs = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    run_ids = {
        key.removeprefix(_RUN_ID): value for key, value in attrs.items() if key.startswith(_RUN_ID)
    }
    controls = _read_trials(storage, control_study(name), run_ids)
    return SweepRecord(
        name=name,
        trials=_read_trials(storage, name, run_ids),
        control=controls[0] if controls else None,
        control_repeats=controls[1:],
        attrs={key: value for key, value in attrs.items() if not key.startswith(_RUN_ID)},
    )


def _read_trials(
    storage: RDBStorage, study: str, run_ids: Mapping[str, str]
) -> tuple[TrialRecord, ...]:
    frozen = storage.get_all_trials(storage.get_study_id_from_name(study), deepcopy=False)
    trials = (_to_record(trial) for trial in sorted(frozen, key=lambda trial: trial.number))
    return tuple(replace(trial, mlflow_run_id=run_ids.get(trial.label)) for trial in trials)


# Attribute names. An end is one attribute, so that it stands whole or not at all.
_ROLE, _PARAMS, _SEED, _HASH = "role", "params", "seed", "config_hash"
_RUNGS, _ATTEMPTS, _END = "rungs", "attempts", "end"
_REPEATS, _FLAGS = "repeats", "flags"
_RUN_ID = "mlflow_run/"


def _to_record(trial: FrozenTrial) -> TrialRecord:
    attrs = trial.user_attrs
    end = attrs.get(_END, {})
    outcome: Outcome | None = end.get("outcome")
    # The end counts even where a kill came before Optuna's state: the next driver carries it out.
    told = end.get("told", trial.value if trial.state == TrialState.COMPLETE else None)
    rungs = tuple(RungResult(**rung) for rung in attrs.get(_RUNGS, ()))
    return TrialRecord(
        number=trial.number,
        label=trial_label(attrs[_ROLE], trial.number, attrs[_HASH]),
        role=attrs[_ROLE],
        params=attrs[_PARAMS],
        sampled=dict(trial.params),
        seed=attrs[_SEED],
        config_hash=attrs[_HASH],
        rungs=rungs,
        outcome=outcome,
        reason=end.get("reason", ""),
        value=told if outcome == "finished" else None,
        imputed=end.get("imputed", False),
        told=told,
        seconds=end.get("seconds", rungs[-1].seconds if rungs else 0.0),
        gpu_hours=end.get("gpu_hours", 0.0),
        attempts=attrs.get(_ATTEMPTS, 0),
        state=_STATES[trial.state] if outcome is None else _state(told),
        repeats=attrs.get(_REPEATS),
        flags=attrs.get(_FLAGS, {}),
    )


class Ledger:
    """The two studies of one sweep, for its one writer.

    Every change is in the storage when its method returns, whoever is killed then; `trials` is the
    same, in memory.

    Attributes:
        trials: The present record of each trial, by label.
    """

    def __init__(self, storage_url: str, name: str, *, mode: Literal["max", "min"]) -> None:
        self.name = name
        self._storage = open_for_writing(storage_url, name)
        self._file = sqlite_file(storage_url)
        self._disk = DiskWait(self._file)
        direction = "maximize" if mode == "max" else "minimize"
        studies = [
            optuna.create_study(
                storage=self._storage, study_name=study, direction=direction, load_if_exists=True
            )
            for study in (name, control_study(name))
        ]
        self._study_ids = [self._storage.get_study_id_from_name(s.study_name) for s in studies]
        record = self.read()
        known = (*record.trials, *record.controls)
        self.trials: dict[str, TrialRecord] = {trial.label: trial for trial in known}
        self._ids: dict[str, int] = {}  # Optuna's, by label

    def read(self) -> SweepRecord:
        """Read the whole sweep back from the storage."""
        return _read(self._storage, self.name)

    def close(self) -> None:
        """Let go of the storage's connections."""
        close(self._storage)
        if self._file is not None:
            fold(self._file)

    def catch_up(self) -> None:
        """See that what was written in a burst is on the disk, not only with the system."""
        self._disk.catch_up()

    def set_attr(self, key: str, value: Any) -> None:
        """Set an attribute of the sweep, a JSON value."""
        self.set_attrs({key: value})

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Set attributes of the sweep, all or none."""
        self._storage.set_study_user_attrs(self._study_ids[0], attrs)
        self._disk.note_commit()

    def set_mlflow_run_ids(self, run_ids: Mapping[str, str]) -> None:
        """Name the MLflow runs of trials by label; they may have ended already."""
        # Optuna refuses changes to ended trials, so the study carries the run ids.
        self.set_attrs({f"{_RUN_ID}{label}": run_id for label, run_id in run_ids.items()})
        for label, run_id in run_ids.items():
            self.trials[label] = replace(self.trials[label], mlflow_run_id=run_id)

    def add_trial(
        self,
        *,
        role: Role,
        params: Mapping[str, ParamValue],
        sampled: Mapping[str, ParamValue],
        distributions: Mapping[str, BaseDistribution],
        seed: int,
        config_hash: str,
        value: float | None = None,
        repeats: int | None = None,
    ) -> TrialRecord:
        """Enter a trial, whole or not at all; with a value, as one that has finished."""
        end = _end("finished", "", imputed=False, seconds=0.0, gpu_hours=0.0)
        attrs = {_ROLE: role, _PARAMS: dict(params), _SEED: seed, _HASH: config_hash}
        if repeats is not None:
            attrs[_REPEATS] = repeats
        template = create_trial(
            state=TrialState.RUNNING if value is None else TrialState.COMPLETE,
            value=value,
            params=dict(sampled),
            distributions=dict(distributions),
            user_attrs=attrs if value is None else {**attrs, _END: end},
        )
        study_id = self._study_ids[role == "control"]
        trial_id = self._storage.create_new_trial(study_id, template)
        template.number = self._storage.number_of(trial_id)
        trial = self._keep(_to_record(template))
        self._ids[trial.label] = trial_id
        self._disk.note_commit()
        return trial

    def start_attempt(self, label: str) -> TrialRecord:
        """Count an attempt at training."""
        trial = self.trials[label]
        attempts = trial.attempts + 1
        self._change(trial, {_ATTEMPTS: attempts})
        return self._keep(replace(trial, attempts=attempts))

    def set_flags(self, label: str, flags: Mapping[str, str]) -> TrialRecord:
        """Write down what the health rules have said of a trial so far."""
        trial = self.trials[label]
        self._change(trial, {_FLAGS: dict(flags)})
        return self._keep(replace(trial, flags=dict(flags)))

    def append_rung(self, label: str, rung: RungResult, *, objective: float) -> TrialRecord:
        """Write a rung, and the objective at it as the study's intermediate value."""
        trial = self.trials[label]
        rungs = (*trial.rungs, rung)
        plain = [{**asdict(each), "metrics": dict(each.metrics)} for each in rungs]
        self._change(trial, {_RUNGS: plain}, intermediate={len(rungs) - 1: objective})
        return self._keep(replace(trial, rungs=rungs, seconds=rung.seconds))

    def finish(
        self,
        label: str,
        *,
        outcome: Outcome,
        reason: str,
        told: float | None,
        seconds: float,
        gpu_hours: float,
    ) -> TrialRecord:
        """End a trial.

        Args:
            label: The trial.
            outcome: How it ended.
            reason: Why; only a finished trial needs none.
            told: What the study learns: the objective, or an estimate for a trial that was stopped
                at a rung.
            seconds: Wall seconds of training over all attempts.
            gpu_hours: The same in GPU-hours.

        Raises:
            ValueError: If the end lacks its reason or its value.
        """
        if outcome != "finished" and not reason:
            raise ValueError(f"a trial that ended as {outcome!r} must carry a reason")
        trial = self.trials[label]
        # A trial may be stopped before its first score, by what its statistics show.
        valued = outcome == "finished" or (outcome == "stopped" and len(trial.rungs) > 0)
        if (told is not None and math.isfinite(told)) != valued:
            raise ValueError(f"an outcome of {outcome!r} does not go with the value {told}")
        imputed = outcome == "stopped" and told is not None
        end = _end(outcome, reason, imputed=imputed, seconds=seconds, gpu_hours=gpu_hours)
        state = TrialState.FAIL if told is None else TrialState.COMPLETE
        values = () if told is None else (told,)
        self._change(trial, {_END: {**end, "told": told}}, state=state, values=values)
        return self._keep(
            replace(
                trial,
                outcome=outcome,
                reason=reason,
                told=told,
                value=told if outcome == "finished" else None,
                imputed=imputed,
                seconds=seconds,
                gpu_hours=gpu_hours,
                state=_state(told),
            )
        )

    def distributions(self, label: str) -> dict[str, BaseDistribution]:
        """The distributions a trial was drawn from."""
        return self._storage.get_trial(self._id(self.trials[label])).distributions

    def _change(self, trial: TrialRecord, attrs: Mapping[str, Any], **more: Any) -> None:
        """Write what belongs together, so that a kill leaves all of it or nothing."""
        self._storage.change_trial(self._id(trial), Change(attrs=attrs, **more))
        self._disk.note_commit()

    def _id(self, trial: TrialRecord) -> int:
        if trial.label not in self._ids:
            study_id = self._study_ids[trial.role == "control"]
            self._ids[trial.label] = self._storage.get_trial_id_from_study_id_trial_number(
                study_id, trial.number
            )
        return self._ids[trial.label]

    def _keep(self, trial: TrialRecord) -> TrialRecord:
        self.trials[trial.label] = trial
        return trial


def _state(told: float | None) -> State:
    return "fail" if told is None else "complete"


def _end(
    outcome: Outcome, reason: str, *, imputed: bool, seconds: float, gpu_hours: float
) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "reason": reason,
        "imputed": imputed,
        "seconds": seconds,
        "gpu_hours": gpu_hours,
    }


__all__ = [
    "Ledger",
    "Outcome",
    "ParamValue",
    "Role",
    "RungResult",
    "State",
    "SweepRecord",
    "TrialRecord",
    "open_storage",
    "read_sweep",
    "sqlite_url",
    "trial_label",
]
