"""From a synthetic dataset's tables to a training step with pasted objects."""

import math

import numpy as np
import pytest
import torch
from mmcv import Config
from mmdet3d.core.bbox.box_np_ops import points_in_rbbox
from mmdet3d.datasets import build_dataset
from mmdet3d.models import build_model

from aqr_model.data.prepare import prepare_database
from aqr_model.engine.batches import seed_everything, training_batches
from aqr_model.engine.object_sampling import sampling_epochs
from aqr_model.engine.plan import PlanError
from aqr_model.train import train
from aqr_model.engine.transfer import to_device

GROUPS = {"car": 6, "pedestrian": 8, "bus": 2, "traffic_cone": 6}


@pytest.fixture(scope="module")
def database(synthetic_root):
    """The synthetic set has one sweep before each keyframe, and nano trains with the nearest."""
    return prepare_database(synthetic_root, "v1.0-synth", num_sweeps=1)["synth_train"]


@pytest.fixture(scope="module")
def cfg(synthetic_root, database):
    cfg = Config.fromfile("aqr_model/configs/cmt_nano.py")
    train = cfg.data.train
    train.data_root = str(synthetic_root)
    train.ann_file = str(synthetic_root / "nuscenes_infos_synth_train.pkl")
    paste = {
        "type": "UnifiedObjectSample",
        "sample_2d": True,
        "mixup_rate": 0.5,
        "db_sampler": {
            "type": "UnifiedDataBaseSampler",
            "data_root": None,
            "info_path": str(database),
            "rate": 1.0,
            "prepare": {
                "filter_by_difficulty": [-1],
                "filter_by_min_points": dict.fromkeys(cfg.class_names, 5),
            },
            "classes": cfg.class_names,
            "sample_groups": GROUPS,
        },
    }
    kinds = [step["type"] for step in train.pipeline]
    train.pipeline.insert(kinds.index("LoadAnnotations3D") + 1, paste)
    return cfg


def without_pasting(cfg):
    train = cfg.data.train.copy()
    train.pipeline = [s for s in train.pipeline if s["type"] != "UnifiedObjectSample"]
    return build_dataset(train)


def test_samples_have_the_added_boxes_with_points_in_them(cfg):
    pasted, plain = build_dataset(cfg.data.train), without_pasting(cfg)
    added = 0
    for index in range(len(pasted)):
        seed_everything(index)
        sample = pasted[index]
        seed_everything(index)
        bare = plain[index]
        labels = sample["gt_labels_3d"].data
        added += len(labels) - len(bare["gt_labels_3d"].data)
        for name, most in GROUPS.items():
            label = cfg.class_names.index(name)
            count = int((labels == label).sum())
            assert count <= max(most, int((bare["gt_labels_3d"].data == label).sum()))
        points = sample["points"].data.numpy()
        boxes = sample["gt_bboxes_3d"].data.tensor.numpy()
        inside = points_in_rbbox(points[:, :3], boxes).sum(axis=0)
        # Boxes that the range cuts, and the scene's own, may hold few points.
        assert (inside >= 5).sum() >= (len(labels) - len(bare["gt_labels_3d"].data))
        assert sample["img"].data.shape == bare["img"].data.shape
    assert added > 2 * len(pasted)


def test_the_seed_decides(cfg):
    dataset = build_dataset(cfg.data.train)

    def draw(seed):
        seed_everything(seed)
        return dataset[0]

    first, again, other = draw(1), draw(1), draw(2)
    for key in ("points", "img", "gt_labels_3d"):
        assert torch.equal(first[key].data, again[key].data)
    assert torch.equal(first["gt_bboxes_3d"].data.tensor, again["gt_bboxes_3d"].data.tensor)
    assert not torch.equal(first["points"].data, other["points"].data)


def batches(dataset, workers, start=0):
    return training_batches(dataset, batch_size=2, num_workers=workers, seed=3, start=start, stop=4)


def test_loading_processes_and_a_resumed_run_draw_the_same(cfg):
    dataset = build_dataset(cfg.data.train)
    expected = list(batches(dataset, 0))
    resumed = list(batches(build_dataset(cfg.data.train), 2, start=2))
    for ours, theirs in zip(expected[2:], resumed, strict=True):
        for one, other in zip(ours["points"], theirs["points"], strict=True):
            assert torch.equal(one, other)
        assert torch.equal(ours["img"], theirs["img"])


