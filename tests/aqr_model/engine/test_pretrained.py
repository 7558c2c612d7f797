"""Files that people have, made by the classes that make theirs: mmcv, mmdet, torch, torchvision."""

import ast
import functools
import json
import logging
import os
import pathlib
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from mmcv import Config
from mmcv.parallel import MMDataParallel
from mmcv.runner import EMAHook, Hook, load_checkpoint, save_checkpoint
from mmdet3d.models import build_model
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import aqr_model  # noqa: F401  (registers)
from aqr_model.engine.setup import build_detector
from aqr_model.engine.weights.files import CheckpointError, read_file
from aqr_model.engine.weights.pretrained import Wanted, examine, load_pretrained
from aqr_model.preflight.reading import load_config

START = Wanted(partial=True)
CONFIGS = Path("aqr_model/configs")


@functools.cache
def nano_config(name="cmt_nano") -> Config:
    return load_config(CONFIGS / f"{name}.py")


def nano(name="cmt_nano", seed=0) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(nano_config(name).model)
    model.init_weights()
    return model


def equal(model: nn.Module, weights, names=None) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[name], weights[name]) for name in names or own)


def as_others_load(path: Path) -> nn.Module:
    """What mmcv's own loader makes of a file, which must fit name by name."""
    model = nano(seed=9)
    # Its torch.load knows nothing of NumPy's numbers in meta.
    content = {"state_dict": read_file(path)["state_dict"]}
    torch.save(content, path.with_name("weights_alone.pth"))
    load_checkpoint(model, str(path.with_name("weights_alone.pth")), strict=True)
    return model


# --- mmcv's save_checkpoint -------------------------------------------------------------------


def test_a_file_of_mmcv_loads_with_its_optimizer_and_its_numbers(tmp_path):
    source = nano(seed=1)
    optimizer = torch.optim.AdamW(source.parameters())
    config = Config({"checkpoint_config": {"interval": 1, "meta": {"CLASSES": ("car", "bus")}}})
    # As mmdet's tools hand it over: a piece of the config, with what the hooks tell.
    meta = config.checkpoint_config.meta
    meta.update(epoch=3, iter=12, hook_msgs={"best_score": np.float64(0.7), "n": np.int64(2)})
    meta["curve"] = np.arange(3.0)
    save_checkpoint(source, str(tmp_path / "epoch_3.pth"), optimizer=optimizer, meta=meta)
    model = nano()
    assert load_pretrained(model, tmp_path / "epoch_3.pth") == ()
    assert equal(model, source.state_dict())
    assert equal(as_others_load(tmp_path / "epoch_3.pth"), source.state_dict())
    told = read_file(tmp_path / "epoch_3.pth")["meta"]
    assert told["hook_msgs"] == {"best_score": 0.7, "n": 2}
    assert told["curve"].tolist() == [0.0, 1.0, 2.0]


def test_half_precision_is_cast_and_said(tmp_path, caplog):
    source = nano(seed=1)
    save_checkpoint(source.half(), str(tmp_path / "half.pth"))
    model = nano()
    with caplog.at_level(logging.INFO):
        load_pretrained(model, tmp_path / "half.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(
        torch.equal(p, q.float())
        for p, q in zip(model.parameters(), source.parameters(), strict=True)
    )
    floating = sum(value.is_floating_point() for value in model.state_dict().values())
    assert f"{floating} entries are in another precision and are cast" in caplog.text


@pytest.mark.parametrize("place", ["state_dict", "model", None])
def test_weights_stand_under_the_usual_names_or_at_the_top(tmp_path, place):
    source = nano(seed=1)
    weights = source.state_dict()
    torch.save(weights if place is None else {place: weights, "epoch": 3}, tmp_path / "w.pth")
    model = nano()
    load_pretrained(model, tmp_path / "w.pth")
    assert equal(model, weights)


# --- wrappers ---------------------------------------------------------------------------------


@pytest.fixture
def lone_group():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


