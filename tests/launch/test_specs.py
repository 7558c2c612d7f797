"""Ready specs, and any spec that loads: their points are configs whose head builds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqr_model.knobs import KNOBS
from aqr_model.preflight.dotted import has_key
from launch.checks import check_trainings
from launch.opening import open_spec
from launch.training import build_training, load_base, resolve
from launch.workplace import Workplace
from sweeps.spec import SweepSpec, parse_spec

# isort: split
from mmdet.models.builder import build_head

ROOT = Path(__file__).parents[2]
NANO = ROOT / "aqr_model/configs/cmt_aqr_nano.py"
SPECS = sorted((ROOT / "sweeps/specs").glob("*.yaml"))
few = settings(deadline=None, max_examples=15)


def ready(path: Path) -> Any:
    return pytest.param(path, id=path.stem)


@pytest.fixture(scope="module")
def nano() -> dict[str, Any]:
    return load_base(NANO)


@pytest.fixture(scope="module", params=[ready(path) for path in SPECS])
def opened(request: pytest.FixtureRequest) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        # Without checkpoints and data: a fresh checkout has none of the full sizes.
        yield open_spec(request.param, Workplace(code=ROOT, root=ROOT), check_files=False)


def points(spec: SweepSpec, count: int) -> list[dict[str, Any]]:
    """Parameters of some points: the starting ones, and those of the grid or at random."""
    space = spec.build_space()
    if spec.search.sampler == "grid":
        every = space.grid()
        sampled = [every[i] for i in np.linspace(0, len(every) - 1, count).astype(int)]
    else:
        rng = np.random.default_rng(0)
        sampled = [space.draw(rng) for _ in range(count)]
    return [*spec.start, *map(space.resolve, sampled)]


def head_of(spec: SweepSpec, base: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
    training = build_training(spec, base, root=ROOT)
    return build(resolve(training.base, training.trial_overrides(params)))


def build(config: Any) -> Any:
    model = config.model
    cfgs = {name: (model.get(name) or {}).get("pts") for name in ("train_cfg", "test_cfg")}
    return build_head(dict(model.pts_bbox_head) | cfgs)


def test_points_of_a_ready_spec_build_at_nano_size(opened: Any, nano: dict[str, Any]) -> None:
    for params in points(opened.spec, 6):
        head_of(opened.spec, nano, params)


def test_a_point_of_a_ready_spec_builds_at_its_own_size(opened: Any) -> None:
    params = points(opened.spec, 1)[-1]
    head = head_of(opened.spec, opened.training.base, params)
    if "residual_weight" in params:
        assert head.feature_modulator.residual_weight == params["residual_weight"]


def test_the_corrections_are_none_one_and_all() -> None:
    spec = parse_ready("corrections")
    grid = spec.build_space().grid()
    legacy = {n: axis.choices[0] for n, axis in spec.build_space().axes.items()}  # type: ignore[union-attr]
    corrected = [{n for n, value in point.items() if value != legacy[n]} for point in grid]
    assert sorted(map(len, corrected)) == [0, *[1] * 11, 11]
    assert spec.budget.trials == 13
    assert all(KNOBS[name].default != value for name, value in legacy.items())


def parse_ready(name: str) -> SweepSpec:
    base = load_base(ROOT / "aqr_model/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py")
    text = (ROOT / f"sweeps/specs/{name}.yaml").read_text()
    return parse_spec(text, source=name, knobs=KNOBS, has_key=lambda key: has_key(base, key))


NUMBERS = sorted(
    name
    for name, knob in KNOBS.items()
    if knob.keys and knob.low is not None and name != "seed" and not name.endswith("_schedule")
)
LISTS = sorted(name for name, knob in KNOBS.items() if knob.choices and name != "enable_aqr")


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """Spaces of knobs inside their ranges, as a spec writes them."""
    space: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=4, unique=True)):
        low, high = KNOBS[name].low, KNOBS[name].high
        assert low is not None
        assert high is not None
        a, b = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
        space[name] = {"low": low + a * (high - low), "high": low + b * (high - low)}
    # Some values of the legacy background want others with it: docs/aqr.md.
    for name in draw(st.lists(st.sampled_from(LISTS), max_size=4, unique=True)):
        values = list(KNOBS[name].choices or ())
        space[name] = {"choices": draw(st.permutations(values))[: draw(st.integers(1, 3))]}
    first = next(iter(space))
    for name in list(space)[1:]:
        if draw(st.booleans()) and "low" in space[first]:
            space[name]["when"] = f"{first} >= {space[first]['low']!r}"
    return space


@few
@given(space=spaces(), seed=st.integers(0, 99))
def test_any_spec_that_loads_resolves_into_a_config_that_builds(
    space: dict[str, Any], seed: int, nano: dict[str, Any]
) -> None:
    text = (
        (
            "name: any\ntrain: {config: c.py, epochs: 1}\nobjective: {noise: 0}\n"
            f"space: {space!r}\nsearch: {{sampler: random}}\nbudget: {{trials: 1}}\n"
        )
        .replace("True", "true")
        .replace("False", "false")
    )
    spec = parse_spec(text, source="s", knobs=KNOBS, has_key=lambda key: has_key(nano, key))
    built = spec.build_space()
    params = built.resolve(built.draw(np.random.default_rng(seed)))
    head = head_of(spec, nano, params)
    for name, attribute in (("gaussian_sigma", "weight_renderer.gaussian_sigma"),):
        if name in params:
            part, field = attribute.split(".")
            assert getattr(getattr(head, part), field) == params[name]


SCHEDULES = """
name: schedules
train: {config: c.py, epochs: 4}
objective: {noise: 0}
space:
  residual_schedule:
    {schedule: cosine, start_value: {low: 0.6, high: 0.9}, end_value: 0.4, warmup_epochs: 1}
  clamp_schedule:
    schedule: staged
    stages: [[0, {low: 2, high: 4}], [{low: 1, high: 3}, {choices: [1.5, 2.0]}]]
  transformer_lr_mult_schedule: {schedule: constant, value: {low: 0.1, high: 1, log: true}}
