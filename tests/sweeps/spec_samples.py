from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.spec import SweepSpec, parse_spec


@dataclass(frozen=True, kw_only=True)
class SampleKnob:
    name: str
    keys: tuple[str, ...] = ("some.key",)
    default: Any = None
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] | None = field(default=None)


KNOBS: Mapping[str, SampleKnob] = {
    knob.name: knob
    for knob in (
        SampleKnob(name="amplification", keys=(), low=1.0, high=10.0),
        SampleKnob(name="residual_weight", default=0.7, low=0.0, high=1.0),
        SampleKnob(name="max_weight_clamp", default=1.5, low=1.0, high=4.0),
        SampleKnob(name="gaussian_sigma", default=1.0, low=0.1, high=5.0),
        SampleKnob(name="aqr_lr_mult", default=1.0, low=0.01, high=100.0),
        SampleKnob(name="transformer_lr_mult", default=1.0, low=0.0, high=10.0),
        SampleKnob(name="mode", default="a", choices=("a", "b")),
        SampleKnob(name="x", default=0.5),
        SampleKnob(name="y", default=0.5),
    )
}

FULL = """\
name: aqr-clamp
train:
  config: configs/cmt.py
  load_from: ckpts/cmt.pth
  epochs: 1
  overrides: {data.samples_per_gpu: 4}
objective: {metric: NDS, mode: max, noise: 0.002}
space:
  amplification: {low: 1.0, high: 1.9}
  residual_weight: {low: 0.4, high: 0.9}
  max_weight_clamp: {derive: (amplification - residual_weight) / (1 - residual_weight)}
  gaussian_sigma: {low: 0.6, high: 2.0}
  aqr_lr_mult: {low: 0.1, high: 10, log: true}
  transformer_lr_mult: {choices: [0.3, 0.5, 0.8, 1.0]}
  model.head.loss_weight: {low: 1, high: 3, int: true}
constraints: [max_weight_clamp >= 1, max_weight_clamp <= 4]
known:
  - {params: {max_weight_clamp: 1.5, residual_weight: 0.7, model.head.loss_weight: 2}, NDS: 0.6849}
search: {sampler: gp, seed: 0}
stopping: {rule: safe, rungs: [0.25, 0.5, 1.0]}
control: true
budget: {trials: 24, hours: 72}
resources: {gpus: 1, cpus: 6, concurrent: 2}
tracking: {uri: null}
storage: {path: runs, study: null}
"""

SMALL = """\
name: small
train: {config: configs/nano.py, epochs: 1}
objective: {noise: 0.01}
space: {x: {low: 0, high: 1}, y: {low: 0, high: 1}}
constraints: [x + y <= 1.5]
search: {sampler: random, seed: 3}
stopping: {rule: none, rungs: [0.5, 1.0]}
budget: {trials: 4}
"""


def parse(text: str) -> SweepSpec:
    return parse_spec(
        text, source="spec.yaml", knobs=KNOBS, has_key=lambda key: key.startswith("model.head.")
    )


def small_spec(path: Path, **sections: str) -> SweepSpec:
    """The small spec under a path, with sections replaced by YAML texts."""
    lines = [*SMALL.splitlines(), f"storage: {{path: {path}}}"]
    for name, text in sections.items():
        lines = [line for line in lines if not line.startswith(f"{name}:")]
        lines.append(f"{name}: {text}")
    return parse("\n".join(lines))