WRAPPERS = {
    "DDP": lambda model: DistributedDataParallel(model),
    "MMDataParallel": lambda model: MMDataParallel(model, device_ids=[-1]),
    "SWA": lambda model: AveragedModel(model),
    "SWA of DDP": lambda model: AveragedModel(DistributedDataParallel(model)),
    "compiled": lambda model: torch.compile(model, backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_names_of_wrapped_models_are_understood(tmp_path, lone_group, wrap):
    source = nano(seed=1)
    weights = {name: value.clone() for name, value in source.state_dict().items()}
    wrapped = WRAPPERS[wrap](source).state_dict()
    assert not wrapped.keys() & weights.keys(), "the wrapper changes all names"
    torch.save({"state_dict": wrapped}, tmp_path / "w.pth")
    model = nano()
    load_pretrained(model, tmp_path / "w.pth")
    assert equal(model, weights)


def test_a_prefix_does_not_hide_what_is_wrong(tmp_path):
    weights = {f"module.{name}": value for name, value in nano().state_dict().items()}
    del weights["module.img_neck.lateral_convs.0.conv.bias"]
    weights["module.extra"] = torch.zeros(1)
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as refused:
        load_pretrained(nano(), tmp_path / "w.pth", START)
    lines = str(refused.value).splitlines()
    assert lines[1:3] == ["  missing: img_neck.lateral_convs.0.conv.bias", "  left over: extra"]


# --- image backbones --------------------------------------------------------------------------


def mmdet_detector() -> nn.Module:
    """A 2D detector of mmdet on nano's image backbone."""
    from mmdet.models import build_detector as build_2d

    backbone = {**nano_config().model.img_backbone, "out_indices": (0, 1, 2, 3)}
    config = {
        "type": "RetinaNet",
        "backbone": backbone,
        "neck": {
            "type": "FPN",
            "in_channels": [16, 32, 64, 128],
            "out_channels": 64,
            "num_outs": 5,
        },
        "bbox_head": {
            "type": "RetinaHead",
            "num_classes": 10,
            "in_channels": 64,
            "feat_channels": 8,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "octave_base_scale": 4,
                "scales_per_octave": 1,
                "ratios": [1.0],
                "strides": [8, 16, 32, 64, 128],
            },
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder"},
        },
    }
    torch.manual_seed(5)
    model = build_2d(Config({"model": config}).model)
    model.init_weights()
    return model


def backbone_of(detector: nn.Module) -> dict[str, torch.Tensor]:
    weights = detector.state_dict()
    front = "backbone."
    return {n.removeprefix(front): v for n, v in weights.items() if n.startswith(front)}


@pytest.mark.parametrize("prefix", ["backbone.", "img_backbone.", "", "module.backbone."])
def test_a_file_with_the_image_backbone_starts_a_training(tmp_path, caplog, prefix):
    source = mmdet_detector()
    rest = {n: v for n, v in source.state_dict().items() if not n.startswith("backbone.")}
    weights = {prefix + name: value for name, value in backbone_of(source).items()} | rest
    torch.save({"state_dict": weights, "meta": {}}, tmp_path / "nuim.pth")
    model, untouched = nano(), nano().state_dict()
    with caplog.at_level(logging.INFO):
        load_pretrained(model, tmp_path / "nuim.pth", START)
    found = model.img_backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in backbone_of(source).items())
    others = [name for name in untouched if not name.startswith("img_backbone.")]
    assert equal(model, untouched, others)
    neck, head = (sum(n.startswith(part) for n in rest) for part in ("neck.", "bbox_head."))
    said = caplog.text
    assert f"{len(found)} entries are loaded, img_backbone" in said
    assert f"of the file are skipped: neck ({neck}), bbox_head ({head})" in said
    assert "of the model keep their start: pts_voxel_encoder (6), pts_backbone (30)" in said


def test_a_2d_detector_s_own_file_starts_a_training_but_has_no_score(tmp_path):
    save_checkpoint(mmdet_detector(), str(tmp_path / "retina.pth"))
    examine(nano(), tmp_path / "retina.pth", START)
    with pytest.raises(CheckpointError, match="must hold a whole detector, but holds img_backbone"):
        load_pretrained(nano(), tmp_path / "retina.pth")


