from pathlib import Path

import pytest
from spec_samples import FULL, KNOBS, SMALL, SampleKnob, parse

from sweeps.spec import SpecError, SweepSpec, load_copy, load_spec, parse_spec, peek_config


def problems(text: str) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse(text)
    return {problem.where: problem.message for problem in caught.value.problems}


def swap(old: str, new: str, text: str = FULL) -> str:
    assert old in text
    return text.replace(old, new)


def test_reads_every_section() -> None:
    spec = parse(FULL)
    assert spec.train.overrides == {"data.samples_per_gpu": 4}
    assert spec.objective.key == "val/nds"
    assert spec.stopping.fidelities == ((0.25, 1.0), (0.5, 1.0), (1.0, 1.0))
    assert spec.resources.gpus == 1
    assert spec.budget.hours == 72
    assert list(spec.build_space().axes) == [
        "amplification",
        "residual_weight",
        "gaussian_sigma",
        "aqr_lr_mult",
        "transformer_lr_mult",
        "model.head.loss_weight",
    ]


def test_defaults_are_those_of_the_design() -> None:
    spec = parse(SMALL)
    assert spec.control
    assert spec.objective.metric == "NDS"
    assert spec.resources.gpus == 0
    assert spec.tracking.uri is None
    assert spec.directory == Path("runs/small").resolve()
    assert spec.storage_url == f"sqlite:///{Path('runs/small/study.db').resolve()}"


def test_startup_grows_with_the_budget_and_can_be_set() -> None:
    assert [parse(swap("trials: 24", f"trials: {n}")).startup for n in (3, 12, 15, 30, 300)] == [
        4,
        4,
        5,
        10,
        10,
    ]
    assert parse(swap("seed: 0", "seed: 0, startup: 2")).startup == 2


@pytest.mark.parametrize(
    ("noise", "control", "seeds"),
    [
        (", noise: 0.002", "true", 1),
        (", noise: 0.002", "false", 0),
        (", noise: 0.002", "{seeds: 4}", 4),
        ("", "true", 3),
        ("", "{seeds: 2}", 2),
    ],
)
def test_the_control_has_the_seeds_that_the_noise_needs(
    noise: str, control: str, seeds: int
) -> None:
    text = swap(", noise: 0.002", noise, swap("control: true", f"control: {control}"))
    assert parse(text).control_seeds == seeds


@pytest.mark.parametrize("control", ["false", "{seeds: 1}"])
def test_a_noise_that_nothing_measures_must_be_declared(control: str) -> None:
    text = swap(", noise: 0.002", "", swap("control: true", f"control: {control}"))
    found = problems(text)
    assert list(found) == ["objective"]
    assert "control: {seeds: 3}" in found["objective"]


def test_finals_limits_and_health_are_read() -> None:
    text = swap("control: true", "finalists: {top: 2, seeds: 3}\nhealth: [loss_rising]")
    spec = parse(swap("trials: 24, hours: 72", "gpu_hours: 450", text))
    assert spec.finalists is not None
    assert (spec.finalists.top, spec.finalists.seeds) == (2, 3)
    assert (spec.budget.trials, spec.budget.gpu_hours, spec.budget.hours) == (None, 450, None)
    assert spec.startup == 10
    assert list(spec.health) == ["loss_rising"]
    assert parse(SMALL).health == "default"
    assert parse(SMALL).finalists is None


def test_a_time_that_only_the_forecast_reads_is_no_part_of_the_training() -> None:
    timed = parse(swap("epochs: 1", "epochs: 1\n  seconds_per_iter: 0.5"))
    assert timed.train.content() == parse(FULL).train.content()