def drawn(dataset, **settings):
    """Points, images and boxes of each batch, by its step."""
    start = settings.get("start", 0)
    common = {"batch_size": 2, "num_workers": 0, "seed": 3, "start": start, "stop": 8}
    found = training_batches(dataset, **common | settings)
    return {
        step: [
            *batch["points"],
            batch["img"],
            *(boxes.tensor for boxes in batch["gt_bboxes_3d"]),
        ]
        for step, batch in enumerate(found, start=start)
    }


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def sampled_and_plain(cfg):
    """What the steps hold with object sampling and without, by configs that differ in it."""
    return drawn(build_dataset(cfg.data.train)), drawn(without_pasting(cfg))


@pytest.mark.parametrize(
    ("workers", "start"), [(0, 0), (2, 0), (2, 4), (0, 6)], ids=["alone", "loaders", "cut", "late"]
)
def test_sampling_ends_at_a_step_however_it_is_loaded_or_resumed(
    cfg, sampled_and_plain, workers, start
):
    sampled, plain = sampled_and_plain
    assert not same(sampled[6], plain[6])
    dataset = build_dataset(cfg.data.train)
    found = drawn(dataset, num_workers=workers, start=start, sampling_stop=5)
    for step, batch in found.items():
        assert same(batch, (sampled if step < 5 else plain)[step]), step
    assert len(found) == 8 - start


def test_a_config_says_until_which_epoch(cfg, tmp_path, monkeypatch):
    """Of 8 samples a step takes 2: one and a half epochs are 6 steps."""
    seen = []
    monkeypatch.setattr(
        "aqr_model.engine.object_sampling.SamplingUntil.set",
        lambda sampling, step: seen.append((sampling.stop, step)),
    )
    wrapped = Config(cfg._cfg_dict.to_dict())
    wrapped.data.train = {"type": "CBGSDataset", "dataset": cfg.data.train}
    wrapped.data.workers_per_gpu = 0
    wrapped.data.val.data_root = cfg.data.train.data_root
    wrapped.data.val.ann_file = cfg.data.train.ann_file.replace("_train", "_val")
    wrapped.merge_from_dict({"object_sampling_until_epoch": 1.5, "total_epochs": 0.2})
    wrapped.evaluation = {"rungs": [1.0]}
    size = len(build_dataset(wrapped.data.train))
    assert size > 8, "CBGS repeats samples"

    class Report:
        def rung(self, metrics, **place):
            self.metrics = metrics

        def log(self, values, *, step):
            pass

    report = Report()
    train(wrapped, workdir=tmp_path, report=report)
    assert {stop for stop, _ in seen} == {round(1.5 * (size // 2))}
    assert {step for _, step in seen} == set(range(round(0.2 * (size // 2))))
    assert math.isfinite(report.metrics["val/nds"])


@pytest.mark.parametrize(
    ("until", "said"),
    [(-1, "from 0 on, but got -1"), ("15", "but got '15'"), (True, "but got True")],
)
def test_epochs_of_sampling_are_a_number(cfg, until, said):
    wrong = Config({**cfg._cfg_dict, "object_sampling_until_epoch": until})
    with pytest.raises(PlanError, match=said):
        sampling_epochs(wrong)


def test_sampling_that_never_was_cannot_end():
    cfg = Config.fromfile("aqr_model/configs/cmt_nano.py")
    assert sampling_epochs(cfg) is None
    cfg.object_sampling_until_epoch = 15
    with pytest.raises(PlanError, match=r"needs one of UnifiedObjectSample, .* which has none"):
        sampling_epochs(cfg)
    for name in ("voxel0100_r50_800x320", "voxel0075_vov_1600x640"):
        assert sampling_epochs(Config.fromfile(f"aqr_model/configs/cmt_{name}_cbgs.py")) == 15
        assert sampling_epochs(Config.fromfile(f"aqr_model/configs/cmt_aqr_{name}_cbgs.py")) is None


def test_it_trains(cfg):
    seed_everything(0)
    model = build_model(cfg.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    before = [p.detach().clone() for p in model.parameters()]
    for batch in batches(build_dataset(cfg.data.train), 0, start=2):
        losses = model(return_loss=True, **to_device(batch, torch.device("cpu")))
        loss = sum(value.mean() for name, value in losses.items() if "loss" in name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert math.isfinite(float(loss.detach()))
    moved = [not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True)]
    assert np.mean(moved) > 0.9