def test_a_neck_that_the_file_has_in_another_shape_is_skipped(tmp_path):
    """As the files of nuImages detectors hold it, renamed for 3D detectors."""
    weights = {f"img_{name}": v for name, v in mmdet_detector().state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    loading = examine(nano(), tmp_path / "w.pth", START)
    assert loading.parts == ("img_backbone",)
    assert "img_neck.lateral_convs.0.conv.weight" in loading.skipped
    # Two of its biases and a convolution fit by chance: they belong to other levels.
    assert not [name for name in loading.weights if not name.startswith("img_backbone.")]


def test_torchvision_s_resnet_is_mmdet_s(tmp_path):
    from mmdet.models import build_backbone

    source = torchvision.models.resnet18()
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    model = nn.ModuleDict(
        {
            "img_backbone": build_backbone({"type": "ResNet", "depth": 18}),
            "head": nn.Sequential(*(nn.Linear(1, 1) for _ in range(4))),
        }
    )
    loading = examine(model, tmp_path / "resnet18.pth", START)
    assert set(loading.skipped) == {"fc.weight", "fc.bias"}
    load_pretrained(model, tmp_path / "resnet18.pth", START)
    found = model["img_backbone"].state_dict()
    assert all(torch.equal(found[name], source.state_dict()[name]) for name in found)


def test_vovnet_takes_the_entries_that_others_count_in_the_public_file():
    """A published log of another project: of its 707 tensors 626 belong to the image backbone."""
    from aqr_model.engine.weights.content import weights_of
    from aqr_model.engine.weights.fitting import fit

    shapes = json.loads(
        Path("tests/data/cmt_voxel0075_vov_1600x640_cbgs.state_dict.json").read_text()
    )
    bare = {
        name: torch.empty(shape, device="meta")
        for name, shape in shapes.items()
        if name.startswith("img_backbone.")
    }
    bare |= {f"fcos3d_head.tower.{i}.weight": torch.empty(1, device="meta") for i in range(81)}
    with torch.device("meta"):
        model = build_model(load_config(CONFIGS / "cmt_voxel0075_vov_1600x640_cbgs.py").model)
    loading = fit(model.state_dict(), weights_of(bare, Path("v.pth")), partial=True)
    assert (loading.parts, len(loading.weights)) == (("img_backbone",), 626)
    assert len(loading.skipped) == 81


def test_batch_norms_without_a_counter_fit(tmp_path):
    """Files of detectron2 and of torch before 0.4.1 have none."""
    weights = {k: v for k, v in nano(seed=1).state_dict().items() if "num_batches" not in k}
    torch.save(weights, tmp_path / "w.pth")
    model = nano()
    load_pretrained(model, tmp_path / "w.pth")
    assert equal(model, weights, weights)


def test_a_backbone_that_stands_twice_is_not_guessed(tmp_path):
    found = backbone_of(mmdet_detector())
    twice = {f"{side}.{name}": v for side in ("student", "teacher") for name, v in found.items()}
    torch.save(twice, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"\['student\.', 'teacher\.'\]; choose one by init_"):
        examine(nano(), tmp_path / "w.pth", START)


def test_load_from_takes_a_backbone_and_the_config_s_keys(tmp_path):
    save_checkpoint(mmdet_detector(), str(tmp_path / "retina.pth"))
    cfg = Config(nano_config()._cfg_dict.to_dict())
    cfg.load_from = str(tmp_path / "retina.pth")
    model = build_detector(cfg)
    assert equal(model.img_backbone, backbone_of(mmdet_detector()))
    cfg.load_parts = ["img_neck"]
    with pytest.raises(CheckpointError, match="must hold all of img_neck, which `load_parts`"):
        build_detector(cfg)


# --- everything else is strict ----------------------------------------------------------------


def spoiled(*words: str):
    """Nano's weights with the entries of some modules in another shape."""
    weights = nano(seed=1).state_dict()
    return {n: torch.zeros(7) if n.split(".")[0] in words else v for n, v in weights.items()}


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        # A detector of the same kind with another head, and one of the LiDAR alone.
        (lambda: spoiled("pts_bbox_head"), None),
        (lambda: {n: v for n, v in nano(seed=1).state_dict().items() if n[:4] == "pts_"}, None),
        # A backbone and a neck are two parts: which of them is meant is for the user to say.
        (
            lambda: {n: v for n, v in nano(seed=1).state_dict().items() if n[:4] == "img_"},
            ["img_backbone", "img_neck"],
        ),
    ],
)
def test_the_error_names_an_option_that_takes_the_file(tmp_path, weights, parts):
    torch.save(weights(), tmp_path / "w.pth")
    model = nano()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as refused:
        load_pretrained(model, tmp_path / "w.pth", START)
    assert equal(model, before)
    advice = ast.literal_eval(re.search(r"`load_parts = (.*)`", str(refused.value))[1])
    assert parts in (None, advice)
    load_pretrained(model, tmp_path / "w.pth", Wanted(parts=tuple(advice)))
    taken = tuple(f"{part}." for part in advice)
    assert equal(model, nano(seed=1).state_dict(), [n for n in before if n.startswith(taken)])
    assert equal(model, before, [n for n in before if not n.startswith(taken)])


