"""Records and specs that the tests of readers share."""

from dataclasses import dataclass
from pathlib import Path

from sweeps.record import RungResult, SweepRecord, TrialRecord, trial_label
from sweeps.spec import SweepSpec, parse_spec

ATTRS = {"metric": "val/nds", "mode": "max", "noise": 0.002}
HASH = "abcd1234"


@dataclass(frozen=True, kw_only=True)
class Knob:
    name: str
    keys: tuple[str, ...] = ()
    default: float = 1.0
    low: float | None = None
    high: float | None = None
    choices: tuple | None = None


KNOBS = {name: Knob(name=name) for name in ("amplification", "residual_weight", "aqr_lr_mult")}
SPEC = """
name: demo
train: {{config: configs/nano.py, load_from: ckpts/nano.pth, epochs: 2}}
objective: {{metric: NDS, mode: max, noise: 0.002}}
space:
  amplification: {{low: 1.0, high: 1.9}}
  aqr_lr_mult: {{low: 0.1, high: 10, log: true}}
  residual_weight: {{choices: [0.4, 0.9]}}
constraints: [amplification <= 1.8]
stopping: {{rungs: [0.5, 1.0], val_shares: [0.5, 1.0]}}
budget: {{trials: 8}}
tracking: {{uri: {uri}}}
storage: {{path: {path}}}
"""


def make_spec(path: Path, *, uri: str = "null") -> SweepSpec:
    text = SPEC.format(path=path, uri=uri)
    return parse_spec(text, source="demo.yaml", knobs=KNOBS, has_key=lambda key: True)


def make_rung(fraction: float, nds: float, **metrics: float) -> RungResult:
    return RungResult(
        fraction=fraction,
        val_share=fraction,
        epoch=2 * fraction,
        step=int(100 * fraction),
        metrics={"val/nds": nds, "val/map": nds / 2, **metrics},
        checkpoint=None,
        seconds=3600 * fraction,
    )


def make_trial(
    number: int,
    nds: float | None,
    *,
    outcome: str | None = "finished",
    role: str = "search",
    at_half: float | None = None,
    sampled: dict | None = None,
    reason: str = "",
    seed: int = 0,
    **metrics: float,
) -> TrialRecord:
    """A trial with a score at half the budget and, if it finished, at the end."""
    half = nds - 0.05 if at_half is None and nds is not None else at_half
    rungs = () if half is None else (make_rung(0.5, half),)
    if outcome == "finished" and nds is not None:
        rungs = (*rungs, make_rung(1.0, nds, **metrics))
    sampled = {"amplification": 1 + number / 10} if sampled is None else sampled
    told = nds if outcome in ("finished", "stopped") else None
    return TrialRecord(
        number=number,
        label=trial_label(role, number, HASH),
        role=role,
        params={"enable_aqr": False} if role == "control" else sampled,
        sampled={} if role == "control" else sampled,
        seed=seed,
        config_hash=HASH,
        rungs=rungs,
        outcome=outcome,
        reason=reason or ("" if outcome in ("finished", None) else "low"),
        value=told if outcome == "finished" else None,
        imputed=outcome == "stopped",
        told=told,
        seconds=rungs[-1].seconds if rungs else 0.0,
        state="running" if outcome is None else "complete" if told is not None else "fail",
    )


def make_record(*trials: TrialRecord, control: TrialRecord | None = None, **attrs) -> SweepRecord:
    return SweepRecord(name="demo", trials=trials, control=control, attrs={**ATTRS, **attrs})
