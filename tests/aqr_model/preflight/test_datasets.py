"""Datasets and their pipelines, checked without data."""

import pytest
from own_config import write_config

from aqr_model.preflight.datasets import check_datasets
from aqr_model.preflight.findings import Findings
from aqr_model.preflight.reading import apply_overrides, load_config

FULL = "cmt_voxel0100_r50_800x320_cbgs.py"
BOTH = ("train", "val")


def checked(config, *, files=False, splits=BOTH, **overrides):
    findings = Findings()
    cfg = load_config(config)
    apply_overrides(cfg, {key.replace("__", "."): value for key, value in overrides.items()})
    check_datasets(dict(cfg.items()), findings, splits=splits, files=files)
    return {error.key: error.text for error in findings.errors}


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("own"))


def test_whole_pipelines_are_built_without_any_data():
    # CBGS, object sampling with patches, every augmentation.
    assert checked(f"aqr_model/configs/{FULL}") == {}


def test_the_same_config_with_data_says_the_same(nano_cfg):
    findings = Findings()
    check_datasets(dict(nano_cfg().items()), findings, splits=BOTH)
    assert findings == Findings()


def test_every_step_that_cannot_be_built_is_named(nano):
    wrong = {
        "data__train__pipeline__3__with_bbox_3ds": True,
        "data__train__pipeline__4__rot_ranges": [0, 0],
        "data__train__pipeline__7": {"_delete_": True, "type": "ObjectNameFilters", "classes": []},
        "data__train__pipeline__9__data_aug_conf__H": None,
        "data__val__pipeline__3__transforms__2__size_divisors": 32,
        "data__val__pipeline__3__img_scales": (1, 1),
    }
    found = checked(nano, **wrong)
    assert found.keys() == {
        "data.train.pipeline.3.with_bbox_3ds",
        "data.train.pipeline.4.rot_ranges",
        "data.train.pipeline.7",
        "data.val.pipeline.3.transforms.2.size_divisors",
        "data.val.pipeline.3.img_scales",
    }
    assert "`with_bbox_3d`" in found["data.train.pipeline.3.with_bbox_3ds"]
    assert (
        "ObjectNameFilters is not; the nearest name is ObjectNameFilter"
        in found["data.train.pipeline.7"]
    )
    assert "`rot_range`" in found["data.train.pipeline.4.rot_ranges"]


def test_arguments_of_datasets_and_wrappers_are_checked_too():
    wrong = {
        "data__train__dataset__use_valid_flags": True,
        "data__val__box_type_3d": "Lidars",
    }
    found = checked(f"aqr_model/configs/{FULL}", **wrong)
    assert "`use_valid_flag`" in found["data.train.dataset.use_valid_flags"]
    assert "box_type" in found["data.val"]


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda one: {"type": "RepeatDataset", "times": 2, "dataset": one},
        lambda one: {"type": "CBGSDataset", "dataset": one},
        lambda one: {
            "type": "RepeatDataset",
            "times": 2,
            "dataset": {"type": "CBGSDataset", "dataset": one},
        },
        lambda one: {"type": "ConcatDataset", "datasets": [one, one]},
        lambda one: {"type": "CBGSDataset", "dataset": [one, one]},
        lambda one: [one, one],
    ],
)
def test_wrappers_of_users_are_built_too(nano, wrapped):
    one = load_config(nano).data.train
    fine, wrong = dict(one), {**one, "load_intervals": 2}
    assert checked(nano, data__train={"_delete_": True, **_plain(wrapped(fine))}) == {}
    found = checked(nano, data__train={"_delete_": True, **_plain(wrapped(wrong))})
    assert all(key.endswith("load_intervals") for key in found)
    assert found


def _plain(node):
    """A list of datasets as the dict that mmdet3d makes of it: overrides merge dicts."""
    return {"type": "ConcatDataset", "datasets": node} if isinstance(node, list) else node


def test_a_wrapper_without_its_argument_is_said(nano):
    one = load_config(nano).data.train
    found = checked(nano, data__train={"_delete_": True, "type": "RepeatDataset", "dataset": one})
    assert "times" in found["data.train"]


def test_several_info_files_of_one_dataset_are_refused_with_the_way_to_write_it(nano):
    found = checked(nano, data__train__ann_file=["a.pkl", "b.pkl"])
    assert "a list of datasets, each with a file" in found["data.train.ann_file"]


def test_what_is_scored_must_be_the_dataset_that_the_devkit_scores(nano):
    one = load_config(nano).data.val
    found = checked(
        nano, data__val={"_delete_": True, "type": "RepeatDataset", "times": 1, "dataset": one}
    )
    assert "must be a CustomNuScenesDataset" in found["data.val"]
    assert checked(nano, data__val__type="NuScenesDataset")["data.val"].startswith(
        "must be a Custom"
    )


def test_files_that_are_not_there_are_named_where_they_should_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path)
    assert checked(path, files=True) == {}
    (tmp_path / "data" / "val.pkl").unlink()
    (text,) = checked(path, files=True).values()
    assert text.startswith("data.val.ann_file 'data/val.pkl' must be there, but are not")
    assert "make data" in text
    assert checked(path, files=True, splits=("train",)) == {}
    assert checked(path, files=False) == {}


def test_a_database_of_objects_that_is_not_there_is_named(tmp_path, monkeypatch):
    from pathlib import Path

    config = Path(f"aqr_model/configs/{FULL}").absolute()
    monkeypatch.chdir(tmp_path)
    (text,) = checked(config, files=True, splits=("train",)).values()
    assert "db_sampler.info_path 'data/nuscenes/nuscenes_dbinfos_train.pkl'" in text


def test_settings_of_a_sampler_are_checked_without_its_database():
    found = checked(
        f"aqr_model/configs/{FULL}",
        data__train__dataset__pipeline__4__db_sampler__sample_groups__tram=3,
        data__train__dataset__pipeline__4__db_sampler__rates=1.0,
    )
    step = "data.train.dataset.pipeline.4"
    assert "`rate`" in found[f"{step}.db_sampler.rates"]
    assert any("tram" in text for text in found.values())


def test_a_pipeline_that_is_none_is_said(nano):
    found = checked(nano, data__train__pipeline=["LoadPoints"])
    assert found == {"data.train.pipeline.0": "must be a dict with a `type`, but got 'LoadPoints'."}


@pytest.mark.parametrize(
    "variants",
    [
        {"flip": True, "pcd_horizontal_flip": True},
        {"img_scale": [(1333, 800), (800, 400)]},
        {"pts_scale_ratio": [0.95, 1.05]},
    ],
)
def test_test_time_augmentation_is_refused_before_the_first_score(nano, variants):
    step = "data.val.pipeline.3"
    given = {f"{step}.{key}".replace(".", "__"): value for key, value in variants.items()}
    found = checked(nano, **given)
    assert found.keys() == {step}
    assert "one variant of each sample" in found[step]
