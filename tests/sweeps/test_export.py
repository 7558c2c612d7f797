import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeps.export import ExportError, config_source, export_config, inherited_overrides
from sweeps.record import RungResult, SweepRecord, TrialRecord

BASE = {
    "model": {
        "type": "CmtDetector",
        "pts_bbox_head": {"renderer_config": {"max_weight_clamp": 1.0, "kind": "gaussian"}},
        "heads": [{"type": "A", "dims": [1, 2]}, {"type": "B", "nested": [{"x": 1}]}],
    },
    "optimizer": {"lr": 1e-4, "paramwise_cfg": {"custom_keys": {"img_backbone": {"lr_mult": 0.1}}}},
    "data": {"train": {"pipeline": [{"type": "Load"}, {"type": "Flip", "ratio": 0.5}]}},
    "point_cloud_range": [-54.0, -54.0, 5.0],
    "total_epochs": 20,
    "load_from": None,
}


@pytest.fixture(scope="module")
def mmcv_config():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmcv announces its successor when it is first imported
        from mmcv import Config
    return Config


@pytest.fixture
def record() -> SweepRecord:
    rung = RungResult(
        fraction=1.0,
        val_share=1.0,
        epoch=2.0,
        step=200,
        metrics={"val/nds": 0.43, "val/map": 0.3},
        checkpoint=None,
        seconds=60.0,
    )
    trial = TrialRecord(
        number=7,
        label="t007-abcd1234",
        role="search",
        params={"amplification": 1.42, "seed": 3},
        sampled={"amplification": 1.42},
        seed=3,
        config_hash="abcd1234",
        rungs=(rung,),
        outcome="finished",
        value=0.43,
        told=0.43,
    )
    attrs = {"metric": "val/nds", "mode": "max", "noise": 0.002}
    return SweepRecord(name="quick", trials=(trial,), control=None, attrs=attrs)


@pytest.fixture
def base_config(tmp_path: Path) -> Path:
    path = tmp_path / "configs" / "base.py"
    path.parent.mkdir()
    path.write_text(config_source(BASE))
    return path


def export(record, base_config, overrides, *, base=BASE, trial=None, **kwargs) -> Path:
    return export_config(
        record,
        trial or record.trials[0],
        base_config=base_config,
        base=base,
        overrides=overrides,
        out=base_config.parent.parent / "out" / "best.py",
        **kwargs,
    )


def runtime(config_class, base_config, overrides):
    """What training sees: the base config with the overrides merged by mmcv."""
    config = config_class.fromfile(str(base_config))
    config.merge_from_dict(copy.deepcopy(overrides))
    return config._cfg_dict.to_dict()


def exported(config_class, path):
    plain = config_class.fromfile(str(path))._cfg_dict.to_dict()
    origin = plain.pop("provenance")
    return plain, origin


TYPICAL = {
    "model.pts_bbox_head.renderer_config.max_weight_clamp": 1.9333333333333333,
    "model.pts_bbox_head.modulator_config.residual_weight": 0.55,
    "optimizer.paramwise_cfg.custom_keys": {"pts_bbox_head.transformer": {"lr_mult": 0.3}},
    "data.train.pipeline.1.ratio": 0.0,
    "model.heads.1.nested.0.x": 5,
    "total_epochs": 2,
    "load_from": "ckpts/nano.pth",
    "evaluation": {"rungs": (0.5, 1.0), "val_shares": (0.5, 1.0)},
    "seed": 3,
}


def test_trains_what_the_trial_trained(mmcv_config, record, base_config):
    path = export(record, base_config, TYPICAL, provenance={"commit": "abc123"})
    plain, origin = exported(mmcv_config, path)
    assert plain == runtime(mmcv_config, base_config, TYPICAL)
    assert origin["commit"] == "abc123"
    assert origin["sweep"] == "quick"
    assert origin["trial"] == 7
    assert origin["seed"] == 3
    assert origin["score"] == 0.43
    assert origin["metrics"] == {"val/nds": 0.43, "val/map": 0.3}


