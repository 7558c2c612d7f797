from pathlib import Path

import pytest
from spec_samples import FULL, KNOBS, SMALL, parse

from sweeps.spec import SpecError, SweepSpec, load_copy, load_spec, peek_config


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
        (", noise: 0.002", "", "objective.noise", "must be given"),
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
        ("{low: 0.6, high: 2.0}", "3", "space.gaussian_sigma", "{low, high}, {choices} or"),
        ("{low: 0.6, high: 2.0}", "{}", "space.gaussian_sigma", "{low, high}, {choices} or"),
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
            "sampler: grid",
            "search.sampler",
            "must be one of 'gp', 'tpe' or 'random'",
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
        ("trials: 24", "trials: 0", "budget.trials", "must be >= 1, but got 0"),
        ("hours: 72", "hours: 0", "budget.hours", "must be > 0.0, but got 0"),
        ("hours: 72", "gpu_hours: 72", "budget.gpu_hours", "valid: trials, hours"),
        ("gpus: 1", "gpus: 8", "resources.gpus", "`gpus <= 1` must hold, but got 8"),
        ("cpus: 6", "cpus: 0", "resources.cpus", "must be >= 1, but got 0"),
        ("uri: null", "uri: 3", "tracking.uri", "must be a text, but got 3"),
        ("{path: runs, study: null}", "runs", "storage", "must be a mapping with path, study"),
        ("name: aqr-clamp", "name: a\nhealth: default", "health", "unknown key 'health'"),
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


@pytest.mark.parametrize("text", [FULL, SMALL])
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
