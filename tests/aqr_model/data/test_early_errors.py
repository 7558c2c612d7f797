"""What is wrong with a dataset is said before anything is predicted or trained on it."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recorder import Recorder

from aqr_model.data.errors import DataError
from aqr_model.engine.evaluator import Evaluator
from aqr_model.user_errors import USER_ERROR
from aqr_model.train import train


def changed_infos(source, path, change):
    """Write infos of another file after a change of each of them."""
    content = pickle.loads(source.read_bytes())
    for info in content["infos"]:
        change(info)
    path.write_bytes(pickle.dumps(content))
    return str(path)


def foreign(info):
    info["token"] = "of-another-version-" + info["token"]


def elsewhere(info):
    info["lidar_path"] = "samples/LIDAR_TOP/of_another_dataset.pcd.bin"


def empty(info):
    for key in ("gt_boxes", "gt_names", "gt_velocity", "num_lidar_pts", "valid_flag"):
        info[key] = info[key][:0]


def unnamed(info):
    del info["scene_name"]


CASES = {
    "foreign": (foreign, r"(\d+) of \1 are not in its tables .first: of-another-version.*prepare"),
    "elsewhere": (elsewhere, r"of_another_dataset\.pcd\.bin is not there"),
    "empty": (empty, "must hold objects to score on, but hold none"),
    "unnamed": (unnamed, "must name each sample's scene"),
}


@pytest.mark.parametrize("case", CASES)
def test_validation_set(case, nano_cfg, synthetic_root, tmp_path):
    change, message = CASES[case]
    source = synthetic_root / "nuscenes_infos_synth_val.pkl"
    infos = changed_infos(source, tmp_path / "infos.pkl", change)
    with pytest.raises(DataError, match=message):
        Evaluator(nano_cfg(**{"data.val.ann_file": infos}), device=torch.device("cpu"))


def test_tables_of_another_version(nano_cfg, synthetic_root, tmp_path):
    content = pickle.loads((synthetic_root / "nuscenes_infos_synth_val.pkl").read_bytes())
    content["metadata"]["version"] = "v1.0-mini"
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="must be a folder with the tables of version 'v1.0-mini'"):
        Evaluator(nano_cfg(**{"data.val.ann_file": str(path)}), device=torch.device("cpu"))


def test_a_training_says_it_before_its_first_step(nano_cfg, synthetic_root, tmp_path):
    source = synthetic_root / "nuscenes_infos_synth_val.pkl"
    infos = changed_infos(source, tmp_path / "infos.pkl", foreign)
    cfg = nano_cfg(**{"data.val.ann_file": infos, "log_config.interval": 1})
    report = Recorder()
    with pytest.raises(DataError, match="are not in its tables"):
        train(cfg, workdir=tmp_path / "run", report=report)
    assert report.logs == {}
    assert not list((tmp_path / "run").glob("*.pth"))


def test_objects_of_the_training_set(nano_cfg, synthetic_root, tmp_path):
    """A database for LiDAR alone, though patches are to be pasted."""
    path = tmp_path / "nuscenes_dbinfos_train.pkl"
    entry = {"name": "car", "path": "car.bin", "box3d_lidar": np.ones(9, np.float32)}
    entry |= {"num_points_in_gt": 9, "difficulty": 0}
    np.zeros((9, 5), np.float32).tofile(tmp_path / "car.bin")
    path.write_bytes(pickle.dumps({"car": [entry]}))
    cfg = nano_cfg()
    sampler = {"info_path": str(path), "data_root": None, "rate": 1.0, "prepare": {}}
    sampler |= {"classes": list(cfg.class_names), "sample_groups": {"car": 2}}
    paste = {"type": "UnifiedObjectSample", "sample_2d": True, "db_sampler": sampler}
    cfg.data.train.pipeline.insert(4, paste)
    with pytest.raises(DataError, match="must name image patches"):
        train(cfg, workdir=tmp_path / "run", report=Recorder())


def test_submission_of_a_split_without_annotations(nano_cfg, synthetic_root, tmp_path):
    """As nuScenes' test split: samples, but no annotations. The devkit reads what is written."""
    from nuscenes.eval.common.loaders import load_prediction
    from nuscenes.eval.detection.data_classes import DetectionBox
    from typer.testing import CliRunner

    from aqr_model import evaluate

    root = tmp_path / "test_split"
    shutil.copytree(synthetic_root, root)
    for table in ("sample_annotation", "instance"):
        (root / f"v1.0-synth/{table}.json").write_text("[]")
    infos = changed_infos(
        synthetic_root / "nuscenes_infos_synth_val.pkl", root / "nuscenes_infos_test.pkl", empty
    )
    cfg = nano_cfg("cmt_nano.py", **{"data.val.ann_file": infos, "data.val.data_root": str(root)})
    cfg.dump(str(tmp_path / "config.py"))
    command = [str(tmp_path / "config.py"), "aqr_model/checkpoints/cmt_nano.pth"]
    refused = CliRunner().invoke(evaluate.app, command)
    assert refused.exit_code == USER_ERROR
    assert "must hold objects to score on, but hold none" in refused.output
    out = tmp_path / "out"
    done = CliRunner().invoke(evaluate.app, [*command, "--format-only", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(out / "results_nusc.json")
    boxes, meta = load_prediction(str(out / "results_nusc.json"), 500, DetectionBox)
    tokens = [info["token"] for info in pickle.loads(Path(infos).read_bytes())["infos"]]
    assert boxes.sample_tokens == tokens
    assert 0 < len(boxes.all)
    assert (meta["use_camera"], meta["use_lidar"], meta["use_map"]) == (True, True, False)
    assert [path.name for path in out.iterdir()] == ["results_nusc.json"]


@pytest.mark.parametrize("options", [["--format-only"], ["--format-only", "--share", "0.5"]])
def test_a_submission_needs_a_folder_and_all_samples(options, tmp_path):
    from typer.testing import CliRunner

    from aqr_model import evaluate

    command = ["aqr_model/configs/cmt_nano.py", "aqr_model/checkpoints/cmt_nano.pth", *options]
    said = CliRunner().invoke(evaluate.app, command).output
    assert "--format-only must come with --out and without --share" in said
