"""Sweeps with several objectives, for the tests of what decides and of what shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweep_samples import HASH, KNOBS

from sweeps.spec import SweepSpec, parse_spec
from sweeps.trials import RungResult, SweepRecord, TrialRecord, trial_label

SPEC = """
name: demo
train: {{config: configs/nano.py, epochs: 2}}
objective: {{metric: NDS, noise: 0.002, also: {also}}}
space:
  amplification: {{low: 1.0, high: 1.9}}
  residual_weight: {{low: 0.1, high: 0.9}}
search: {{sampler: {sampler}, startup: 4}}
stopping: {{rule: safe, rungs: [0.5, 1.0]}}
control: {control}
finalists: {finalists}
budget: {{trials: 40}}
storage: {{path: {path}}}
"""
TIME = "[{metric: time, noise: 0.5}]"
THREE = (
    "[{metric: time, noise: 0.5}, "
    "{metric: AP, classes: [pedestrian, bicycle], mode: max, noise: 0.01}]"
)


def pareto_spec(
    path: Path,
    also: str = TIME,
    *,
    sampler: str = "gp",
    control: str = "true",
    finalists: str = "null",
) -> SweepSpec:
    text = SPEC.format(path=path, also=also, sampler=sampler, control=control, finalists=finalists)
    return parse_spec(text, source="demo.yaml", knobs=KNOBS, has_key=lambda key: True)


def scored(
    number: int,
    nds: float,
    seconds: float,
    ap: Sequence[float] = (0.3, 0.1),
    *,
    role: Any = "search",
    outcome: Any = "finished",
    seed: int = 0,
    repeats: int | None = None,
    gain: float = 0.05,
) -> TrialRecord:
    """A trial with values at half its budget and, if it finished, at the end; `ap` of two classes.

    Args:
        gain: What all metrics gain in the second half.
    """
    fractions = (0.5, 1.0) if outcome == "finished" else (0.5,) if outcome == "stopped" else ()
    rungs = tuple(
        RungResult(
            fraction=fraction,
            val_share=1.0,
            epoch=2 * fraction,
            step=int(100 * fraction),
            metrics={
                "val/nds": nds - (1 - fraction) * 2 * gain,
                "val/ap/pedestrian": ap[0] - (1 - fraction) * 2 * gain,
                "val/ap/bicycle": ap[1] - (1 - fraction) * 2 * gain,
            },
            checkpoint=None,
            seconds=seconds * fraction,
        )
        for fraction in fractions
    )
    sampled = {"amplification": 1 + number % 9 / 10, "residual_weight": 0.1 + number % 8 / 10}
    control = role == "control"
    told = nds if rungs else None
    return TrialRecord(
        number=number,
        label=trial_label(role, number, HASH),
        role=role,
        params={"enable_aqr": False} if control else sampled,
        sampled={} if control else sampled,
        seed=seed,
        config_hash=HASH,
        rungs=rungs,
        outcome=outcome,
        reason="" if outcome in ("finished", None) else "low",
        value=nds if outcome == "finished" else None,
        imputed=outcome == "stopped",
        told=told,
        seconds=seconds,
        attempts=1,
        state="running" if outcome is None else "complete" if told is not None else "fail",
        repeats=repeats,
    )


def pareto_record(
    spec: SweepSpec, *trials: TrialRecord, controls: Sequence[TrialRecord] = ()
) -> SweepRecord:
    return SweepRecord(
        name="demo",
        trials=trials,
        control=controls[0] if controls else None,
        control_repeats=tuple(controls[1:]),
        attrs={
            "metric": "val/nds",
            "mode": "max",
            "noise": spec.objective.noise,
            "spec": spec.dump(),
        },
    )
