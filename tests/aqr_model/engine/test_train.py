import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from aqr_model.aqr.crossings import crossings
from aqr_model.cmt.detector import CmtDetector
from aqr_model.cmt.head import CmtHead
from aqr_model.engine.distributed import Workers
from aqr_model.engine.nonfinite import FiniteCheck
from aqr_model.engine.plan import make_plan
from aqr_model.engine.setup import build_detector
from aqr_model.engine.weights.files import CheckpointError
from aqr_model.engine.weights.states import read_state
from aqr_model.train import train


class Recorder:
    """A report that keeps everything, and may end the training at a rung."""

    def __init__(self, stop_at: int | None = None):
        self.rungs, self.logs, self.stop_at = [], [], stop_at

    def rung(self, metrics, *, fraction, val_share, epoch, step, checkpoint):
        assert Path(checkpoint).is_file()
        self.rungs.append((fraction, val_share, epoch, step, dict(metrics)))
        if len(self.rungs) == self.stop_at:
            raise Stopped

    def log(self, values, *, step):
        self.logs.append((step, dict(values)))

    def artifact(self, path):
        pass


class Stopped(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def _two_threads():
    """Trainings repeat themselves bit for bit, also where threads share the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, nano_cfg):
    """One uninterrupted training; its report and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    report = Recorder()
    train(nano_cfg(), workdir=folder, report=report)
    return report, folder


def test_rungs_come_in_order_with_all_metrics(whole_run):
    report, _ = whole_run
    assert [(f, s, step) for f, s, _, step, _ in report.rungs] == [
        (1 / 3, 0.5, 2),
        (2 / 3, 0.5, 4),
        (1.0, 1.0, 6),
    ]
    metrics = report.rungs[-1][-1]
    assert {"val/nds", "val/map", "val/mate", "val/maae", "val/ap/car"} <= set(metrics)
    assert all(map(math.isfinite, metrics.values()))


def test_what_crosses_to_the_host_in_a_step_is_what_the_docs_name(nano_cfg, tmp_path):
    """Between two steps that save, score and log nothing."""
    seen: list[Counter] = []
    with crossings() as counted:

        def halts() -> bool:
            seen.append(Counter(counted))
            return False

        cfg = nano_cfg(**{"log_config.interval": 100, "total_epochs": 1})
        train(cfg, workdir=tmp_path, report=Recorder(), halts=halts)
    step = seen[2] - seen[1]
    rows = (
        Path("docs/training.md").read_text().split("| Crossing | In a step |")[1].split("\n\n")[0]
    )
    assert sum(step.values()) == rows.count("| 1 |") <= 10
    assert step == {
        "upload: batch": 1,
        "upload: cameras": 1,
        "upload: denoising queries": 1,
        "upload: ground truth": 1,
        "upload: targets of the losses": 1,
        "read: views that see a query": 1,
        "read: queries by number of views": 1,
        "read: matching costs": 1,
        "read: loss and norm of the gradients": 1,
    }


def test_a_training_that_has_ended_keeps_no_more_than_one_needs(whole_run):
    _, folder = whole_run
    assert sorted(path.name for path in folder.iterdir()) == [
        "aqr_histograms.jsonl",
        "final.pth",
        "latest.pth",
        "metrics_summary.json",
    ]


def test_losses_rates_and_statistics_are_logged_on_their_intervals(whole_run):
    report, _ = whole_run
    losses = [step for step, values in report.logs if "train/loss" in values]
    statistics = [step for step, values in report.logs if "aqr/lidar_weights_stats/mean" in values]
    assert losses == [2, 4, 6]
    assert statistics == [3, 6]
    values = dict(report.logs)[2]
    assert {"train/lr/min", "train/lr/max", "train/grad_norm", "train/dn_loss_cls"} <= set(values)


def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(whole_run, nano_cfg, tmp_path):
    report, folder = whole_run
    first = Recorder(stop_at=2)
    with pytest.raises(Stopped):
        train(nano_cfg(), workdir=tmp_path, report=first)
    second = Recorder()
    train(nano_cfg(), workdir=tmp_path, report=second, resume_from=tmp_path / "latest.pth")
    # The rung at which the first attempt died was never acknowledged: it is scored again.
    assert first.rungs == report.rungs[:2]
    assert second.rungs == report.rungs[1:]
    expected = torch.load(folder / "final.pth", weights_only=True)["state_dict"]
    got = torch.load(tmp_path / "final.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_loading_processes_change_nothing(nano_cfg, tmp_path):
    """A training with loaders beside it is the one without, bit for bit."""
    short = {"total_epochs": 0.75, "evaluation": {"rungs": [1.0], "val_shares": [1.0]}}
    found = {}
    for workers in (0, 2):
        report, folder = Recorder(), tmp_path / str(workers)
        cfg = nano_cfg(**short, **{"data.workers_per_gpu": workers})
        train(cfg, workdir=folder, report=report)
        weights = torch.load(folder / "final.pth", weights_only=True)["state_dict"]
        found[workers] = (report.rungs, weights)
    assert found[0][0] == found[2][0]
    assert all(torch.equal(value, found[2][1][name]) for name, value in found[0][1].items())


def test_seeds_differ(whole_run, nano_cfg, tmp_path):
    report, _ = whole_run
    other = Recorder(stop_at=1)
    with pytest.raises(Stopped):
        train(nano_cfg(seed=1), workdir=tmp_path, report=other)
    assert dict(other.logs)[2]["train/loss"] != dict(report.logs)[2]["train/loss"]


def test_a_non_finite_loss_ends_the_training_before_it_is_saved(nano_cfg, tmp_path, monkeypatch):
    cfg = nano_cfg(**{"checkpoint_config.interval": 1})
    factors = iter([1.0, math.nan])
    monkeypatch.setattr(
        "aqr_model.engine.loop.total_loss",
        lambda terms: sum(terms.values()) * next(factors),
    )
    with pytest.raises(FloatingPointError, match=r"at step 1 loss is nan"):
        train(cfg, workdir=tmp_path, report=Recorder())
    state = read_state(tmp_path / "latest.pth")
    assert state.step == 1
    assert all(v.isfinite().all() for v in state.model.values() if v.is_floating_point())


def test_a_step_that_nothing_looks_at_is_checked_in_the_next_one(nano_cfg, tmp_path, monkeypatch):
    cfg = nano_cfg(**{"log_config.interval": 100, "total_epochs": 1})
    factors = iter([1.0, math.nan, 1.0])
    weights: list[list[torch.Tensor]] = []

    def forward(self, *args, **kwargs):
        weights.append([parameter.detach().clone() for parameter in self.parameters()])
        return plain(self, *args, **kwargs)

    plain = CmtDetector.forward_train
    monkeypatch.setattr(CmtDetector, "forward_train", forward)
    monkeypatch.setattr(
        "aqr_model.engine.loop.total_loss",
        lambda terms: sum(terms.values()) * next(factors),
    )
    with pytest.raises(FloatingPointError, match=r"at step 1 loss is nan .* gradient of "):
        train(cfg, workdir=tmp_path, report=Recorder())
    _, before, after = weights
    assert all(map(torch.equal, before, after))


def test_what_fails_behind_values_that_were_not_finite_is_blamed_on_them():
    check = FiniteCheck(torch.nn.Linear(1, 1), Workers(), lambda: "the gradients are not finite")
    with check.blamed_first():
        pass
    with pytest.raises(ValueError, match="not this"), check.blamed_first():
        raise ValueError("not this")
    check.watch(3, [{"loss_cls": torch.tensor(math.nan)}], torch.tensor([math.nan, 1.0]))
    with (
        pytest.raises(FloatingPointError, match=r"at step 3 loss is nan .* loss term loss_cls"),
        check.blamed_first(),
    ):
        raise ValueError("matrix contains invalid numeric entries")
    check.settle()  # once is enough


def test_fresh_aqr_leaves_the_detector_exactly_as_it_was(nano_cfg, tmp_path):
    from mmdet3d.datasets import build_dataset

    from aqr_model.engine.batches import training_batches
    from aqr_model.engine.transfer import to_device
    from aqr_model.engine.weights.states import save_weights

    plain_cfg = nano_cfg(**{"model.pts_bbox_head.enable_aqr": False})
    torch.manual_seed(3)
    plain = build_detector(plain_cfg)
    save_weights(plain, tmp_path / "plain.pth")
    routed = build_detector(nano_cfg(load_from=str(tmp_path / "plain.pth")))
    assert isinstance(routed.get_submodule("pts_bbox_head.aqr_weight_generator"), nn.Module)
    dataset = build_dataset(plain_cfg.data.train)
    batch = next(
        iter(training_batches(dataset, batch_size=2, num_workers=0, seed=0, start=0, stop=1))
    )
    inputs = to_device(batch, torch.device("cpu"))
    terms = []
    for model in (plain, routed):
        model.train()
        torch.manual_seed(4)
        terms.append(model(return_loss=True, **inputs))
    assert terms[0].keys() == terms[1].keys()
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"total_epochs": 0.1}, "at least one step"),
        ({"evaluation": {"rungs": [0.5, 0.4, 1.0]}}, "must rise from above 0 to 1.0"),
        ({"evaluation": {"rungs": [0.5, 0.9]}}, "must rise from above 0 to 1.0"),
        ({"evaluation": {"rungs": [0.5, 1.0], "val_shares": [0.5]}}, "one share a rung"),
    ],
)
def test_impossible_plans_are_refused(nano_cfg, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_plan(nano_cfg(**overrides), num_samples=8)


def test_plans_round_to_steps(nano_cfg):
    plan = make_plan(nano_cfg(total_epochs=2), num_samples=181)
    assert (plan.steps_per_epoch, plan.total_steps) == (90, 180)
    assert [rung.step for rung in plan.rungs] == [60, 120, 180]


def test_a_config_without_rungs_is_read_as_mmcv_reads_it(nano_cfg):
    cfg = nano_cfg(total_epochs=2.5)
    cfg.evaluation = {"interval": 1, "pipeline": []}
    cfg.checkpoint_config = {"interval": 1}
    plan = make_plan(cfg, num_samples=80)
    assert [(rung.step, rung.fraction) for rung in plan.rungs] == [(40, 0.4), (80, 0.8), (100, 1.0)]
    assert plan.checkpoint_interval == plan.steps_per_epoch == 40
    cfg.total_epochs = 1
    assert [rung.step for rung in make_plan(cfg, num_samples=80).rungs] == [40]


def test_accumulated_batches_are_one_large_batch(nano_cfg, jittered_base, tmp_path):
    parts = ("img_backbone", "img_neck", "pts_voxel_encoder", "pts_backbone", "pts_neck")
    settings = {
        "load_from": str(jittered_base),
        "denoising_slots": "step",
        "norm_eval": [*parts, "pts_bbox_head"],
        "optimizer": {"type": "SGD", "lr": 1e-4, "momentum": 0.9, "_delete_": True},
        "lr_config": None,
        "evaluation": {"rungs": [1.0], "val_shares": [1.0]},
        "total_epochs": 2,
        "log_config.interval": 1,
    }
    ways = {
        "whole": {"data.samples_per_gpu": 4},
        "parts": {"data.samples_per_gpu": 1, "optimizer_config.cumulative_iters": 4},
    }
    reports = {}
    for name, way in ways.items():
        reports[name] = Recorder()
        train(nano_cfg(**settings, **way), workdir=tmp_path / name, report=reports[name])
    whole, split = (
        [values for _, values in reports[name].logs if "train/loss" in values] for name in ways
    )
    assert len(whole) == len(split) == 4
    for step, (one, two) in enumerate(zip(whole, split, strict=True)):
        for name in one:
            if "loss" in name:
                rel = 1e-3 if step else 1e-5
                assert two[name] == pytest.approx(one[name], rel=rel), (step, name)
    assert split[0]["train/grad_norm"] == pytest.approx(whole[0]["train/grad_norm"], rel=1e-4)
    one, two = (
        torch.load(tmp_path / name / "final.pth", weights_only=True)["state_dict"] for name in ways
    )
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)


