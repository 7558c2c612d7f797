import numpy as np
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.datasets.nuscenes_dataset import lidar_nusc_box_to_global, output_to_nusc_box

from aqr_model.data.nuscenes.dataset import CLASS_NAMES
from aqr_model.data.nuscenes.results import attribute, detection_config, format_sample


@pytest.mark.parametrize(
    ("name", "speed", "expected"),
    [
        ("car", 0.21, "vehicle.moving"),
        ("car", 0.2, "vehicle.parked"),
        ("truck", 0.0, "vehicle.parked"),
        ("trailer", 3.0, "vehicle.moving"),
        ("construction_vehicle", 0.0, "vehicle.parked"),
        ("bus", 0.1, "vehicle.stopped"),
        ("bus", 1.0, "vehicle.moving"),
        ("pedestrian", 0.1, "pedestrian.standing"),
        ("pedestrian", 0.9, "pedestrian.moving"),
        ("bicycle", 0.0, "cycle.without_rider"),
        ("motorcycle", 5.0, "cycle.with_rider"),
        ("barrier", 5.0, ""),
        ("traffic_cone", 0.0, ""),
    ],
)
def test_attribute(name, speed, expected):
    assert attribute(name, speed) == expected


def test_formatting_equals_mmdet3ds(build_tiny):
    info = build_tiny(test_mode=True).data_infos[0]
    rng = np.random.default_rng(0)
    low = [-55, -55, -3, 0.3, 0.3, 0.3, -4, -5, -5]
    high = [55, 55, 1, 9, 4, 4, 4, 5, 5]
    boxes = LiDARInstance3DBoxes(
        torch.tensor(rng.uniform(low, high, (200, 9)), dtype=torch.float32), box_dim=9
    )
    found = {"boxes_3d": boxes, "scores_3d": torch.rand(200)}
    found["labels_3d"] = torch.randint(0, 10, (200,))
    expected = lidar_nusc_box_to_global(
        info, output_to_nusc_box(found), CLASS_NAMES, detection_config()
    )
    ours = format_sample(boxes, found["scores_3d"], found["labels_3d"], info, CLASS_NAMES)
    assert 50 < len(ours) < 200
    assert len(ours) == len(expected)
    for result, box in zip(ours, expected, strict=True):
        assert result["translation"] == pytest.approx(box.center, abs=1e-4)
        assert result["size"] == pytest.approx(box.wlh, rel=1e-6)
        turn = np.abs(np.dot(result["rotation"], box.orientation.elements))
        assert turn == pytest.approx(1.0, abs=1e-9)
        assert result["velocity"] == pytest.approx(box.velocity[:2], abs=1e-5)
        assert result["detection_name"] == CLASS_NAMES[box.label]
        assert result["detection_score"] == pytest.approx(float(box.score))
