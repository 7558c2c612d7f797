"""Training on two processes, over gloo, with the nano model."""

import dataclasses
import json
import os
import subprocess
import sys

import gang
import pytest
import torch
from gang import Job

from aqr_model.cmt.loss.step_totals import StepTotals
from aqr_model.engine.evaluator import Evaluator
from aqr_model.engine.setup import build_detector
from aqr_model.engine.weights.states import read_state
from aqr_model.train import train
from launch.ports import free_port

PARTS = ("img_backbone", "img_neck", "pts_voxel_encoder", "pts_backbone", "pts_neck")
PRETRAINED = "aqr_model/checkpoints/cmt_nano.pth"
# What makes a split step equal a whole one: statistics of batch norms that do not follow the batch,
# and an update that follows the gradient's size (Adam's first steps follow its sign, where a
# difference of rounding decides if the gradient is zero). Larger steps carry a rounding over the
# edge of a window or a matching within a few steps.
SPLITTABLE = {
    "denoising_slots": "step",
    "norm_eval": [*PARTS, "pts_bbox_head"],
    "optimizer": {"type": "SGD", "lr": 1e-4, "momentum": 0.9, "_delete_": True},
    "lr_config": None,
    "evaluation": {"rungs": [1.0], "val_shares": [1.0]},
    "total_epochs": 2,
    "log_config.interval": 1,
}
ADAM = {
    "load_from": PRETRAINED,
    "custom_hooks": [{"type": "EMAHook", "momentum": 0.3, "warm_up": 2}],
    "evaluation": {"rungs": [0.5, 1.0], "val_shares": [0.5, 1.0]},
    "total_epochs": 2,
}
# Batches of one sample, so that however they are spread each is computed alike. In fp16 the weights
# are far from overflowing at this scale.
HALF = {
    **SPLITTABLE,
    "denoising_slots": "batch",
    "data.samples_per_gpu": 1,
    "total_epochs": 1,
    "fp16": {"loss_scale": {"init_scale": 128.0}},
}


def weights(folder):
    return torch.load(folder / "final.pth", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def gang_run(nano_cfg, jittered_base, tmp_path_factory):
    """All trainings of the gang, run once: name to (folder, what each rank saw)."""
    root = tmp_path_factory.mktemp("gang")
    splittable = nano_cfg(**SPLITTABLE, load_from=str(jittered_base))
    adam = nano_cfg(**ADAM)
    splittable.dump(str(root / "splittable.py"))
    adam.dump(str(root / "adam.py"))
    adam.evaluation.beside_training = True
    adam.dump(str(root / "beside.py"))
    nano_cfg(**HALF, **{"optimizer_config.cumulative_iters": 2}).dump(str(root / "half.py"))
    plans = {
        "split": {"config": "splittable.py"},
        "half": {"config": "half.py"},
        "whole": {"config": "adam.py"},
        "cut": {"config": "beside.py", "stop_at": 1},
        "resumed": {"config": "beside.py", "resume": True, "workdir": "cut"},
        "nan": {"config": "adam.py", "fault": (1, 1, "nan")},
        "broken": {"config": "adam.py", "fault": (1, 1, "raise")},
    }
    jobs = [
        Job(
            **{
                **plan,
                "name": name,
                "config": str(root / plan["config"]),
                "workdir": str(root / plan.get("workdir", name)),
            }
        )
        for name, plan in plans.items()
    ]
    seen = gang.run(jobs)
    folders = [root / plan.get("workdir", name) for name, plan in plans.items()]
    return dict(zip(plans, zip(folders, seen, strict=True), strict=True))


def losses(logs):
    return [
        {name: value for name, value in values.items() if "loss" in name}
        for _, values in logs
        if "train/loss" in values
    ]


def test_two_processes_train_as_one_with_the_double_batch(
    gang_run, nano_cfg, jittered_base, tmp_path
):
    folder, (main, other) = gang_run["split"]
    assert main["error"] is None
    assert other["error"] is None
    report = gang.Recorder(None)
    whole = {"data.samples_per_gpu": 4, "load_from": str(jittered_base)}
    cfg = nano_cfg(**SPLITTABLE, **whole)
    train(cfg, workdir=tmp_path, report=report)
    got, want = losses(main["logs"]), losses(report.logs)
    assert len(got) == len(want) == 4
    for step, (one, two) in enumerate(zip(want, got, strict=True)):
        for name in one:
            # Counts of each process's own would differ by a few per cent, from the first step on.
            rel = 1e-3 if step else 1e-5
            assert two[name] == pytest.approx(one[name], rel=rel), (step, name)
    start = torch.load(jittered_base, weights_only=True)["state_dict"]
    one, two = weights(tmp_path), weights(folder)
    moved = [(one[name] - start[name]).abs().max().item() for name in start if "weight" in name]
    assert max(moved) > 1e-3, "the comparison says little if nothing is learnt"
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)


STATISTICS = """
import torch, torch.distributed as dist
from aqr_model.engine.distributed import together

dist.init_process_group("gloo")
with together() as workers:
    norm = torch.nn.BatchNorm1d(1)
    net = workers.wrap(norm, find_unused=False)
    for _ in range(3):
        net(torch.tensor([[10.0], [11.0]]) * workers.rank + 1).sum().backward()
    own = norm.running_mean.item()
    workers.share_buffers(norm)
    print(f"{own:.4f} {norm.running_mean.item():.4f}")
dist.destroy_process_group()
"""