def test_known_points_are_completed_by_derivation_and_defaults() -> None:
    (point,) = parse(FULL).known
    assert point.value == 0.6849
    # A = r + c (1 - r); the rest are the knobs' defaults.
    assert point.params == {
        "max_weight_clamp": 1.5,
        "residual_weight": 0.7,
        "amplification": pytest.approx(0.7 + 1.5 * 0.3),
        "gaussian_sigma": 1.0,
        "aqr_lr_mult": 1.0,
        "transformer_lr_mult": 1.0,
        "model.head.loss_weight": 2,
    }


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        ("name: aqr-clamp", "name: a/b", "name", "String should match pattern"),
        ("name: aqr-clamp", "nam: a", "nam", "unknown key 'nam'; valid: name, train"),
        ("name: aqr-clamp", "nam: a", "name", "must be given"),
        ("epochs: 1", "epochs: 0", "train.epochs", "must be > 0.0, but got 0"),
        ("epochs: 1", "epochs: one", "train.epochs", "must be a number, but got 'one'"),
        ("config: configs/cmt.py", "config: 3", "train.config", "must be a text, but got 3"),
        ("epochs: 1", "epoch: 1", "train.epoch", "did you mean 'epochs'?"),
        ("noise: 0.002", "noise: -1", "objective.noise", "must be >= 0.0, but got -1"),
        ("noise: 0.002", "noise: .nan", "objective.noise", "must be finite, but got nan"),
        ("metric: NDS", "metric: nds", "objective.metric", "must be one of 'NDS', 'mAP'"),
        ("mode: max", "mode: min", "objective.mode", "must be 'max' for NDS, but got 'min'"),
        ("metric: NDS", "metric: mATE", "objective.mode", "must be 'min' for mATE"),
        (
            "low: 0.6, high: 2.0",
            "low: 2, high: 1",
            "space.gaussian_sigma.low",
            "`low <= high` must hold, but got (low=2, high=1)",
        ),
        ("low: 0.1, high: 10", "low: 0, high: 10", "space.aqr_lr_mult.low", "`low > 0` must hold"),
        ("log: true", "log: true, step: 1", "space.aqr_lr_mult.step", "must not be given with log"),
        ("high: 2.0", "high: 2.0, step: 0.5", "space.gaussian_sigma.step", "a multiple of step"),
        ("high: 2.0", "high: 2.0, step: 0", "space.gaussian_sigma.step", "must be > 0.0"),
        ("low: 1, high: 3", "low: 1.5, high: 3", "space.model.head.loss_weight.low", "whole"),
        ("high: 2.0", "high: .inf", "space.gaussian_sigma.high", "must be finite, but got inf"),
        ("low: 0.6, high: 2.0", "low: 0.6", "space.gaussian_sigma.high", "must be given"),
        ("log: true", "log: 1", "space.aqr_lr_mult.log", "must be true or false, but got 1"),
        ("low: 0.6,", "low: 0.6, lo: 1,", "space.gaussian_sigma.lo", "did you mean 'low'?"),
        ("{low: 0.6, high: 2.0}", "3", "space.gaussian_sigma", "{low, high}, {choices}, {fixed}"),
        ("{low: 0.6, high: 2.0}", "{}", "space.gaussian_sigma", "{low, high}, {choices}, {fixed}"),
        ("[0.3, 0.5, 0.8, 1.0]", "[]", "space.transformer_lr_mult.choices", "must not be empty"),
        ("[0.3, 0.5", "[0.5, 0.5", "space.transformer_lr_mult.choices", "but got 0.5 twice"),
        ("[0.3, 0.5, 0.8, 1.0]", "3", "space.transformer_lr_mult.choices", "must be a list"),
        ("low: 0.6", "low: 0.05", "space.gaussian_sigma.low", "`gaussian_sigma >= 0.1` must hold"),
        ("high: 2.0", "high: 6", "space.gaussian_sigma.high", "`gaussian_sigma <= 5` must hold"),
        ("[0.3,", "[30,", "space.transformer_lr_mult.choices", "<= 10` must hold, but got 30"),
        ("[0.3,", "[a,", "space.transformer_lr_mult.choices", "must be a number for"),
        ("  gaussian_sigma:", "  gausian_sigma:", "space.gausian_sigma", "'gaussian_sigma'?"),
        ("  model.head.", "  model.heed.", "space.model.heed.loss_weight", "must exist in the"),
        ("  gaussian_sigma:", "  seed:", "space.seed", "`search.seed` is the seed of every trial"),
        ("(amplification -", "(amplific -", "space.max_weight_clamp.derive", "'amplification'?"),
        ("(amplification -", "((amplification -", "space.max_weight_clamp.derive", "never closed"),
        (
            "(amplification -",
            "abz(amplification -",
            "space.max_weight_clamp.derive",
            "there are abs",
        ),
        (
            "(amplification -",
            "1j + (amplification -",
            "space.max_weight_clamp.derive",
            "is not a number",
        ),
        ("(amplification -", "(max_weight_clamp -", "space", "must not depend on each other"),
        ("max_weight_clamp <= 4", "clamp <= 4", "constraints.1", "unknown parameter 'clamp'"),
        ("max_weight_clamp <= 4", "max_weight_clamp", "constraints.1", "must compare"),
        ("max_weight_clamp <= 4", "3", "constraints.1", "must be a condition, but got 3"),
        ("max_weight_clamp <= 4", "max_weight_clamp <", "constraints.1", "must be an expression"),
        ("max_weight_clamp <= 4", "max_weight_clamp < 0", "constraints", "none of 5000 points"),
        (", max_weight_clamp <= 4", "", "space.max_weight_clamp.derive", "add a constraint on"),
        ("[max_weight_clamp >= 1, max_weight_clamp <= 4]", "1", "constraints", "must be a list"),
        ("NDS: 0.6849", "NDS: good", "known.0.NDS", "must be a number, but got 'good'"),
        (", NDS: 0.6849", "", "known.0.NDS", "must be given"),
        ("NDS: 0.6849", "nds: 0.6849", "known.0.nds", "unknown key 'nds'; valid: params, NDS"),
        ("residual_weight: 0.7", "residual: 0.7", "known.0.params", "unknown parameter 'residual'"),
        ("clamp: 1.5, resid", "clamp: 9, resid", "known.0.params", "is not reached by any"),
        ("residual_weight: 0.7", "residual_weight: 0.3", "known.0.params", "outside its axis"),
        (", model.head.loss_weight: 2}", "}", "known.0.params", "must give model.head.loss_weight"),
        (
            "sampler: gp",
            "sampler: grit",
            "search.sampler",
            "must be one of 'gp', 'tpe', 'random', 'grid' or 'cmaes'",
        ),
        ("seed: 0", "seed: -1", "search.seed", "must be >= 0, but got -1"),
        ("seed: 0", "seed: 0.5", "search.seed", "must be a whole number, but got 0.5"),
        ("rule: safe", "rule: asha", "stopping.rule", "must be one of 'safe', 'fast' or 'none'"),
        ("[0.25, 0.5, 1.0]", "[]", "stopping.rungs", "shares of the budget in (0, 1], but got []"),
        ("[0.25, 0.5, 1.0]", "[0, 1]", "stopping.rungs", "shares of the budget in (0, 1]"),
        ("[0.25, 0.5, 1.0]", "[0.5, 0.5, 1]", "stopping.rungs", "must increase strictly"),
        ("[0.25, 0.5, 1.0]", "[0.25, 0.5]", "stopping.rungs", "must end with 1, the full budget"),
        ("rungs:", "val_shares: [1], rungs:", "stopping.val_shares", "as many as rungs (3)"),
        ("rungs:", "val_shares: [1, 2, 1], rungs:", "stopping.val_shares", "shares of the scenes"),
        (
            "rungs:",
            "val_shares: [1, 1, 0.5], rungs:",
            "stopping.val_shares",
            "must end with 1, all",
        ),
        ("control: true", "control: 2", "control", "must be true or false, but got 2"),
        ("gpus: 1,", "silence_minutes: 0,", "resources.silence_minutes", "must be > 0.0, but got"),
        (
            "gpus: 1,",
            "silence_minutes: 1.0e+9,",
            "resources.silence_minutes",
            "must be <= 10080.0, but got 1000000000.0",
        ),
        ("trials: 24", "trials: 0", "budget.trials", "must be >= 1, but got 0"),
        ("hours: 72", "hours: 0", "budget.hours", "must be > 0.0, but got 0"),
        ("hours: 72", "gpu_hours: 0", "budget.gpu_hours", "must be > 0.0, but got 0"),
        ("hours: 72", "gpu_hour: 7", "budget.gpu_hour", "did you mean 'gpu_hours'?"),
        ("trials: 24, hours: 72", "", "budget.trials", "must be given, or gpu_hours, or hours"),
        (
            "hours: 72}\nresources: {gpus: 1",
            "gpu_hours: 9}\nresources: {gpus: 0",
            "budget",
            "trials take no GPU",
        ),
        ("control: true", "control: yes please", "control", "must be true or false, but got"),
        ("control: true", "control: {seeds: 0}", "control.seeds", "must be >= 1, but got 0"),
        ("control: true", "control: {seed: 2}", "control.seed", "did you mean 'seeds'?"),
        ("control: true", "finalists: 2", "finalists", "must be a mapping with top, seeds"),
        ("control: true", "finalists: {top: 2}", "finalists.seeds", "must be given"),
        ("control: true", "finalists: {top: 0, seeds: 1}", "finalists.top", "must be >= 1"),
        ("epochs: 1", "epochs: 1\n  seconds_per_iter: 0", "train.seconds_per_iter", "must be > 0"),
        ("name: aqr-clamp", "name: a\nhealth: [los_rising]", "health", "'loss_rising'"),
        ("name: aqr-clamp", "name: a\nhealth: 3", "health", "must be default, off or a list"),
        ("gpus: 1", "gpus: 8", "resources.cpus", "must be a multiple of gpus (8)"),
        ("cpus: 6", "cpus: 0", "resources.cpus", "must be >= 1, but got 0"),
        ("uri: null", "uri: 3", "tracking.uri", "must be a text, but got 3"),
        ("{path: runs, study: null}", "runs", "storage", "must be a mapping with path, study"),
        ("name: aqr-clamp", "name: [a", "file", "must be YAML:"),
        ("name: aqr-clamp", "name: a\nname: b", "file", "must be YAML: found duplicate key"),
    ],
)
def test_refuses(old: str, new: str, where: str, message: str) -> None:
    found = problems(swap(old, new))
    assert message in found[where], found


