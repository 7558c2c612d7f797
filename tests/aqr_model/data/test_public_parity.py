"""The data side against golden numbers of the public CMT, with its random draws.

``scripts/parity/data.py`` ran the public code and wrote them.
"""

import copy
from pathlib import Path

import data_parity as cases
import keyframe
import keyframe_objects
import numpy as np
import pytest
import torch
from mmcv import Config
from mmdet3d.datasets import build_dataset
from mmdet3d.datasets.dataset_wrappers import CBGSDataset
from mmdet3d.datasets.pipelines import Compose
from tape import replayed

from aqr_model.cmt.images.grid_mask import GridMask

GOLDEN = Path("tests/data/parity")
TOLERANCE = 1e-4
STEPS = cases.load_golden(GOLDEN / "data_steps.npz")
SAMPLERS = cases.load_golden(GOLDEN / "data_samplers.npz")
KEYFRAME = cases.load_golden(GOLDEN / "data_keyframe.npz")


def check(expected, found):
    """Everything that the public side has."""
    for key, value in expected.items():
        assert cases.relative_difference(value, found[key]) <= TOLERANCE, key


@pytest.fixture(scope="module")
def small_cases(tmp_path_factory):
    return cases.small_cases(cases.write_small_database(tmp_path_factory.mktemp("objects")))


@pytest.mark.parametrize("name", STEPS)
def test_steps(name, small_cases):
    part, seed = name.split(" / ")
    tape, expected = STEPS[name]
    steps = Compose(copy.deepcopy(small_cases[part].steps))
    with replayed(tape):
        found = steps(cases.small_sample(int(seed)))
    check(expected, cases.digest(cases.outcome(found)))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name.startswith("GridMask")])
def test_grid_mask(name):
    _, height, width = name.split(" / ")[0].split()
    tape, expected = SAMPLERS[name]
    with replayed(tape):
        found = GridMask().train()(torch.ones(1, 1, int(height), int(width)))
    check(expected, cases.mask_digest(found))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name.startswith("CBGS")])
def test_class_balanced_sampling(name, tmp_path):
    tape, expected = SAMPLERS[name]
    infos = cases.class_infos(tmp_path / "infos.pkl", int(name.split(" / ")[1]))
    options = {"ann_file": str(infos), "data_root": "", "pipeline": []}
    dataset = build_dataset({"type": "CustomNuScenesDataset", **options})
    with replayed(tape):
        chosen = CBGSDataset(dataset).sample_indices
    assert chosen == expected["samples"].astype(int).tolist()


@pytest.fixture(scope="module")
def keyframe_files(tmp_path_factory):
    if not keyframe.available():
        pytest.skip(keyframe.ABSENT)
    folder = tmp_path_factory.mktemp("keyframe")
    infos = keyframe_objects.write_infos(folder / "infos.pkl")
    return infos, keyframe_objects.write_database(infos, folder)


@pytest.mark.parametrize("name", KEYFRAME)
def test_pipelines_of_the_shipped_configs_on_a_real_keyframe(name, keyframe_files):
    config, split, seed = name.split(" / ")
    tape, expected = KEYFRAME[name]
    infos, database = keyframe_files
    cfg = Config.fromfile(f"aqr_model/configs/{config}")
    steps = [
        cases.pasting(database, keyframe_objects.GROUPS)
        if step["type"] == "UnifiedObjectSample"
        else step
        for step in cfg[f"{split}_pipeline"]
    ]
    options = {"ann_file": str(infos), "data_root": "", "pipeline": []}
    options |= {"modality": cfg.input_modality, "test_mode": split == "test"}
    dataset = build_dataset({"type": "CustomNuScenesDataset", **options})
    data = dataset.get_data_info(0)
    dataset.pre_pipeline(data)
    with replayed(tape):
        for step in cases.without_order(Compose(steps).transforms):
            data = step(data)
    found = cases.digest(cases.outcome(data))
    assert cases.COLLECTED <= set(found)
    check({key: value for key, value in expected.items() if key in found}, found)
