import json

import numpy as np
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from nuscenes.eval.detection.evaluate import DetectionEval

from aqr_model.data.nuscenes import score as module
from aqr_model.data.errors import DataError
from aqr_model.data.nuscenes.results import detection_config, format_results
from aqr_model.data.nuscenes.score import score_predictions
from aqr_model.data.nuscenes.tables import open_tables

VERSION = "v1.0-tiny"


@pytest.fixture
def val(build_tiny):
    return build_tiny(test_mode=True)


def truth_as_detections(dataset):
    detections = []
    for index in range(len(dataset)):
        truth = dataset.get_ann_info(index)
        labels = torch.from_numpy(truth["gt_labels_3d"])
        boxes = truth["gt_bboxes_3d"][labels >= 0]
        labels = labels[labels >= 0]
        scores = torch.full((len(labels),), 0.9)
        found = {"boxes_3d": boxes, "scores_3d": scores, "labels_3d": labels}
        detections.append({"pts_bbox": found})
    return detections


def noisy_detections(dataset, seed=0):
    generator = torch.Generator().manual_seed(seed)
    detections = truth_as_detections(dataset)
    for detection in detections:
        found = detection["pts_bbox"]
        tensor = found["boxes_3d"].tensor
        tensor += torch.randn(tensor.shape, generator=generator) * 0.3
        tensor[:, 3:6] = tensor[:, 3:6].abs() + 0.1
        extra = tensor.clone()
        extra[:, :2] += 4
        found["boxes_3d"] = LiDARInstance3DBoxes(torch.cat([tensor, extra]), box_dim=9)
        found["labels_3d"] = found["labels_3d"].repeat(2)
        found["scores_3d"] = torch.rand(len(found["labels_3d"]), generator=generator)
    return detections


def predictions_of(dataset, detections):
    return format_results(detections, dataset.data_infos, dataset.CLASSES)


def tokens_of(dataset):
    return [info["token"] for info in dataset.data_infos]


def test_ground_truth_scores_one(val):
    """Info files, model boxes and formatting agree: boxes go there and back unharmed."""
    metrics = val.evaluate(truth_as_detections(val))
    assert metrics["val/map"] == pytest.approx(1.0)
    assert metrics["val/mate"] < 1e-3
    assert metrics["val/mase"] < 1e-3
    assert metrics["val/maoe"] < 2e-3  # the tilted ego pose has no place in a yaw
    assert metrics["val/mave"] < 1e-2
    assert metrics["val/maae"] == 0
    assert metrics["val/nds"] > 0.998
    assert {f"val/ap/{name}" for name in val.CLASSES} <= set(metrics)


def test_equals_the_devkits_own_run(val, tiny_root, tmp_path):
    metrics = val.evaluate(noisy_detections(val), jsonfile_prefix=tmp_path)
    assert 0.2 < metrics["val/nds"] < 0.9
    official = DetectionEval(
        open_tables(tiny_root, VERSION),
        config=detection_config(),
        result_path=str(tmp_path / "results_nusc.json"),
        eval_set="tiny_val",
        output_dir=str(tmp_path / "official"),
        verbose=False,
    )
    summary = official.evaluate()[0].serialize()
    assert metrics["val/nds"] == summary["nd_score"]
    assert metrics["val/map"] == summary["mean_ap"]
    assert metrics["val/mave"] == summary["tp_errors"]["vel_err"]
    assert metrics["val/ap/bus"] == summary["mean_dist_aps"]["bus"]
    written = json.loads((tmp_path / "metrics_summary.json").read_text())
    assert written["nd_score"] == summary["nd_score"]


def test_the_summary_alone_is_kept_on_request(val, tmp_path):
    val.evaluate(noisy_detections(val), jsonfile_prefix=tmp_path, keep_results=False)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics_summary.json"]


def test_nothing_found_is_an_honest_zero(val, tiny_root):
    nothing = {token: [] for token in tokens_of(val)}
    metrics = score_predictions(tiny_root, VERSION, tokens_of(val), nothing)
    assert metrics["val/nds"] == 0
    assert metrics["val/map"] == 0
    assert metrics["val/mate"] == metrics["val/maae"] == 1