def test_is_formatted_and_the_same_each_time(record, base_config):
    path = export(record, base_config, TYPICAL)
    first = path.read_bytes()
    assert export(record, base_config, dict(TYPICAL)).read_bytes() == first
    ruff = Path(sys.executable).with_name("ruff")
    command = [str(ruff), "format", "--check", "--isolated", "--line-length", "100", str(path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_reads_as_users_write(record, base_config):
    text = export(record, base_config, TYPICAL).read_text()
    assert '_base_ = ["../configs/base.py"]' in text
    assert 'load_from = "ckpts/nano.pth"\n' in text
    assert "renderer_config=dict(max_weight_clamp=1.9333333333333333)" in text
    assert '{"pts_bbox_head.transformer": dict(lr_mult=0.3)}' in text


def test_exported_config_can_be_the_base_of_the_next_sweep(mmcv_config, record, base_config):
    first = export(record, base_config, {"total_epochs": 3})
    base = mmcv_config.fromfile(str(first))._cfg_dict.to_dict()
    second = export_config(
        record,
        record.trials[0],
        base_config=first,
        base=base,
        overrides={"total_epochs": 4},
        out=first.with_name("second.py"),
        provenance={"commit": "new"},
    )
    plain, origin = exported(mmcv_config, second)
    assert plain["total_epochs"] == 4
    assert origin["commit"] == "new"
    assert "_delete_" not in origin


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"point_cloud_range.0": -50.0}, "point_cloud_range.0"),
        ({"data.train.pipeline.7.ratio": 1}, "data.train.pipeline.7"),
        ({"data.train.pipeline.last.ratio": 1}, "data.train.pipeline.last"),
        ({"total_epochs.value": 1}, "total_epochs"),
        ({"total_epochs": 1, "total_epochs.value": 2}, "total_epochs.value"),
        ({"lambda": 1}, "lambda"),
        ({"_base_": "x.py"}, "_base_"),
        ({"provenance.commit": "x"}, "provenance"),
    ],
)
def test_refuses_what_cannot_be_expressed(overrides, named):
    with pytest.raises(ExportError, match=f"'{named}'"):
        inherited_overrides(overrides, BASE)


def test_refuses_values_without_a_literal(record, base_config):
    with pytest.raises(ExportError, match=r"model\.thing.*object"):
        export(record, base_config, {"model.thing": object()})


def test_refuses_a_trial_without_a_result(record, base_config):
    stopped = TrialRecord(
        number=1,
        label="t001-x",
        role="search",
        params={},
        sampled={},
        seed=0,
        config_hash="x",
        outcome="stopped",
        reason="low",
    )
    with pytest.raises(ExportError, match="t001-x is stopped"):
        export(record, base_config, {}, trial=stopped)


def test_refuses_a_known_point(record, base_config):
    known = TrialRecord(
        number=0,
        label="t000-x",
        role="known",
        params={},
        sampled={},
        seed=0,
        config_hash="x",
        outcome="finished",
        value=0.5,
    )
    with pytest.raises(ExportError, match="known point"):
        export(record, base_config, {}, trial=known)


names = st.sampled_from(["a", "b", "model", "heads", "0", "1", "x.y", "_delete_", "img backbone"])
plain_names = st.sampled_from(["a", "b", "model", "heads", "type"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.sampled_from(["{{ fileDirname }}", "{{_base_.model}}", "it's", 'a "quote"', "x" * 120])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(names, inner, max_size=3)
    ),
    max_leaves=8,
)
bases = st.dictionaries(
    plain_names,
    st.recursive(
        st.integers(0, 9),
        lambda inner: (
            st.lists(st.dictionaries(plain_names, inner, max_size=2), min_size=1, max_size=2)
            | st.dictionaries(plain_names, inner, max_size=3)
        ),
        max_leaves=10,
    ),
    max_size=4,
)
keys = st.lists(
    st.sampled_from(["a", "b", "model", "heads", "type", "0", "1"]), max_size=3
).flatmap(lambda rest: plain_names.map(lambda first: ".".join([first, *rest])))


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(base=bases, overrides=st.dictionaries(keys, values, max_size=4))
def test_equals_the_merge_at_run_time(mmcv_config, record, tmp_path, base, overrides):
    base_config = tmp_path / "configs" / "base.py"
    base_config.parent.mkdir(exist_ok=True)
    base_config.write_text(config_source(base))
    try:
        path = export(record, base_config, overrides, base=base)
    except ExportError:
        with pytest.raises((TypeError, KeyError, AttributeError)):
            runtime(mmcv_config, base_config, overrides)
        return
    assert exported(mmcv_config, path)[0] == runtime(mmcv_config, base_config, overrides)