def test_a_detector_with_one_fitting_part_is_no_backbone_file(tmp_path):
    others = {n.split(".")[0] for n in nano().state_dict()} - {"img_backbone"}
    torch.save(spoiled(*others), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"Use the config .*\['img_backbone'\]"):
        load_pretrained(nano(), tmp_path / "w.pth", START)


def test_a_part_that_the_model_has_not_is_named(tmp_path):
    torch.save(nano().state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"got 'backbone'; at the top are .*img_backbone"):
        examine(nano(), tmp_path / "w.pth", Wanted(parts=("backbone",)))


# --- averaged weights -------------------------------------------------------------------------


@pytest.fixture
def _hurried(monkeypatch):
    """mmcv's runner rests for two seconds between epochs."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


class Trained(nn.Module):
    """A model that mmcv's runner trains; its buffer shows that statistics are no parameters."""

    def __init__(self):
        super().__init__()
        self.neck, self.head = nn.Linear(2, 3), nn.Linear(3, 1)
        self.norm = nn.BatchNorm1d(3)
        self.seen = []

    def train_step(self, batch, optimizer):
        self.seen.append(snapshot(self))
        loss = self.head(self.norm(self.neck(batch))).square().mean()
        return {"loss": loss, "log_vars": {"loss": loss.item()}, "num_samples": len(batch)}


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def by_the_formula(history, momentum, warm_up):
    """x' = (1 - m) x' + m x after each step, from the first weights on; see mmcv's docstring."""
    average = dict(history[0])
    for step, weights in enumerate(history[1:]):
        m = min(momentum, (1 + step) / (warm_up + step))
        average = {name: (1 - m) * average[name] + m * weights[name] for name in average}
    return average


CONFIG_TEXT = """
model = dict(type='CmtDetector', priority='LOW')
custom_hooks = [
    dict(type='NumClassCheckHook'),
    dict(type='EMAHook', momentum=0.3, warm_up=3{priority})
]
checkpoint_config = dict(interval=1{by_epoch})
"""


class Best(Hook):
    """Saves as mmcv's EvalHook does with the best score, and at its priority."""

    def after_train_epoch(self, runner):
        runner.save_checkpoint(runner.work_dir, "best_NDS_epoch.pth", create_symlink=False)