def test_share_scores_like_the_truth_of_that_share(val):
    part = val.with_share(0.5)
    assert len(part) == 3
    assert len(val) == 6
    assert part.evaluate(truth_as_detections(part))["val/map"] == pytest.approx(1.0)


def test_repeated_scores_are_equal_and_reload_nothing(val, monkeypatch):
    detections = noisy_detections(val)
    first = val.evaluate(detections)

    def fail(*_, **__):
        raise AssertionError("ground truth must not be loaded again")

    monkeypatch.setattr(module, "load_gt_of_sample_tokens", fail)
    assert val.evaluate(detections) == first


def test_devkit_stays_silent(val, capfd):
    val.evaluate(truth_as_detections(val))
    module._ground_truth.cache_clear()
    val.evaluate(truth_as_detections(val))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("field", [0, 3, 6, 8])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_detection_names_its_sample(val, field, value):
    detections = truth_as_detections(val)
    detections[2]["pts_bbox"]["boxes_3d"].tensor[0, field] = value
    with pytest.raises(FloatingPointError, match=val.data_infos[2]["token"]):
        val.evaluate(detections)


@pytest.mark.parametrize("key", ["translation", "velocity", "detection_score"])
def test_non_finite_prediction_names_its_sample(val, tiny_root, key):
    predictions = predictions_of(val, truth_as_detections(val))
    token = tokens_of(val)[1]
    result = predictions[token][0]
    result[key] = float("nan") if key == "detection_score" else [float("nan"), *result[key][1:]]
    with pytest.raises(FloatingPointError, match=token):
        score_predictions(tiny_root, VERSION, tokens_of(val), predictions)


def test_missing_and_foreign_samples(val, tiny_root):
    predictions = predictions_of(val, truth_as_detections(val))
    lost = tokens_of(val)[0]
    predictions["elsewhere"] = predictions.pop(lost)
    with pytest.raises(DataError, match=f"1 samples lack one .first: {lost}.*first: elsewhere"):
        score_predictions(tiny_root, VERSION, tokens_of(val), predictions)


def test_too_many_boxes(val, tiny_root):
    predictions = predictions_of(val, truth_as_detections(val))
    token = tokens_of(val)[0]
    predictions[token] = predictions[token][:1] * 501
    with pytest.raises(DataError, match=f"At most 500 boxes .*{token} has 501"):
        score_predictions(tiny_root, VERSION, tokens_of(val), predictions)


def test_unknown_tokens_and_no_tokens(tiny_root):
    with pytest.raises(DataError, match="1 are not"):
        score_predictions(tiny_root, VERSION, ["who"], {"who": []})
    with pytest.raises(DataError, match="must be samples"):
        score_predictions(tiny_root, VERSION, [], {})


def test_no_ground_truth(own_tiny):
    own_tiny.tables["sample_annotation"] = []
    own_tiny.tables["instance"] = []
    own_tiny.write()
    tokens = [sample["token"] for sample in own_tiny.tables["sample"]]
    with pytest.raises(DataError, match="hold none; score on more scenes"):
        score_predictions(own_tiny.root, VERSION, tokens, {token: [] for token in tokens})


def test_number_of_results_must_match(val):
    with pytest.raises(DataError, match="all 6 samples, but there are 5"):
        val.evaluate(truth_as_detections(val)[:5])


def test_detections_beyond_the_class_range_are_left_out(val):
    detections = truth_as_detections(val)
    boxes = detections[0]["pts_bbox"]["boxes_3d"]
    boxes.tensor[:, :2] = torch.tensor([45.0, 0.0])
    results = predictions_of(val, detections)[tokens_of(val)[0]]
    kept = {result["detection_name"] for result in results}
    assert kept == {"car", "truck", "bus", "trailer", "construction_vehicle"}
    assert np.isfinite([result["translation"] for result in results]).all()
