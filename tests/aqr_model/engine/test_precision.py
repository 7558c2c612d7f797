import math

import pytest
import torch
from mmcv import Config

from aqr_model.engine.optim.precision import Precision, make_scaler, overflow_reason, read_precision
from aqr_model.engine.weights.states import read_state

HOOK = {"type": "CustomFp16OptimizerHook", "loss_scale": "dynamic"}
PARTS = ("pts_voxel_encoder", "pts_middle_encoder", "pts_bbox_head")
ATTENTION = "pts_bbox_head.transformer.decoder.layers.0.attentions.1.attn.out_proj"
PRETRAINED = "aqr_model/checkpoints/cmt_nano.pth"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Precision()),
        ({"fp16": None, "optimizer_config": {"grad_clip": {"max_norm": 35}}}, Precision()),
        (
            {"precision": {"images": "fp16", "decoder": "bf16", "loss_scale": 8}},
            Precision(images="fp16", decoder="bf16", loss_scale=8.0),
        ),
        ({"bf16": True}, Precision(images="bf16", bev="bf16", decoder="bf16")),
        ({"fp16": {"loss_scale": "dynamic"}}, Precision(images="fp16")),
        ({"fp16": {"loss_scale": 128}}, Precision(images="fp16", loss_scale=128.0)),
        ({"fp16": {}}, Precision(images="fp16", loss_scale=512.0)),
        (
            {"fp16": {"loss_scale": {"init_scale": 8.0}}},
            Precision(images="fp16", loss_scale={"init_scale": 8.0}),
        ),
        (
            {"optimizer_config": {**HOOK, "custom_fp16": dict.fromkeys(PARTS, False)}},
            Precision(images="fp16"),
        ),
    ],
)
def test_the_users_ways_to_say_it(config, expected):
    assert read_precision(Config(config)) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bf16": True, "fp16": {"loss_scale": 1.0}}, "Write `bf16 = None` to keep `fp16`"),
        (
            {"bf16": True, "optimizer_config": HOOK},
            r"but got `bf16` and `optimizer_config.type = 'CustomFp16OptimizerHook'`",
        ),
        ({"bf16": True, "precision": {"bev": "bf16"}}, "but got `precision` and `bf16`"),
        (
            {"precision": {"bev": "fp16"}},
            "`precision.bev` must be one of fp32, bf16, but got 'fp16'",
        ),
        ({"precision": {"tf32": "yes"}}, "`precision.tf32` must be True or False, but got 'yes'"),
        ({"precision": {"image": "bf16"}}, r"among \['images', .* but got \['image'\]"),
        ({"fp16": {"loss_scale": "static"}}, "`loss_scale` must be 'dynamic'"),
        ({"fp16": {"loss_scale": 0}}, "`loss_scale` must be 'dynamic'"),
        (
            {"optimizer_config": {**HOOK, "custom_fp16": {"pts_bbox_head": True}}},
            "must be False for pts_bbox_head",
        ),
    ],
)
def test_mistakes_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        read_precision(Config(config))


