"""Batches are made and sent without mmcv's containers."""

import pickle

import pytest
import torch
from mmcv.parallel import DataContainer

from aqr_model.aqr.crossings import crossings
from aqr_model.engine.transfer import collate, to_device


def sample(points, fill=0, size=4):
    return {
        "img": DataContainer(torch.full((6, 3, size, 5), fill, dtype=torch.uint8), stack=True),
        "points": DataContainer(torch.ones(points, 5)),
        "gt_labels_3d": DataContainer(torch.arange(points)),
        "img_metas": DataContainer({"place": fill}, cpu_only=True),
    }


def test_images_are_stacked_and_all_else_is_listed():
    batch = collate([sample(2, 7), sample(3, 8)])
    assert batch["img"].shape == (2, 6, 3, 4, 5)
    assert batch["img"].dtype == torch.uint8
    assert batch["img"][1].unique().tolist() == [8]
    assert [len(points) for points in batch["points"]] == [2, 3]
    assert [meta["place"] for meta in batch["img_metas"]] == [7, 8]


def test_a_test_pipelines_variants_stay_lists():
    variants = [{key: [value] for key, value in sample(n, n).items()} for n in (2, 3)]
    batch = collate(variants)
    assert [images.shape for images in batch["img"]] == [(2, 6, 3, 4, 5)]
    assert [[len(points) for points in variant] for variant in batch["points"]] == [[2, 3]]
    assert [meta["place"] for meta in batch["img_metas"][0]] == [2, 3]


def test_images_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"`img` of one batch must have one shape, but got"):
        collate([sample(1), sample(1, size=6)])


def test_images_of_two_types_are_refused():
    other = sample(1)
    other["img"] = DataContainer(other["img"].data.float(), stack=True)
    with pytest.raises(ValueError, match=r"must have one type, but got .*float32.*uint8"):
        collate([sample(1), other])


def test_what_joins_samples_can_be_sent_to_a_spawned_process():
    assert pickle.loads(pickle.dumps(collate)) is collate


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_ground_truth_stays_on_the_host(device):
    with crossings() as counted:
        sent = to_device(collate([sample(2), sample(3)]), torch.device(device))
    assert sent["img"].device.type == device
    assert {points.device.type for points in sent["points"]} == {device}
    assert {labels.device.type for labels in sent["gt_labels_3d"]} == {"cpu"}
    assert dict(counted) == {"upload: batch": 1}