def test_refuses_an_axis_that_no_default_can_fill_for_a_known_point() -> None:
    text = swap("params: {max_weight_clamp: 1.5, residual_weight: 0.7,", "params: {")
    assert "must give amplification" in problems(text)["known.0.params"]


def test_refuses_a_known_point_that_breaks_a_constraint() -> None:
    text = swap("max_weight_clamp >= 1,", "max_weight_clamp >= 1.6,")
    assert "but breaks max_weight_clamp >= 1.6" in problems(text)["known.0.params"]


def test_refuses_a_known_point_that_contradicts_itself() -> None:
    text = swap("residual_weight: 0.7,", "residual_weight: 0.7, amplification: 1.5,")
    assert "contradicts its derivation" in problems(text)["known.0.params"]


def test_places_all_mistakes_at_once() -> None:
    text = swap("epochs: 1", "epocs: 1")
    text = swap("low: 0.6, high: 2.0", "low: 3, high: 2", text)
    text = swap("max_weight_clamp <= 4", "max_weight_clam <= 4", text)
    text = swap("trials: 24", "trials: none", text)
    with pytest.raises(SpecError) as caught:
        parse(text)
    assert [(p.line, p.column, p.where) for p in caught.value.problems] == [
        (2, 1, "train.epochs"),
        (5, 3, "train.epocs"),
        (12, 20, "space.gaussian_sigma.low"),
        (16, 38, "constraints.1"),
        (22, 10, "budget.trials"),
    ]
    first = str(caught.value).splitlines()[0]
    assert first == "spec.yaml:2:1: train.epochs: must be given"


