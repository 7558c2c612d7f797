"""CMT on LiDAR alone and on cameras alone. test_parity.py holds the public code's numbers."""

import pytest
import torch
from cmt_cases import AQR, build, head_config, small_batch
from mmcv import Config
from mmdet.models.builder import build_head
from mmdet3d.models import build_model

HEADS = {"lidar": "CmtLidarHead", "camera": "CmtImageHead"}
SENSORS = list(HEADS)


def one_sensor(sensor, **config):
    transformer = "CmtLidarTransformer" if sensor == "lidar" else "CmtImageTransformer"
    settings = head_config(type=HEADS[sensor], **config)
    settings["transformer"]["type"] = transformer
    return settings


def features_of(sensor, batch):
    """What the detector hands a head of one sensor."""
    points, images, metas, boxes, labels = batch
    if sensor == "camera":
        return [None], images, metas, boxes, labels
    for meta in metas:  # a LiDAR data set has no cameras
        del meta["lidar2img"], meta["pad_shape"]
    return points, [None], metas, boxes, labels


@pytest.mark.parametrize("sensor", SENSORS)
def test_it_reads_its_own_sensor(sensor):
    head = build_head(one_sensor(sensor)).eval()
    head.init_weights()
    batch = features_of(sensor, small_batch())
    outputs = head(*batch[:3])[0][0]
    other = features_of(sensor, small_batch(seed=1))
    moved = head(*other[:2], batch[2])[0][0]
    assert not torch.equal(outputs["cls_logits"], moved["cls_logits"])


@pytest.mark.parametrize("sensor", SENSORS)
def test_every_parameter_learns(sensor):
    torch.manual_seed(0)
    head = build_head(one_sensor(sensor)).train()
    head.init_weights()
    points, images, metas, boxes, labels = features_of(sensor, small_batch())
    losses = head.loss(boxes, labels, head(points, images, metas))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("sensor", SENSORS)
def test_aqr_needs_both_sensors(sensor):
    with pytest.raises(ValueError, match=rf"must be False for {HEADS[sensor]}.*{sensor} alone"):
        build_head(one_sensor(sensor, **AQR))


@pytest.mark.parametrize("sensor", SENSORS)
def test_features_of_another_sensor_are_refused(sensor):
    head = build_head(one_sensor(sensor))
    points, images, metas, _, _ = small_batch()
    with pytest.raises(ValueError, match=f"features of {sensor}, but got those of lidar and cam"):
        head(points, images, metas)
    with pytest.raises(ValueError, match=f"features of {sensor}, but got those of none"):
        head([None], [None], metas)


@pytest.mark.parametrize("sensor", SENSORS)
def test_the_backbones_must_be_those_of_the_head(sensor):
    fusion = Config.fromfile("aqr_model/configs/cmt_nano.py").model
    alone = Config.fromfile(f"aqr_model/configs/cmt_{sensor}_nano.py").model
    with pytest.raises(ValueError, match=r"has those of lidar and camera\..*or take another head"):
        build_model(fusion | {"pts_bbox_head": alone.pts_bbox_head})
    with pytest.raises(ValueError, match=rf"CmtHead reads lidar and camera.*those of {sensor}\."):
        build_model(alone | {"pts_bbox_head": fusion.pts_bbox_head})


def test_heads_of_one_sensor_have_a_part_of_the_fusion_heads_weights():
    whole = set(build().state_dict())
    lidar, camera = (set(build_head(one_sensor(s)).state_dict()) for s in ("lidar", "camera"))
    assert {name.split(".")[0] for name in whole - lidar} == {"rv_embedding"}
    assert {name.split(".")[0] for name in whole - camera} == {"shared_conv"}
    assert lidar | camera == whole