def run_mmcv(folder: Path, *, priority: str | None, by_epoch: bool = True, told: bool = True):
    """Train two epochs of four steps in mmcv's runner; the weights after each step."""
    from mmcv.runner import build_runner

    torch.manual_seed(0)
    model = Trained()
    text = CONFIG_TEXT.format(
        priority=f", priority='{priority}'" if priority else "",
        by_epoch="" if by_epoch else ", by_epoch=False",
    )
    runner = build_runner(
        {"type": "EpochBasedRunner", "max_epochs": 2},
        default_args={
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
            "work_dir": str(folder),
            "logger": logging.getLogger("mmcv"),
            "meta": {"config": text} if told else {},
        },
    )
    hook = {"type": "EMAHook", "momentum": 0.3, "warm_up": 3}
    runner.register_training_hooks(
        lr_config=None,
        optimizer_config={"grad_clip": None},
        checkpoint_config={"interval": 1, "by_epoch": by_epoch},
        custom_hooks_config=[hook | ({"priority": priority} if priority else {})],
    )
    runner.register_hook(Best(), priority="LOW")
    runner.run([[torch.randn(4, 2) for _ in range(4)]], [("train", 1)])
    # What the runner leaves in the model is swapped: the buffers hold what trains.
    last = {
        name: model.get_buffer("ema_" + name.replace(".", "_")).clone() for name in model.seen[0]
    }
    return [*model.seen, last]


@pytest.mark.usefixtures("_hurried")
@pytest.mark.parametrize(
    ("settings", "name", "own_names_hold"),
    [
        ({"priority": "ABOVE_NORMAL"}, "epoch_2.pth", "averages"),  # swapped, then saved
        ({"priority": None}, "epoch_2.pth", "weights"),  # saved, then swapped
        ({"priority": None}, "best_NDS_epoch.pth", "averages"),  # saved after all of them
        # Saved within the epoch.
        ({"priority": "ABOVE_NORMAL", "by_epoch": False}, "epoch_2.pth", "weights"),
    ],
)
def test_both_sets_of_mmcv_s_ema_hook_are_told_apart(
    tmp_path, caplog, settings, name, own_names_hold
):
    history = run_mmcv(tmp_path, **settings)
    averages = by_the_formula(history, 0.3, 3)
    path = tmp_path / name
    apart = (averages["neck.weight"] - history[-1]["neck.weight"]).abs().max()
    assert apart > 1e-3, "the two sets differ"
    for averaged in (False, True):
        model = Trained()
        with caplog.at_level(logging.INFO):
            load_pretrained(model, path, Wanted(averaged=averaged))
        wants_averages = averaged or own_names_hold == "averages"
        want = averages if wants_averages else history[-1]
        for name, value in snapshot(model).items():
            torch.testing.assert_close(value, want[name], rtol=1e-5, atol=1e-6, msg=name)
    assert "an EMA hook left 6 further entries" in caplog.text
    # What mmcv itself loads is what is loaded by default.
    default, mmcvs = Trained(), Trained()
    load_pretrained(default, path)
    load_checkpoint(mmcvs, str(path))
    assert equal(default, mmcvs.state_dict())


@pytest.mark.usefixtures("_hurried")
def test_a_file_that_tells_nothing_is_taken_as_saved_within_an_epoch_and_says_so(tmp_path, caplog):
    history = run_mmcv(tmp_path, priority="NORMAL", told=False)
    model = Trained()
    with caplog.at_level(logging.INFO):
        load_pretrained(model, tmp_path / "epoch_2.pth", Wanted(averaged=True))
    averages = by_the_formula(history, 0.3, 3)
    torch.testing.assert_close(snapshot(model), averages, rtol=1e-5, atol=1e-6)
    assert "it does not say which of the two are averaged" in caplog.text


def test_the_buffers_that_mmdet_averages_too_are_understood(tmp_path):
    from mmdet.core.hook import ExpMomentumEMAHook

    model = Trained()
    hook = ExpMomentumEMAHook(momentum=0.5)
    hook.before_run(SimpleNamespace(model=model, iter=0))
    model.norm.running_mean.fill_(8.0)
    hook.after_train_iter(SimpleNamespace(model=model, iter=0))
    save_checkpoint(model, str(tmp_path / "w.pth"))
    found = {averaged: Trained() for averaged in (False, True)}
    for averaged, each in found.items():
        load_pretrained(each, tmp_path / "w.pth", Wanted(averaged=averaged))
    assert found[False].norm.running_mean.tolist() == [8.0] * 3
    assert torch.equal(found[True].norm.running_mean, model.ema_norm_running_mean)
    assert 0 < found[True].norm.running_mean[0] < 8