def test_each_process_keeps_its_own_statistics_of_batch_norms_until_they_are_shared():
    # As mmdet3d's training does: rank 0 saw the mean 1, rank 1 the mean 11.5; momentum 0.1.
    port = str(free_port())
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-W", "ignore", "-c", STATISTICS]
    started = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].split() for process in started]
    moved = 1 - 0.9**3
    assert said[0] == [f"{1 * moved:.4f}", f"{1 * moved:.4f}"]
    assert said[1] == [f"{11.5 * moved:.4f}", f"{1 * moved:.4f}"]


def test_accumulated_fp16_batches_on_two_processes_are_those_of_one(gang_run, nano_cfg, tmp_path):
    folder, (main, other) = gang_run["half"]
    assert main["error"] is other["error"] is None
    report = gang.Recorder(None)
    train(
        nano_cfg(**HALF, **{"optimizer_config.cumulative_iters": 4}),
        workdir=tmp_path,
        report=report,
    )
    got, want = (dict(seen)[1] for seen in (main["logs"], report.logs))
    assert want["train/loss_scale"] == 128.0
    assert want["train/skipped_steps"] == 0.0
    for name in want:
        if name != "train/s_per_step":
            assert got[name] == pytest.approx(want[name], rel=1e-4), name
    one, two = weights(tmp_path), weights(folder)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)


def test_shares_of_the_samples_are_put_together_in_order(gang_run, nano_cfg):
    folder, (main, _) = gang_run["split"]
    cfg = nano_cfg(**SPLITTABLE, load_from=str(folder / "final.pth"))
    alone = Evaluator(cfg, device=torch.device("cpu")).score(build_detector(cfg))
    assert alone["val/nds"] > 0.1
    assert main["rungs"][0][1] == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_a_gang_that_is_cut_and_resumed_ends_bit_for_bit_the_same(gang_run):
    folder, (whole, _) = gang_run["whole"]
    again, (cut, cut_other) = gang_run["cut"]
    _, (resumed, other) = gang_run["resumed"]
    assert cut["error"] == ["KeyError", "'stopped by the sweep'"]
    assert cut_other["error"] == ["WorkerFailed", "rank 0 of 2: KeyError: 'stopped by the sweep'"]
    assert whole["error"] is resumed["error"] is other["error"] is None
    # The rung at which the gang was cut was not acknowledged: it is scored again.
    assert [step for step, _ in whole["rungs"]] == [2, 4]
    assert cut["rungs"] == whole["rungs"][:1]
    assert resumed["rungs"] == whole["rungs"]
    one, two = weights(folder), weights(again)
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (read_state(each / "latest.pth").model for each in (folder, again))
    assert sum(name.startswith("ema_") for name in one) > 50
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_loss_that_is_not_finite_on_one_process_ends_all_by_name(gang_run):
    _, (main, other) = gang_run["nan"]
    for seen in (main, other):
        kind, message = seen["error"]
        assert kind == "FloatingPointError"
        assert "at step 1 loss is nan" in message
        assert "loss term loss_cls (rank 1)" in message


def test_an_error_on_one_process_ends_all_with_its_message(gang_run):
    _, (main, other) = gang_run["broken"]
    assert other["error"] == ["LookupError", "a broken sample"]
    assert main["error"] == ["WorkerFailed", "rank 1 of 2: LookupError: a broken sample"]


def test_only_rank_0_reports(gang_run):
    """Also where every process has a report: the gang gives each its own."""
    for name in ("split", "whole", "half"):
        _, (main, other) = gang_run[name]
        assert len(main["rungs"]) >= 1
        assert main["logs"]
        assert other["rungs"] == other["logs"] == []


@pytest.mark.integration
def test_torchrun_starts_it_and_the_command_line_resumes_it(nano_cfg, tmp_path):
    settings = {"total_epochs": 0.5, "evaluation": {"rungs": [1.0], "val_shares": [1.0]}}
    nano_cfg(**settings, load_from=PRETRAINED).dump(str(tmp_path / "config.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), "-m", "aqr_model.train"]
    command += [str(tmp_path / "config.py"), "--work-dir", str(tmp_path), "--resume"]
    for attempt in range(2):
        ran = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=gang.TIMEOUT_S,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr[-4000:]
        records = (tmp_path / "metrics.jsonl").read_text().splitlines()
        scores = [json.loads(line) for line in records if "val/nds" in line]
        # The second attempt finds nothing left to train: only its last rung, not acknowledged in
        # the checkpoint, is scored again.
        assert [score["step"] for score in scores] == [1] * (attempt + 1)
    assert scores[0] == scores[1]
    assert (tmp_path / "final.pth").is_file()


def labels(*counts):
    return [torch.arange(count) % 10 for count in counts]


def test_counts_of_a_step_do_not_depend_on_its_split():
    whole = StepTotals.count([labels(3, 0, 12, 5)], num_classes=10)
    parts = [
        StepTotals.count([labels(3)], num_classes=10),
        StepTotals.count([labels(0), labels(12, 5)], num_classes=10),
    ]
    merged = StepTotals.merge(parts)
    assert (merged.num_batches, whole.num_batches) == (3, 1)
    assert merged.num_samples == whole.num_samples == 4
    assert merged.boxes_of_class == whole.boxes_of_class
    assert (whole.by_batch, merged.by_batch) == (((20, 12),), ((3, 3), (0, 0), (17, 12)))
    assert [part.largest_of(3) for part in (whole, merged)] == [3, 3]
    equal = [dataclasses.replace(part, equal_slots=True) for part in (whole, merged)]
    assert [part.largest_of(3) for part in equal] == [12, 12]
    assert merged.boxes_of(0, 2) == sum((label < 2).sum() for label in labels(3, 0, 12, 5))
    assert merged.share(6) * 3 == whole.share(6) == 6
    assert whole.share(0.1) == 1