def test_another_number_of_samples_in_a_step_cannot_go_on(whole_run, nano_cfg):
    _, folder = whole_run
    with pytest.raises(CheckpointError, match="counts steps of 2 samples, but this training has 4"):
        train(
            nano_cfg(**{"data.samples_per_gpu": 4}),
            workdir=folder / "other",
            report=Recorder(),
            resume_from=folder / "latest.pth",
        )


def test_rates_are_logged_by_the_names_of_the_keys(whole_run):
    report, _ = whole_run
    values = dict(report.logs)[2]
    keys = {"transformer", "task_heads", "img_backbone", "pts_backbone", "aqr_weight_generator"}
    rates = {name for name in values if name.startswith("train/lr/")}
    assert {f"train/lr/{key}" for key in keys} <= rates
    assert "train/lr/pts_bbox_head" in rates, "what has no key stands under its part"


def test_rates_and_aqr_follow_their_schedules(nano_cfg, tmp_path, monkeypatch):
    epochs = []
    plain = CmtHead.set_epoch
    monkeypatch.setattr(
        CmtHead, "set_epoch", lambda head, *at: (epochs.append(at), plain(head, *at))[1]
    )
    staged = {"type": "staged", "stages": [(0, 1.0), (0.5, 0.25)]}
    key = "optimizer.paramwise_cfg.custom_keys.aqr_weight_generator.lr_mult_schedule"
    cfg = nano_cfg(
        **{
            key: staged,
            "lr_config": None,
            "total_epochs": 1,
            "log_config.interval": 1,
            "evaluation": {"rungs": [1.0], "val_shares": [1.0]},
        }
    )
    report = Recorder()
    train(cfg, workdir=tmp_path, report=report)
    rates = [
        values["train/lr/aqr_weight_generator"]
        for _, values in report.logs
        if "train/loss" in values
    ]
    assert rates == pytest.approx([1e-4, 1e-4, 0.25e-4, 0.25e-4])
    assert epochs == [(0.0, 1.0), (0.25, 1.0), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0)]