def test_an_empty_file_and_a_list_are_refused() -> None:
    assert problems("") == {"file": "must be a mapping, but got None"}
    assert "must be a mapping" in problems("- a")["file"]


FINALS = SMALL.replace("objective: {noise: 0.01}", "objective: {}\ncontrol: {seeds: 2}") + (
    "finalists: {top: 1, seeds: 2}\nhealth: [loss_rising, {rule: loss_flat, action: flag}]\n"
)


@pytest.mark.parametrize("text", [FULL, SMALL, FINALS])
def test_the_copy_reads_back_equal(text: str, tmp_path: Path) -> None:
    spec = parse(text)
    spec.write_copy(tmp_path)
    assert load_copy(tmp_path) == spec
    copied = load_copy(tmp_path)
    assert list(copied.space) == list(spec.space)  # columns keep the order of the spec
    assert list(copied.dump()) == list(spec.dump())


def test_load_spec_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(swap("trials: 24", "trials: 0"))
    with pytest.raises(SpecError, match=r"bad\.yaml:22:10: budget\.trials"):
        load_spec(path, knobs=KNOBS, has_key=lambda key: True)


def test_peek_config_needs_no_valid_spec(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("train: {config: a.py, epocs: 1}")
    assert peek_config(path) == "a.py"
    path.write_text("train: 3")
    assert peek_config(path) is None


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(SMALL).name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_sections_given_in_python_are_checked_too() -> None:
    with pytest.raises(ValueError, match="must end with 1"):
        SweepSpec.model_validate({**parse(SMALL).model_dump(), "stopping": {"rungs": [0.5]}})


CONDITIONAL = swap(
    "gaussian_sigma: {low: 0.6, high: 2.0}",
    "mode: {choices: [a, b]}\n"
    "  gaussian_sigma: {low: 0.6, high: 2.0, when: \"mode == 'a'\"}\n"
    "  x: {fixed: 0.25}",
    swap("sampler: gp", "sampler: tpe"),
)


def test_conditions_constants_and_starting_points_are_read(tmp_path: Path) -> None:
    start = "start:\n  - {max_weight_clamp: 2.0, residual_weight: 0.6, model.head.loss_weight: 1}\n"
    text = CONDITIONAL.replace("search:", f"{start}search:")
    spec = parse(text)
    (first,) = spec.start
    assert first["mode"] == "a"
    assert first["gaussian_sigma"] == 1.0
    assert first["x"] == 0.25
    assert first["amplification"] == pytest.approx(0.6 + 2.0 * 0.4)
    spec.write_copy(tmp_path)
    assert load_copy(tmp_path) == spec
    other = parse(text.replace("loss_weight: 1}", "loss_weight: 1, mode: b}"))
    assert "gaussian_sigma" not in other.start[0]


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        ("sampler: tpe", "sampler: gp", "search.sampler", "set `search: {sampler: tpe}`"),
        ("== 'a'", "== a", "space.gaussian_sigma.when", "a text needs quotes: 'a'"),
        ("== 'a'", "== 'aa'", "space.gaussian_sigma.when", "unknown value 'aa'; valid: a, b"),
        ("mode == 'a'", "mod == 'a'", "space.gaussian_sigma.when", "did you mean 'mode'?"),
        ("mode == 'a'", "mode", "space.gaussian_sigma.when", "must compare"),
        ("mode == 'a'", "mode == ", "space.gaussian_sigma.when", "must be an expression"),
        ("mode == 'a'", "gaussian_sigma > 1", "space", "in a circle: gaussian_sigma"),
        ("x: {fixed: 0.25}", "x: {fixed: [1]}", "space.x.fixed.float", "must be a number"),
        ("x: {fixed: 0.25}", "aqr_lr: {fixed: 0.25}", "space.aqr_lr", "'aqr_lr_mult'?"),
        ("x: {fixed: 0.25}", "mode.y: {fixed: 1}", "space.mode.y", "must exist in the config"),
        ("max_weight_clamp: 1.5, r", "mode: b, gaussian_sigma: 1, r", "known.0.params", "amplif"),
        (
            "max_weight_clamp: 1.5, r",
            "max_weight_clamp: 1.5, mode: b, gaussian_sigma: 1, r",
            "known.0.params",
            "must not give gaussian_sigma, which is inactive there: `mode == 'a'` does not hold",
        ),
        ("max_weight_clamp: 1.5, r", "x: 1, max_weight_clamp: 1.5, r", "known.0.params", "fixed"),
        ("search:", "start: 3\nsearch:", "start", "must be a list of points, but got 3"),
        ("search:", "start: [3]\nsearch:", "start.0", "must be a mapping of parameters to values"),
        ("search:", "start: [{sigma: 3}]\nsearch:", "start.0", "unknown parameter 'sigma'"),
        ("tpe, seed: 0", "grid", "space.gaussian_sigma", "must have points, step or int"),
        ("high: 2.0,", "high: 2.0, points: 3,", "space.gaussian_sigma.points", "a grid reads it"),
        ("high: 2.0,", "high: 2.0, points: 1,", "space.gaussian_sigma.points", "must be >= 2"),
    ],
)
def test_refuses_in_a_conditional_spec(old: str, new: str, where: str, message: str) -> None:
    found = problems(swap(old, new, CONDITIONAL))
    assert message in found[where], found