@pytest.mark.parametrize("wrap", ["DDP", "SWA of DDP"])
def test_both_sets_of_a_wrapped_model_are_told_apart(tmp_path, lone_group, wrap):
    model = Trained()
    EMAHook().before_run(SimpleNamespace(model=model, iter=0))
    model.head.bias.data.fill_(5.0)
    torch.save({"state_dict": WRAPPERS[wrap](model).state_dict()}, tmp_path / "w.pth")
    for averaged in (False, True):
        found = Trained()
        load_pretrained(found, tmp_path / "w.pth", Wanted(averaged=averaged))
        assert (found.head.bias.item() == 5.0) == (not averaged)


def test_averaged_weights_that_are_not_there_are_not_made_up(tmp_path):
    save_checkpoint(nano(), str(tmp_path / "w.pth"))
    with pytest.raises(CheckpointError, match="but holds one set of weights alone"):
        examine(nano(), tmp_path / "w.pth", Wanted(averaged=True))
    model = Trained()
    EMAHook().before_run(SimpleNamespace(model=model, iter=0))
    weights = model.state_dict()
    del weights["ema_neck_bias"]
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"but 1 have none \(first: neck\.bias\)"):
        examine(Trained(), tmp_path / "w.pth", Wanted(averaged=True))


# --- what a file may hold beside weights ------------------------------------------------------


class Touch:
    """Leaves a trace if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_by_name(tmp_path, zipped):
    content = {"state_dict": nano().state_dict(), "meta": Touch(tmp_path / "ran")}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"holds objects of posix\.mkdir, .*any code"):
        examine(nano(), tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_types_that_the_user_names_are_read(tmp_path, zipped):
    source = nano(seed=1)
    content = {"state_dict": source.state_dict(), "meta": {"work_dir": pathlib.PosixPath("a/b")}}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as refused:
        examine(nano(), tmp_path / "w.pth")
    names = ast.literal_eval(re.search(r"`load_types = (.*)`", str(refused.value))[1])
    assert names == ["pathlib.PosixPath"]
    model = nano()
    load_pretrained(model, tmp_path / "w.pth", Wanted(types=tuple(names)))
    assert equal(model, source.state_dict())
    with pytest.raises(CheckpointError, match=r"can be imported, but got 'no\.such\.Type'"):
        read_file(tmp_path / "w.pth", types=("no.such.Type",))


def test_files_in_the_old_format_load(tmp_path):
    """mmdet's publish_model writes it to this day."""
    source = nano(seed=1)
    content = {"state_dict": source.state_dict(), "meta": {"best": np.float32(0.5)}}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    model = nano()
    load_pretrained(model, tmp_path / "w.pth")
    assert equal(model, source.state_dict())


# --- known before anything is built -----------------------------------------------------------


@pytest.mark.parametrize("content", ["whole", "backbone", "wrong"])
def test_a_model_on_the_meta_device_knows_what_would_be_loaded(tmp_path, content):
    torch.save(
        {
            "whole": lambda: nano().half().state_dict(),
            "backbone": lambda: mmdet_detector().state_dict(),
            "wrong": lambda: spoiled("pts_bbox_head"),
        }[content](),
        tmp_path / "w.pth",
    )
    with torch.device("meta"):
        shadow = build_model(nano_config("cmt_aqr_nano").model)
    said = []
    for model in (shadow, nano("cmt_aqr_nano")):
        try:
            said.append(examine(model, tmp_path / "w.pth", START).lines())
        except CheckpointError as error:
            said.append(str(error))
    assert said[0] == said[1]
    assert isinstance(said[0], str) == (content == "wrong")
    assert all(value.is_meta for value in shadow.state_dict().values())


def test_what_is_said_before_is_what_is_loaded(tmp_path):
    torch.save(nano(seed=1).state_dict(), tmp_path / "w.pth")
    model = nano("cmt_aqr_nano")
    loading = examine(model, tmp_path / "w.pth")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert load_pretrained(model, tmp_path / "w.pth") == loading.fresh == loading.left
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed <= set(loading.weights)
    assert len(changed) > 50
    assert all(".aqr_weight_generator." in name for name in loading.fresh)
