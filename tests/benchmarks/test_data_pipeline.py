"""Samples a second of one core that the training pipelines make, and each step's share.

``python -m pytest tests/benchmarks/test_data_pipeline.py --benchmark-only -s`` prints the tables of
``docs/data.md``.
"""

import copy
import time

import cv2
import keyframe
import keyframe_objects
import numpy as np
import pytest
import torch
from mmcv import Config

from aqr_model.data.nuscenes.dataset import CLASS_NAMES
from aqr_model.engine.batches import seed_everything

# The users' runs on 8 A100: samples a GPU and step, seconds a step, loading processes a GPU.
BATCH, STEP_S, WORKERS = 4, 0.645, 6


@pytest.fixture(autouse=True)
def _one_core():
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The real keyframe's info file, and a database of its objects."""
    if not keyframe.available():
        pytest.skip(keyframe.ABSENT)
    folder = tmp_path_factory.mktemp("keyframe")
    infos = keyframe_objects.write_infos(folder / "nuscenes_infos_train.pkl")
    return infos, keyframe_objects.write_database(infos, folder)


def _pasting(info_path, names):
    return {
        "type": "UnifiedObjectSample",
        "sample_2d": True,
        "mixup_rate": 0.5,
        "db_sampler": {
            "type": "UnifiedDataBaseSampler",
            "data_root": None,
            "info_path": str(info_path),
            "rate": 1.0,
            "prepare": {
                "filter_by_difficulty": [-1],
                "filter_by_min_points": dict.fromkeys(names, 5),
            },
            "classes": list(names),
            "sample_groups": keyframe_objects.GROUPS,
        },
    }


def _with_pasting(pipeline, info_path):
    steps = [step for step in pipeline if step["type"] != "UnifiedObjectSample"]
    kinds = [step["type"] for step in steps]
    steps.insert(kinds.index("LoadAnnotations3D") + 1, _pasting(info_path, CLASS_NAMES))
    return steps


def _built(config):
    # mmdet3d imports only after aqr_model, which sorted imports would undo.
    from mmdet3d.datasets import build_dataset

    return build_dataset(config)


def _measured(dataset, rounds):
    """Median CPU seconds of each step; processor time, because other processes may run beside."""
    seconds: dict[str, list[float]] = {}
    for k in range(-2, rounds):  # two to warm up
        seed_everything(k + 100)
        data = dataset.get_data_info(k % len(dataset))
        dataset.pre_pipeline(data)
        for transform in dataset.pipeline.transforms:
            started = time.process_time()
            data = transform(data)
            if k >= 0:
                own = seconds.setdefault(type(transform).__name__, [])
                own.append(time.process_time() - started)
    return {name: float(np.median(own)) for name, own in seconds.items()}


def _report(title, benchmark, seconds, capsys):
    total = sum(seconds.values())
    share = BATCH * total / WORKERS / STEP_S
    benchmark.extra_info |= {"samples_per_s": 1 / total, "share_of_step": share, **seconds}
    with capsys.disabled():
        print(f"\n{title}: {1 / total:.2f} samples/s a core ({1e3 * total:.0f} ms)")
        for name, value in seconds.items():
            print(f"  {name:28s} {1e3 * value:7.1f} ms {100 * value / total:5.1f} %")
        print(f"  {BATCH} samples by {WORKERS} processes: {100 * share:.0f} % of {STEP_S} s")


@pytest.mark.parametrize("pasting", [False, True], ids=["plain", "pasting"])
def test_r50_training_pipeline(benchmark, files, pasting, capsys):
    cfg = Config.fromfile("aqr_model/configs/cmt_voxel0100_r50_800x320_cbgs.py")
    infos, database = files
    train = copy.deepcopy(cfg.data.train.dataset)
    train.data_root, train.ann_file = "", str(infos)
    steps = _with_pasting(train.pipeline, database)
    train.pipeline = [s for s in steps if pasting or s["type"] != "UnifiedObjectSample"]
    dataset = _built(train)

    def one():
        return dataset[0]

    seed_everything(0)
    sample = benchmark.pedantic(one, rounds=5, warmup_rounds=1)
    assert sample["img"].data.shape == (6, 3, 320, 800)
    assert len(sample["points"].data) > 1e5
    seconds = _measured(dataset, 10)
    _report(f"R50, {'with' if pasting else 'without'} pasting", benchmark, seconds, capsys)


@pytest.mark.parametrize("pasting", [False, True], ids=["plain", "pasting"])
def test_nano_training_pipeline(benchmark, tmp_path_factory, pasting, capsys):
    from aqr_model.data.prepare import prepare_database
    from aqr_model.data.synthetic import SyntheticConfig, write_dataset

    root = tmp_path_factory.mktemp("nano") / "base"
    write_dataset(root, SyntheticConfig(domain="base", train_scenes=4, val_scenes=2, seed=0))
    info_path = prepare_database(root, "v1.0-synth", num_sweeps=1)["synth_train"]
    train = Config.fromfile("aqr_model/configs/cmt_nano.py").data.train
    train.data_root, train.ann_file = str(root), str(root / "nuscenes_infos_synth_train.pkl")
    if pasting:
        train.pipeline = _with_pasting(train.pipeline, info_path)
    dataset = _built(train)
    steps = iter(range(10**6))
    seed_everything(0)
    sample = benchmark.pedantic(lambda: dataset[next(steps) % 8], rounds=30, warmup_rounds=5)
    assert sample["img"].data.shape == (6, 3, 128, 320)
    seconds = _measured(dataset, 40)
    _report(f"nano, {'with' if pasting else 'without'} pasting", benchmark, seconds, capsys)