def test_more_starting_points_than_trials_are_refused() -> None:
    points = ", ".join("{x: 0.5}" for _ in range(5))
    text = SMALL + f"start: [{points}]\n"
    assert "no more points than budget.trials (4), but got 5" in problems(text)["start"]


GRID = """\
name: grid
train: {config: configs/nano.py, epochs: 1}
objective: {noise: 0.01}
space: {x: {low: 0, high: 1, points: 3}, y: {low: 0, high: 4, int: true}}
constraints: [x + y <= 4.5]
search: {sampler: grid}
"""


def test_the_trials_of_a_grid_are_its_feasible_points(tmp_path: Path) -> None:
    spec = parse(GRID)
    assert spec.budget.trials == 14
    spec.write_copy(tmp_path)
    assert load_copy(tmp_path) == spec
    assert parse(GRID + "budget: {trials: 5}").budget.trials == 5


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        (GRID + "budget: {trials: 15}", "budget.trials", "`trials <= 14` must hold"),
        (GRID.replace("<= 4.5", "<= -1"), "constraints", "no point of the grid meets"),
        (GRID + "start: [{x: 0, y: 0}]", "start", "visits every point anyway"),
        (GRID.replace("points: 3", "points: 30000"), "constraints", "no more than 100000 points"),
    ],
)
def test_refuses_in_a_grid(text: str, where: str, message: str) -> None:
    assert message in problems(text)[where]


