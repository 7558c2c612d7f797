"""What `plan` finds out about the trainings of a spec before one of them starts."""

import subprocess
import sys
from textwrap import indent

import numpy as np
import pytest
import torch
from own_config import ROOT, write_config
from typer.testing import CliRunner

from aqr_model.preflight.reading import load_config
from launch.cli import app
from launch.opening import open_spec
from launch.training import resolve
from launch.workplace import Workplace
from sweeps.export import config_source, inherited_overrides

KEYS = "optimizer.paramwise_cfg.custom_keys"
SPEC = """\
name: demo
train:
  config: own.py
  epochs: 2
  overrides: {overrides}
objective: {{metric: NDS, noise: 0.004}}
space:
{space}
control: {control}
search: {{sampler: random}}
stopping: {{rule: none, rungs: [1.0]}}
budget: {{trials: 2}}
"""
RESIDUAL = "residual_weight: {low: 0.3, high: 0.9}"


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """Write a spec and its config."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def write(config="", space=RESIDUAL, overrides="{}", *, control=True, base="cmt_aqr_nano.py"):
        write_config(tmp_path, config, base=base)
        text = SPEC.format(
            space=indent(space, "  "), overrides=overrides, control=str(control).lower()
        )
        (tmp_path / "demo.yaml").write_text(text)
        return tmp_path / "demo.yaml"

    return write


@pytest.fixture
def plan(spec):
    """Exit code and words of a plan."""

    def run(*arguments, **options):
        spec(*arguments, **options)
        shown = CliRunner().invoke(app, ["plan", "demo.yaml"])
        assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.exception
        return shown.exit_code, " ".join(
            (shown.stderr if shown.exit_code else shown.output).split()
        )

    return run


def opened(path):
    return open_spec(path, Workplace(code=path.parent, root=path.parent))


def test_a_spec_that_can_start_is_planned(plan):
    code, said = plan()
    assert code == 0
    assert "Start it with aqr-sweep run demo.yaml" in said
    assert "Settings of the config" not in said


# --- mistakes of the spec itself -----------------------------------------------------------------


def test_mistakes_of_the_spec_are_told_without_the_training_stack(spec):
    path = spec("", "residual_weigth: {low: 0.3, high: 0.9}\ngaussian_sigma: {low: 0, high: 2}")
    code = (
        "import sys; from typer.testing import CliRunner; from launch.cli import app;"
        f"done = CliRunner().invoke(app, ['plan', {str(path)!r}]);"
        "print(done.exit_code, done.stderr);"
        "print(sorted({'torch', 'mmcv', 'mmdet3d', 'aqr_model', 'ray'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.startswith("2 ")
    assert "demo.yaml:8:3: space.residual_weigth: unknown knob" in done.stdout
    assert "`gaussian_sigma >= 0.1` must hold, but got 0" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_only_the_config_tells_comes_at_once(plan):
    code, said = plan(
        "",
        f"{RESIDUAL}\nmodel.pts_bbox_head.loss_cls.loss_wight: {{low: 1, high: 3}}",
        "{data.samples_per_gpus: 4, total_epochs: 3}",
    )
    assert code == 2
    assert "did you mean 'data.samples_per_gpu'?" in said
    assert "did you mean 'model.pts_bbox_head.loss_cls.loss_weight'?" in said
    assert "`train.epochs` says it for all trials of a sweep" in said
    assert "3 mistakes; nothing was started." in said


@pytest.mark.parametrize(
    ("key", "value", "owner"),
    [
        ("evaluation.rungs", "[0.5, 1.0]", "stopping.rungs"),
        ("evaluation.interval", "1", "stopping.rungs"),
        ("num_threads", "2", "resources.cpus"),
        ("seed", "3", "search.seed"),
        ("runner.max_epochs", "3", "train.epochs"),
    ],
)
def test_what_the_sweep_sets_is_set_in_one_place(plan, key, value, owner):
    code, said = plan(overrides=f"{{{key}: {value}}}")
    assert code == 2
    assert f"demo.yaml:5:15: train.overrides.{key}: must not be given: `{owner}` says it" in said


def test_what_the_sweep_sets_is_not_searched(plan):
    code, said = plan("", "total_epochs: {low: 1, high: 3}")
    assert code == 2
    assert "space.total_epochs: must not be searched: `train.epochs` says it" in said


def test_one_key_has_one_owner(plan):
    both = "transformer_lr_mult: {low: 0.1, high: 1}"
    code, said = plan(
        "",
        f"{both}\n{KEYS}.transformer.lr_mult: {{low: 1, high: 2}}",
        "{model.pts_bbox_head.modulator_config.residual_weight: 0.5}",
    )
    assert code == 2
    assert f"sets {KEYS}.transformer.lr_mult, which `space.transformer_lr_mult` sets too" in said
    code, said = plan(overrides="{model.pts_bbox_head.modulator_config.residual_weight: 0.5}")
    assert "which `train.overrides.model.pts_bbox_head.modulator_config.residual_weight`" in said


def test_a_key_that_nobody_reads_is_neither_overridden_nor_searched(plan):
    misplaced = (
        "optimizer_config = dict(paramwise_cfg=dict(custom_keys=dict(img_neck=dict(lr_mult=1))))"
    )
    key = "optimizer_config.paramwise_cfg.custom_keys.img_neck.lr_mult"
    for arguments in (
        (misplaced, f"{key}: {{low: 1, high: 9}}"),
        (misplaced, RESIDUAL, f"{{{key}: 3}}"),
    ):
        code, said = plan(*arguments)
        assert code == 2
        assert "`paramwise_cfg` is read at `optimizer.paramwise_cfg`: write it there." in said


# --- what would chase noise ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            f"{KEYS}.query_embed.lr_mult: {{low: 0.1, high: 1}}",
            "no parameter of the model has `query_embed` in its name",
        ),
        (
            f"{KEYS}.weight_predictor.lr_mult: {{low: 0.1, high: 1}}",
            "a longer key decides, `aqr_weight_generator`",
        ),
        ("amplification: {low: 1.1, high: 1.8}", "amplification sets no key of the config"),
        (
            "bilinear_radius: {low: 1, high: 4}",
            "`bilinear_radius` (4.0) has no effect with `render_method='gaussian'`",
        ),
        (
            "model.pts_bbox_head.loss_heatmap.loss_weight: {low: 1, high: 4}",
            "nothing of a training depends on model.pts_bbox_head.loss_heatmap.loss_weight here",
        ),
        (
            "model.train_cfg.pts.pos_weight: {choices: [-1, 1]}",
            "nothing of a training depends on model.train_cfg.pts.pos_weight here",
        ),
    ],
)
def test_a_parameter_of_which_nothing_depends_is_not_searched(plan, space, said):
    code, told = plan("", f"{RESIDUAL}\n{space}")
    assert code == 2
    name = space.partition(": ")[0]
    assert f"demo.yaml:9:3: space.{name}: must change something, but" in told
    assert said in told
    assert "1 mistake;" in told


def test_knobs_of_aqr_are_not_searched_where_aqr_is_off(plan):
    rates = "aqr_lr_mult: {low: 0.1, high: 10}\ntransformer_lr_mult: {low: 0.1, high: 1}"
    space = f"{RESIDUAL}\n{rates}"
    code, said = plan("", space, base="cmt_nano.py", control=False)
    assert code == 2
    assert "space.residual_weight: must change something, but nothing of a training" in said
    assert "AQR is off (`model.pts_bbox_head.enable_aqr`)" in said
    assert "space.aqr_lr_mult: must change something, but" in said
    assert "no parameter of the model has `aqr_weight_generator` in its name" in said
    assert "2 mistakes;" in said


def test_a_rate_of_what_is_frozen_is_not_searched(plan):
    code, said = plan(
        "freeze = ['pts_backbone']\n", f"{KEYS}.pts_backbone.lr_mult: {{low: 1, high: 2}}"
    )
    assert code == 2
    assert "are frozen" in said
    # Without it the same search is one.
    assert plan("", f"{KEYS}.pts_backbone.lr_mult: {{low: 1, high: 2}}")[0] == 0


def test_an_override_that_changes_nothing_is_refused(plan):
    code, said = plan(overrides="{model.pts_bbox_head.loss_heatmap.loss_weight: 3.0}")
    assert code == 2
    assert (
        "train.overrides.model.pts_bbox_head.loss_heatmap.loss_weight: must change something"
        in said
    )
    # What the config says already is no mistake.
    assert plan(overrides="{model.pts_bbox_head.loss_heatmap.loss_weight: 1.0}")[0] == 0


def test_a_parameter_acts_where_its_condition_holds(plan):
    space = (
        "render_method: {choices: [gaussian, bilinear]}\n"
        "bilinear_radius: {low: 1, high: 4, when: \"render_method == 'bilinear'\"}\n"
        "optimizer.type: {choices: [AdamW, SGD]}\n"
        "optimizer.momentum: {low: 0.8, high: 0.95, when: \"optimizer.type == 'SGD'\"}"
    )
    code, said = plan("", space)
    assert code == 0, said


# --- trainings that cannot start -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            "resume_from = 'work_dirs/base/epoch_15.pth'\n",
            "resume_from (own.py, line 2): `resume_from =",
        ),
        (
            "lr_config = dict(_delete_=True, policy='Ladder', step=[8, 11])\n",
            "lr_config (own.py, line 2): ",
        ),
        (
            "model = dict(pts_bbox_head=dict(attention_bias_config=None))\n",
            "model.pts_bbox_head.attention_bias_config (own.py, line 2): must be an argument",
        ),
        (
            "data = dict(train=dict(pipeline=[dict(type='PyramidAugmentation')]))\n",
            "data.train.pipeline.0 (own.py, line 2): must have a `type` that is registered",
        ),
        ("freeze = ['pts_bakbone']\n", "'pts_bakbone'"),
    ],
)
def test_a_config_whose_trainings_cannot_start_is_refused(plan, config, said):
    code, told = plan(config)
    assert code == 2
    assert f"demo.yaml:3:3: train.config: {said}" in told or said in told


def test_all_reasons_come_at_once_each_at_its_place(plan):
    code, said = plan(
        "lr_config = dict(policy='Ladder')\nfreeze = ['nothing']\n",
        overrides="{model.img_neck.norm_eval: true, data.samples_per_gpu: 2.5}",
    )
    assert code == 2
    for part in (
        "train.config: lr_config (own.py, line 2)",
        "train.config: freeze (own.py, line 3)",
        "train.overrides.model.img_neck.norm_eval: must be an argument of CPFPN",
        "train.overrides.data.samples_per_gpu: must be a whole number above 0, but got 2.5.",
        "4 mistakes;",
    ):
        assert part in said


def test_a_sweep_gives_its_own_epochs(plan):
    code, said = plan(
        "total_epochs = None\nrunner = dict(type='IterBasedRunner', max_iters=20)\n"
        "evaluation = dict(_delete_=True, interval=10)\n"
    )
    assert code == 0
    assert "2 a trial" in said
    assert "Settings of the config" not in said  # the sweep's own numbers stand in their place


def test_hooks_that_are_not_run_are_named_in_a_plan(plan):
    code, said = plan("custom_hooks = [dict(type='EMAHook'), dict(type='MyHook')]\n")
    assert code == 0
    assert "custom_hooks (own.py, line 2): MyHook is not run" in said


def test_a_checkpoint_must_fit_every_trial_and_the_control(plan, tmp_path):
    from mmdet3d.models import build_model

    own = build_model(load_config(write_config(tmp_path)).model).state_dict()
    torch.save({"state_dict": own}, tmp_path / "with_aqr.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "part.pth")
    code, said = plan("load_from = 'with_aqr.pth'\n")
    assert code == 2
    assert "control: load_from (own.py, line 2)" in said  # AQR's entries fit no plain detector
    assert plan("load_from = 'with_aqr.pth'\n", control=False)[0] == 0
    code, said = plan("load_from = 'part.pth'\n", control=False)
    assert code == 2
    assert "load_from (own.py, line 2)" in said


def test_trials_can_start_from_an_image_backbone_alone(plan, tmp_path):
    """As the public recipes do; schedules in steps, of mmdetection's recipes, are known too."""
    from mmdet3d.models import build_model

    own = build_model(load_config(write_config(tmp_path)).model).state_dict()
    backbone = {name: value for name, value in own.items() if name.startswith("img_backbone.")}
    torch.save({"state_dict": backbone}, tmp_path / "nuim.pth")
    steps = "lr_config = dict(_delete_=True, policy='step', warmup='linear', warmup_iters=5,"
    code, said = plan(f"load_from = 'nuim.pth'\n{steps} warmup_ratio=0.001, step=[1])\n")
    assert code == 0, said
    assert "Settings of the config" not in said


