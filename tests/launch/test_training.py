import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
from mmcv import Config

from launch import training
from launch.training import CmtTraining, build_training, resolve
from sweeps.spec import parse_spec

BASE = {
    "model": {"head": {"enable_aqr": True, "heads": [{"n": 1}, {"n": 2}]}},
    "runner": {"type": "EpochBasedRunner", "max_epochs": 6},
    "evaluation": {"rungs": [1.0], "val_shares": [1.0]},
    "window": (1, 2),
    "load_from": None,
    "seed": 3,
}
SPEC = """
name: demo
train: {config: c.py, load_from: start.pth, epochs: 2, overrides: {model.head.heads.1.n: 5}}
objective: {metric: NDS, noise: 0}
space: {seed_of_nothing: {low: 0, high: 1}}
stopping: {rungs: [0.5, 1.0], val_shares: [0.25, 1.0]}
budget: {trials: 1}
"""


@pytest.fixture
def spec():
    return parse_spec(SPEC, source="s.yaml", knobs={}, has_key=lambda key: True)


@pytest.fixture
def knobs(monkeypatch):
    """Knobs without the detector, whose import takes seconds."""
    package, module = ModuleType("aqr_model"), ModuleType("aqr_model.knobs")
    module.to_overrides = lambda params: {f"model.head.{k}": v for k, v in params.items()}
    monkeypatch.setitem(sys.modules, "aqr_model", package)
    monkeypatch.setitem(sys.modules, "aqr_model.knobs", module)
    config = ModuleType("aqr_model.preflight.reading")
    config.apply_overrides = lambda cfg, overrides: cfg.merge_from_dict(dict(overrides))
    monkeypatch.setitem(sys.modules, "aqr_model.preflight.reading", config)
    dotted = ModuleType("aqr_model.preflight.dotted")
    dotted.addressed = lambda overrides, config: dict(overrides)
    monkeypatch.setitem(sys.modules, "aqr_model.preflight.dotted", dotted)


def test_a_trial_trains_with_the_spec_and_then_its_parameters(spec, knobs, tmp_path):
    built = build_training(spec, BASE, root=tmp_path)
    overrides = built.trial_overrides({"enable_aqr": False})
    assert overrides == {
        "model.head.heads.1.n": 5,
        "total_epochs": 2,
        "evaluation.rungs": [0.5, 1.0],
        "evaluation.val_shares": [0.25, 1.0],
        "num_threads": 1,
        "runner.max_epochs": 2,
        "load_from": "start.pth",
        "model.head.enable_aqr": False,
    }
    config = resolve(BASE, overrides)
    assert config.model.head.enable_aqr is False
    assert [part.n for part in config.model.head.heads] == [1, 5]
    assert (config.total_epochs, config.runner.max_epochs) == (2, 2)
    assert config.window == (1, 2)
    # The base is for all trials.
    assert BASE["model"]["head"] == {"enable_aqr": True, "heads": [{"n": 1}, {"n": 2}]}


def test_a_spec_without_a_checkpoint_leaves_that_of_the_config(spec, tmp_path):
    train = spec.train.model_copy(update={"load_from": None, "epochs": 0.5})
    built = build_training(
        spec.model_copy(update={"train": train}), {"load_from": "own.pth"}, root=tmp_path
    )
    assert "load_from" not in built.overrides
    assert "runner.max_epochs" not in built.overrides
    assert built.overrides["total_epochs"] == 0.5


def test_the_trial_gets_its_config_and_works_below_the_root(spec, knobs, tmp_path, monkeypatch):
    calls = []
    module = ModuleType("aqr_model.train")
    module.train = lambda config, **given: calls.append((config, Path.cwd(), given))
    module.Halted = type("Halted", (Exception,), {})
    processes = ModuleType("aqr_model.engine.distributed")
    processes.WorkerFailed = type("WorkerFailed", (Exception,), {})
    monkeypatch.setitem(sys.modules, "aqr_model.train", module)
    monkeypatch.setitem(sys.modules, "aqr_model.engine.distributed", processes)
    root, workdir, before = tmp_path / "root", tmp_path / "t000", Path.cwd()
    root.mkdir()
    built = pickle.loads(pickle.dumps(build_training(spec, BASE, root=root)))
    artifacts = []

    class Report:
        artifact = staticmethod(artifacts.append)

    report, checkpoint = Report(), tmp_path / "latest.pth"
    built({"enable_aqr": False}, report=report, workdir=workdir, resume_from=checkpoint)

    ((config, cwd, given),) = calls
    assert config.model.head.enable_aqr is False
    assert cwd == root
    assert given.pop("halts")() is False
    assert given == {"workdir": workdir, "report": report, "resume_from": checkpoint}
    assert Path.cwd() == before
    assert artifacts == [workdir / "config.py"]
    written = Config.fromfile(str(workdir / "config.py"))
    applied = resolve(BASE, built.trial_overrides({"enable_aqr": False}))
    assert written._cfg_dict.to_dict() == applied._cfg_dict.to_dict()


def test_the_base_is_plain_data_with_all_that_it_inherits(tmp_path):
    (tmp_path / "base.py").write_text("model = dict(type='CmtDetector', a=1)\nsizes = (1, 2)\n")
    (tmp_path / "own.py").write_text("_base_ = ['./base.py']\nmodel = dict(a=2, b=[dict(c=3)])\n")
    base = training.load_base(tmp_path / "own.py")
    assert base == {"model": {"type": "CmtDetector", "a": 2, "b": [{"c": 3}]}, "sizes": (1, 2)}
    assert type(base["model"]) is dict
    assert type(base["model"]["b"][0]) is dict


def test_a_base_that_cannot_be_meant_is_refused(tmp_path):
    (tmp_path / "own.py").write_text("model = dict(a=1)\nmodel = dict(b=2)\n")
    with pytest.raises(ValueError, match=r"assigns `model` twice, in lines 1 and 2"):
        training.load_base(tmp_path / "own.py")


def test_an_override_that_leads_through_a_number_is_refused():
    with pytest.raises((KeyError, TypeError, AssertionError)):
        resolve(BASE, {"seed.deeper": 1})


def test_the_training_is_plain_data():
    one = CmtTraining(base=BASE, overrides={}, root=Path("/r"))
    assert pickle.loads(pickle.dumps(one)) == one