def test_a_constant_scale_stays_and_an_overflow_there_is_an_error():
    precision = Precision(images="fp16", loss_scale=64.0)
    scaler = make_scaler(precision, torch.device("cpu"))
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(weight.square()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 64.0
    assert "constant loss scale 64" in (overflow_reason(precision, scaler) or "")


@pytest.mark.parametrize(
    ("scale", "reason"),
    [
        ("dynamic", None),
        ({"init_scale": 2.0}, None),
        ({"init_scale": 1.5}, "the gradients are not finite even at loss scale 1.5"),
    ],
)
def test_a_dynamic_scale_may_overflow_until_it_is_too_small(scale, reason):
    precision = Precision(images="fp16", loss_scale=scale)
    scaler = make_scaler(precision, torch.device("cpu"))
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler.scale(weight * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.item() == 1.0
    assert overflow_reason(precision, scaler) == reason
    assert overflow_reason(Precision(), scaler) is not None


@pytest.fixture
def run(nano_cfg, tmp_path):
    from gang import Recorder

    from aqr_model.train import train

    def make(folder="run", resume=False, stop_at=None, **overrides):
        settings = {
            "load_from": PRETRAINED,
            "log_config.interval": 1,
            "evaluation": {"rungs": [0.5, 1.0], "val_shares": [0.5, 1.0]},
            "total_epochs": 1,
        }
        report, workdir = Recorder(stop_at), tmp_path / folder
        latest = workdir / "latest.pth"
        try:
            train(
                nano_cfg(**{**settings, **overrides}),
                workdir=workdir,
                report=report,
                resume_from=latest if resume else None,
            )
        except KeyError:
            assert stop_at is not None
        return report, workdir

    return make


def losses(report):
    return [values["train/loss"] for _, values in report.logs if "train/loss" in values]


def test_bf16_trains_and_scores_close_to_float32(run):
    exact, _ = run("exact")
    rough, _ = run("rough", bf16=True)
    assert len(losses(exact)) == 4
    assert losses(rough) != losses(exact), "nothing was computed in low precision"
    assert losses(rough) == pytest.approx(losses(exact), rel=0.05)
    name = "val/nds"
    assert rough.rungs[-1][1][name] == pytest.approx(exact.rungs[-1][1][name], abs=0.05)


# Half precision is slow on a CPU: its trainings are short, and not scored.


@pytest.fixture
def unscored(monkeypatch):
    monkeypatch.setattr(
        "aqr_model.engine.evaluator.Evaluator.score", lambda *args, **named: {"val/nds": 0.5}
    )


def test_fp16_trains_close_to_float32(run, unscored):
    exact, _ = run("exact", total_epochs=0.5)
    rough, _ = run("rough", total_epochs=0.5, fp16={"loss_scale": 256.0})
    assert len(losses(exact)) == 2
    assert losses(rough) != losses(exact), "nothing was computed in low precision"
    assert losses(rough) == pytest.approx(losses(exact), rel=0.05)


@pytest.mark.parametrize(
    ("precision", "low"),
    [
        ({}, set()),
        ({"images": "bf16"}, {"img_backbone", "img_neck"}),
        ({"bev": "bf16"}, {"pts_backbone", "pts_neck"}),
        (
            {"decoder": "bf16"},
            {"pts_bbox_head.shared_conv", ATTENTION},
        ),
    ],
)
def test_each_part_computes_in_its_own_format(nano_cfg, precision, low):
    from mmdet3d.datasets import build_dataset

    from aqr_model.engine.batches import training_batches
    from aqr_model.engine.optim.precision import apply_precision
    from aqr_model.engine.setup import build_detector
    from aqr_model.engine.transfer import to_device

    cfg = nano_cfg()
    model = build_detector(cfg)
    apply_precision(model, Precision(**precision))
    seen = {}

    def watch(name):
        def keep(module, inputs, output):
            outputs = output if isinstance(output, list | tuple) else [output]
            seen[name] = {o.dtype for o in outputs if isinstance(o, torch.Tensor)}

        return keep

    head = "pts_bbox_head."
    names = ("img_backbone", "img_neck", "pts_voxel_encoder", "pts_middle_encoder", "pts_backbone")
    of_head = ("shared_conv", "bev_embedding", "rv_embedding", "aqr_weight_generator.encoder")
    watched = {*names, "pts_neck", *(head + name for name in of_head), ATTENTION}
    for name in watched:
        model.get_submodule(name).register_forward_hook(watch(name))
    dataset = build_dataset(cfg.data.train)
    batches = training_batches(dataset, batch_size=1, num_workers=0, seed=0, start=0, stop=1)
    terms = model(return_loss=True, **to_device(next(iter(batches)), torch.device("cpu")))
    assert seen.keys() == watched
    assert {name for name, dtypes in seen.items() if dtypes == {torch.bfloat16}} == low
    assert all(seen[name] == {torch.float32} for name in watched - low), seen
    sum(terms.values()).backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


FP16 = {"fp16": {"loss_scale": {"init_scale": 2.0**40, "growth_interval": 2}}}


def test_an_overflow_skips_the_step_and_lowers_the_scale(run, unscored):
    report, _ = run(**FP16, total_epochs=0.75)
    logs = [values for _, values in report.logs if "train/loss" in values]
    skipped = [values["train/skipped_steps"] for values in logs]
    assert skipped[0] == 1
    assert "train/grad_norm" not in logs[0]
    assert logs[1]["train/loss_scale"] < logs[0]["train/loss_scale"] < 2.0**40
    assert all(map(math.isfinite, losses(report)))


def test_a_resumed_fp16_training_is_bit_for_bit_the_uninterrupted_one(run, unscored):
    whole, folder = run("whole", **FP16, total_epochs=0.5)
    run("cut", **FP16, total_epochs=0.5, stop_at=1)
    state = read_state(folder.parent / "cut" / "latest.pth")
    assert state.scaler["scale"] < 2.0**40
    resumed, again = run("cut", **FP16, total_epochs=0.5, resume=True)
    assert resumed.rungs == whole.rungs
    assert losses(resumed) == losses(whole)[1:]
    one, two = (
        torch.load(f / "final.pth", weights_only=True)["state_dict"] for f in (folder, again)
    )
    assert all(one[name].equal(two[name]) for name in one)


def test_a_non_finite_loss_ends_an_fp16_training(run, unscored, monkeypatch):
    monkeypatch.setattr(
        "aqr_model.engine.loop.total_loss", lambda terms: sum(terms.values()) * math.nan
    )
    with pytest.raises(FloatingPointError, match="at step 0 loss is nan"):
        run(fp16={"loss_scale": "dynamic"})