def test_each_value_of_a_key_must_be_one_to_train_with(plan):
    code, said = plan("", f"{RESIDUAL}\nmodel.pts_bbox_head.num_query: {{choices: [144, 150]}}")
    assert code == 2
    assert (
        "space.model.pts_bbox_head.num_query: must be a value to train with, but with 150" in said
    )
    assert "must be a square" in said
    code, said = plan("", f"{RESIDUAL}\ndata.samples_per_gpu: {{low: 1, high: 4}}")
    assert "space.data.samples_per_gpu: must be a whole number above 0, but got 1." in said
    assert plan("", f"{RESIDUAL}\ndata.samples_per_gpu: {{low: 1, high: 4, int: true}}")[0] == 0


def test_a_sweep_that_has_begun_goes_on_whatever_it_searches(spec):
    path = spec("", "bilinear_radius: {low: 1, high: 4}")
    place = Workplace(code=path.parent, root=path.parent)
    with pytest.raises(ValueError, match="must change something"):
        open_spec(path, place)
    assert open_spec(path, place, is_new=False).spec.space


# --- keys with dots in them ----------------------------------------------------------------------

DOTTED = (
    "optimizer = dict(paramwise_cfg=dict(custom_keys={'pts_bbox_head.transformer':"
    " dict(lr_mult=0.5)}))\n"
)
NAME = f"{KEYS}.pts_bbox_head.transformer.lr_mult"


