"""Keys that nothing reads, values that no reader takes, and keys that may be set anew."""

import pytest
from own_config import write_config

from aqr_model.knobs import KNOBS
from aqr_model.preflight.findings import Findings
from aqr_model.preflight.keys import check_idle, check_values, refusal
from aqr_model.preflight.reading import load_config
from aqr_model.preflight.source import Places

STEPS = [{"type": "Load", "dim": 5}, {"type": "Crop", "size": 3}]
BASE = {
    "model": {
        "type": "CmtDetector",
        "pts_bbox_head": {
            "type": "CmtHead",
            "enable_aqr": True,
            "aqr_config": {"window_sizes": [5, 3]},
            "loss_cls": {"type": "FocalLoss", "loss_weight": 2.0},
        },
        "train_cfg": {"pts": {"out_size_factor": 8}},
    },
    "optimizer": {
        "type": "AdamW",
        "lr": 1e-4,
        "paramwise_cfg": {"custom_keys": {"img_backbone": {"lr_mult": 0.1}}},
    },
    "data": {
        "samples_per_gpu": 2,
        "workers_per_gpu": 0,
        "train": {"type": "CBGSDataset", "dataset": {"type": "NuScenes", "ann_file": "a.pkl"}},
        "val": {
            "type": "NuScenes",
            "pipeline": STEPS,
        },
    },
    "lr_config": {"policy": "CosineAnnealing", "min_lr_ratio": 0.1},
    "pipeline": STEPS,
    "total_epochs": 6,
}


def found(config, source=None):
    findings = Findings()
    check_values(config, findings)
    check_idle(config, findings, source)
    return findings


def changed(key, value):
    """The base with one value more; keys hold no dots."""
    *parents, last = key.split(".")
    config = dict(BASE)
    node = config
    for part in parents:
        node[part] = dict(node.get(part, {}))
        node = node[part]
    node[last] = value
    return config