def test_cmaes_needs_numbers() -> None:
    found = problems(swap("sampler: gp", "sampler: cmaes"))
    assert "which knows numbers alone" in found["space.transformer_lr_mult"]
    assert "search.sampler" not in found


SCHEDULED = """\
name: scheduled
train: {config: configs/nano.py, epochs: 2}
objective: {noise: 0.01}
space:
  r_schedule: {schedule: cosine, start_value: {low: 0.5, high: 0.9}, end_value: 0.4}
  c_schedule:
    schedule: staged
    stages:
      - [0, {low: 1, high: 3}]
      - [{low: 0.5, high: 1.5}, 1.2]
budget: {trials: 4}
"""


def parse_scheduled(text: str) -> SweepSpec:
    knobs = {
        "r_schedule": SampleKnob(name="r_schedule", low=0.0, high=1.0),
        "c_schedule": SampleKnob(name="c_schedule", low=1.0, high=4.0),
        "r": SampleKnob(name="r", low=0.0, high=1.0),
    }
    return parse_spec(text, source="spec.yaml", knobs=knobs, has_key=lambda key: False)


def test_a_schedule_is_read_in_its_parts(tmp_path: Path) -> None:
    spec = parse_scheduled(SCHEDULED)
    space = spec.build_space()
    assert list(space.axes) == [
        "r_schedule.start_value",
        "c_schedule.value_1",
        "c_schedule.from_epoch_2",
    ]
    assert space.fixed == {
        "r_schedule.type": "cosine",
        "r_schedule.end_value": 0.4,
        "c_schedule.type": "staged",
        "c_schedule.from_epoch_1": 0.0,
        "c_schedule.value_2": 1.2,
    }
    assert [c.text for c in space.constraints] == [
        "c_schedule.from_epoch_1 < c_schedule.from_epoch_2"
    ]
    spec.write_copy(tmp_path)
    assert load_copy(tmp_path) == spec


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("cosine", "cosinus", "5:16: space.r_schedule.schedule", "must be one of 'constant'"),
        ("end_value: 0.4", "", "5:3: space.r_schedule.end_value", "must be given in a cosine"),
        ("end_value: 0.4", "end: 0.4", "5:70: space.r_schedule.end", "unknown key 'end'"),
        ("high: 0.9", "high: 1.2", "5:58: space.r_schedule.start_value.high", "<= 1` must hold"),
        ("high: 0.9", "hi: 0.9", "5:58: space.r_schedule.start_value.hi", "mean 'high'?"),
        ("end_value: 0.4", "end_value: x", "5:70: space.r_schedule.end_value", "must be a number"),
        ("0.4}", "0.4, value: 1}", "5:86: space.r_schedule.value", "must not be given in a cos"),
        ("0.4}", "0.4, warmup_epochs: 2}", "5:86: space.r_schedule.warmup_epochs", "before the"),
        ("[0, {", "[1, {", "8:5: space.c_schedule.stages", "must begin at epoch 0, but got 1"),
        ("high: 1.5}, 1.2", "high: 2.5}, 1.2", "10:10: space.c_schedule.stages.1.0", "before the"),
        ("high: 1.5}, 1.2", "high: 1.5}, 9", "10:33: space.c_schedule.stages.1.1.fixed", "<= 4`"),
        ("  r_schedule", "  r_shedule", "5:3: space.r_shedule", "did you mean 'r_schedule'?"),
        ("  r_schedule", "  r", "5:3: space.r", "must be a number, not a schedule"),
        ("high: 0.9}", 'high: 0.9, when: "1 < 2"}', "5:34: space.r_schedule.start_value", "own"),
    ],
)
def test_refuses_in_a_schedule(old: str, new: str, place: str, message: str) -> None:
    assert old in SCHEDULED
    with pytest.raises(SpecError) as caught:
        parse_scheduled(SCHEDULED.replace(old, new, 1))
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"spec.yaml:{place}: ") and message in line for line in lines), lines