budget: {trials: 1}
"""


def test_schedules_reach_the_head_and_the_optimizer(nano: dict[str, Any]) -> None:
    spec = parse_spec(SCHEDULES, source="s", knobs=KNOBS, has_key=lambda key: has_key(nano, key))
    (params,) = points(spec, 1)
    assert params["residual_schedule.type"] == "cosine"
    assert list(spec.build_space().axes) == [
        "residual_schedule.start_value",
        "clamp_schedule.value_1",
        "clamp_schedule.from_epoch_2",
        "clamp_schedule.value_2",
        "transformer_lr_mult_schedule.value",
    ]
    training = build_training(spec, nano, root=ROOT)
    config = resolve(nano, training.trial_overrides(params))
    head = build(config)
    start, first = params["residual_schedule.start_value"], params["clamp_schedule.value_1"]
    head.set_epoch(0.5, 4.0)
    assert head.feature_modulator.residual_weight == start
    assert head.weight_renderer.max_weight_clamp == first
    head.set_epoch(4.0, 4.0)
    assert head.feature_modulator.residual_weight == 0.4
    assert head.weight_renderer.max_weight_clamp == params["clamp_schedule.value_2"]
    lr = config.optimizer.paramwise_cfg.custom_keys.transformer.lr_mult_schedule
    assert lr == {"type": "constant", "value": params["transformer_lr_mult_schedule.value"]}


def test_sensors_that_disagree_are_a_mistake_of_the_spec() -> None:
    text = (
        "name: one\ntrain: {config: c.py, epochs: 1, overrides: {seed: 0}}\nobjective: {noise: 0}\n"
        "space: {base_lr: {low: 0.001, high: 0.01}}\nsearch: {sampler: random}\n"
        "budget: {trials: 1}\n"
    )
    config = ROOT / "aqr_model/configs/cmt_lidar_nano.py"
    base, key = load_base(config), "model.pts_bbox_head.enable_aqr"
    for overrides, faults in (("{seed: 0}", 0), (f"{{{key}: true}}", 1)):
        spec = parse_spec(
            text.replace("{seed: 0}", overrides), source="s", knobs=KNOBS, has_key=bool
        )
        training = build_training(spec, base, root=ROOT)
        problems = check_trainings(spec, training, config, files=False).problems
        found = [problem for problem in problems if "CmtLidarHead" in problem[1]]
        assert len(found) == faults
    (place, said), *_ = found
    assert place == ("train", "overrides", key)
    assert "`enable_aqr` must be False for CmtLidarHead" in said