def test_a_config_without_idle_keys_says_nothing():
    assert found(BASE) == Findings()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "optimizer_config.paramwise_cfg",
            {"custom_keys": {}},
            "`paramwise_cfg` is read at `optimizer.paramwise_cfg`",
        ),
        ("samples_per_gpu", 4, "`samples_per_gpu` is read at `data.samples_per_gpu`"),
        (
            "optimizer_config.grad_clp",
            {"max_norm": 35},
            "Did you mean `optimizer_config.grad_clip`",
        ),
        (
            "optimizer_config.grad_clip.norm",
            2,
            "Did you mean `optimizer_config.grad_clip.max_norm`",
        ),
        ("optimizer_config.grad_clip.x", 2, "max_norm, norm_type are read"),
        (
            "optimizer.paramwise_cfg.custom_key",
            {"neck": {}},
            "`optimizer.paramwise_cfg.custom_keys`",
        ),
        ("optimizer.paramwise_cfg.custom_keys.neck.lr_mul", 0.1, "custom_keys.neck.lr_mult`"),
        ("checkpoint_config.intervall", 1, "Did you mean `checkpoint_config.interval`"),
        ("evaluation.metric", "waymo", "always those of nuScenes' detection task"),
        ("data.train_dataloader", {"samples_per_gpu": 8}, "`data.samples_per_gpu`"),
        ("data.shuffler_sampler", {"type": "S"}, "no sampler is built"),
        ("log_config.hooks", [{"type": "TextLoggerHook"}, {"type": "WandbLoggerHook"}], "WandbLog"),
        ("workflow", [("train", 1), ("val", 1)], "[('val', 1)] is not run"),
        ("runner.type", "IterBasedRunner", "Write it in epochs"),
        ("lr_confg", {"policy": "step"}, "Did you mean `lr_config`"),
    ],
)
def test_a_key_that_nothing_reads_is_named_with_what_to_do(key, value, said):
    findings = found(changed(key, value))
    assert findings.errors == []
    (warning,) = findings.warnings
    assert warning.key == key
    assert said in warning.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dist_params", {"backend": "nccl"}),
        ("log_level", "INFO"),
        ("plugin", True),
        ("plugin_dir", "projects/mmdet3d_plugin/"),
        ("opencv_num_threads", 0),
        ("gpu_ids", [0, 1]),
        ("custom_imports", {"imports": []}),
        ("work_dir", "w"),
        ("resume_from", "work_dirs/epoch_15.pth"),
        ("workflow", [("train", 1)]),
        ("auto_resume", True),
        ("auto_scale_lr", {"enable": False, "base_batch_size": 16}),
        ("custom_hooks", [{"type": "NumClassCheckHook"}]),
        ("log_config.hooks", [{"type": "TextLoggerHook"}]),
        ("runner.type", "EpochBasedRunner"),
        ("evaluation.metric", "bbox"),
        ("data.test", {"type": "NuScenes"}),
        ("momentum_config", None),
    ],
)
def test_what_everybody_writes_or_asks_for_nothing_is_quiet(key, value):
    assert found(changed(key, value)) == Findings()


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("total_epochs", "20", "a number above 0"),
        ("seed", 0.5, "a whole number"),
        ("data.samples_per_gpu", 2.5, "a whole number above 0"),
        ("data.samples_per_gpu", True, "a whole number above 0"),
        ("data.workers_per_gpu", -1, "a whole number, 0 or more"),
        ("find_unused_parameters", "False", "True or False"),
        ("optimizer.lr", "1e-4", "a number above 0"),
        ("optimizer.paramwise_cfg.custom_keys.img_backbone.lr_mult", "0.1", "a number, 0 or more"),
        ("optimizer_config.grad_clip", 35, "a dict"),
        ("optimizer_config.grad_clip.max_norm", 0, "a number above 0, or inf"),
        ("optimizer_config.cumulative_iters", 1.5, "a whole number above 0"),
        ("evaluation.rungs", 1.0, "a list of numbers above 0, at most 1"),
        ("evaluation.val_shares", [0, 1.0], "a list of numbers above 0, at most 1"),
        ("evaluation", True, "a dict"),
        ("freeze", "pts_backbone", "a list of names"),
        ("load_from", True, "a text"),
        ("checkpoint_config.interval", -2, "a number above 0"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(key, value, wanted):
    (error,) = found(changed(key, value)).errors
    assert error.key == key
    assert error.text.startswith(f"must be {wanted}")
    assert error.text.endswith(f"but got {value!r}.")


def test_all_that_a_training_needs_must_be_given():
    assert {error.key for error in found({}).errors} == {
        *("model", "data.train", "data.val", "data.samples_per_gpu", "data.workers_per_gpu"),
        *("optimizer.type", "optimizer.lr"),
    }
    findings = Findings()
    check_values({}, findings, of_scoring=True)
    assert {e.key for e in findings.errors} == {"model", "data.val", "data.workers_per_gpu"}


def test_names_that_served_to_write_the_config_are_quiet(tmp_path):
    path = write_config(
        tmp_path,
        "sizes = [3, 5]\n"
        "half = 0.5\n"
        "model = dict(pts_bbox_head=dict(aqr_config=dict(window_sizes=sizes)))\n"
        "lr_config = dict(step_ratio_up=half)\n",
    )
    assert found(dict(load_config(path).items()), path) == Findings()


def test_a_name_that_a_base_has_used_already_is_named_with_its_line(tmp_path):
    path = write_config(tmp_path, "\nbatch = 4\nvoxel_size = [0.32, 0.32, 8.0]\n")
    findings = found(dict(load_config(path).items()), path).placed(Places(path))
    assert [(w.key, w.at) for w in findings.warnings] == [
        ("voxel_size", f"{path}, line 4"),
        ("batch", f"{path}, line 3"),
    ]
    assert "has used is not used again" in findings.warnings[0].text


def test_of_a_dumped_config_values_tell_which_names_served(tmp_path):
    names = (
        "class_names = ['car']\nnorm = dict(mean=[1.0])\nimg_norm = dict(mean=[2.0])\nstride = 4\n"
    )
    used = "data = dict(train=dict(classes=['car'], pipeline=[dict(type='N', mean=[1.0])]))\n"
    path = tmp_path / "dumped.py"
    path.write_text(names + used + "own = dict(a=1)\n")
    keys = {warning.key for warning in found(dict(load_config(path).items()), path).warnings}
    assert keys == {"img_norm", "own"}


# --- keys that an override or a search sets ------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "data.samples_per_gpu",
        "data.val.pipeline.1.size",
        "model.pts_bbox_head.aqr_config.window_sizes.0",
        "optimizer.paramwise_cfg.custom_keys.img_backbone.lr_mult",
        # New, and somebody reads them.
        "optimizer.paramwise_cfg.custom_keys.pts_neck.lr_mult",
        "optimizer.paramwise_cfg.norm_decay_mult",
        "optimizer.weight_decay",  # an argument of AdamW
        "data.train.dataset.load_interval",
        "model.pts_bbox_head.visualization_interval",
        "optimizer_config.cumulative_iters",
        "optimizer_config",
        "fp16.loss_scale",
        "bf16",
        "lr_config.warmup_iters",
        "momentum_config.policy",
        "seed",
    ],
)
def test_keys_that_are_read_may_be_set(key):
    assert refusal(key, BASE) is None


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("data.samples_per_gpus", "data.samples_per_gpu"),
        ("data.sample_per_gpu", "data.samples_per_gpu"),
        ("totel_epochs", "total_epochs"),
        ("optimzer.lr", "optimizer"),
        ("optimizer_confg.cumulative_iters", "optimizer_config"),
        ("optimizer_config.cumulative_iter", "optimizer_config.cumulative_iters"),
        ("checkpoint_config.intervall", "checkpoint_config.interval"),
        ("model.pts_bbox_head.enable_aqrs", "model.pts_bbox_head.enable_aqr"),
        ("model.pts_bbox_hed.enable_aqr", "model.pts_bbox_head"),
        ("model.train_cfg.pts.out_sizefactor", "model.train_cfg.pts.out_size_factor"),
        ("data.val.pipeline.1.sizes", "data.val.pipeline.1.size"),
        ("optimizer.paramwise_cfg.custom_key.neck", "optimizer.paramwise_cfg.custom_keys"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_name(key, meant):
    message = refusal(key, BASE)
    assert "must exist in the config" in message
    assert f"but got {key!r}; did you mean {meant!r}?" in message
    assert "a config file" in message


def test_a_key_that_is_there_but_idle_is_refused_with_where_it_is_read():
    base = {
        **BASE,
        "optimizer_config": {"paramwise_cfg": {"custom_keys": {"neck": {"lr_mult": 1}}}},
    }
    message = refusal("optimizer_config.paramwise_cfg.custom_keys.neck.lr_mult", base)
    assert message.startswith("must be a key that something reads, but got 'optimizer_config.")
    assert "`paramwise_cfg` is read at `optimizer.paramwise_cfg`" in message
    assert refusal("log_level", BASE).endswith("but nothing reads 'log_level'.")
    # A name that the file has used already: what it became stands elsewhere.
    assert "must be a key that something reads" in refusal("pipeline.0.dim", BASE)


def test_every_key_of_a_knob_may_be_set():
    keys = [key for knob in KNOBS.values() for key in knob.keys]
    assert keys
    assert {refusal(key, BASE, known=keys) for key in keys} == {None}