def entries(path, **params):
    training = opened(path).training
    cfg = resolve(training.base, training.trial_overrides(params))
    return {k: dict(v) for k, v in cfg.optimizer.paramwise_cfg.custom_keys.items() if "transf" in k}


def test_an_override_changes_the_entry_that_the_config_has(spec):
    path = spec(DOTTED, overrides=f"{{{NAME}: 0.1}}")
    assert entries(path) == {
        "transformer": {"lr_mult": 1.0},
        "pts_bbox_head.transformer": {"lr_mult": 0.1},
    }


def test_such_an_entry_can_be_searched(spec, plan):
    path = spec(DOTTED, f"{NAME}: {{low: 0.1, high: 1.0}}")
    found = opened(path).spec.build_space().draw(np.random.default_rng(0))
    assert found.keys() == {NAME}
    assert entries(path, **{NAME: 0.25})["pts_bbox_head.transformer"] == {"lr_mult": 0.25}


def test_an_exported_config_trains_with_it(spec, tmp_path):
    path = spec(DOTTED, f"{NAME}: {{low: 0.1, high: 1.0}}\ntask_heads_lr_mult: {{low: 1, high: 2}}")
    training = opened(path).training
    overrides = training.trial_overrides({NAME: 0.25, "task_heads_lr_mult": 1.5})
    settings = inherited_overrides(overrides, training.base)
    out = tmp_path / "best.py"
    out.write_text(config_source({"_base_": ["./own.py"], **settings}))
    assert dict(load_config(out).items()) == dict(resolve(training.base, overrides).items())


def test_no_entry_is_made_by_the_way(plan):
    for arguments in (("", f"{NAME}: {{low: 0.1, high: 1}}"), ("", RESIDUAL, f"{{{NAME}: 0.1}}")):
        code, said = plan(*arguments)
        assert code == 2
        assert "must name an entry of optimizer.paramwise_cfg.custom_keys" in said
        assert "is written as a dict" in said
