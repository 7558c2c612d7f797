"""The commands of the package find out before anything starts whether they can do their work."""

import logging

import pytest
from own_config import write_config
from typer.testing import CliRunner

from aqr_model import evaluate, train
from aqr_model.preflight.checks import preflight
from aqr_model.preflight.reading import load_config
from aqr_model.user_errors import USER_ERROR


@pytest.fixture
def start(tmp_path, monkeypatch, caplog):
    """Run the train command on a config; the training itself is only noted."""
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr(train, "train", lambda cfg, **given: started.append(cfg))

    def run(text, **options):
        path = write_config(tmp_path, text, **options)
        with caplog.at_level(logging.WARNING):
            result = CliRunner().invoke(train.app, [str(path), "--work-dir", "w"])
        return result, started, [record.getMessage() for record in caplog.records]

    return run


def refused(result, started):
    assert result.exit_code == USER_ERROR
    assert "Traceback" not in result.stderr
    assert started == []
    return " ".join(result.stderr.split())


def test_a_training_state_to_go_on_from_must_be_there(start):
    said = refused(*start("resume_from = 'work_dirs/base/epoch_15.pth'\ntotal_epochs = 20\n")[:2])
    assert "own.py cannot be used, for a reason: resume_from (own.py, line 2):" in said
    assert "To start from the weights of another training, name its file in `load_from`" in said


def test_a_training_that_counts_iterations_is_told_what_to_write(start):
    said = refused(
        *start(
            "total_epochs = None\nrunner = dict(type='IterBasedRunner', max_iters=2000)\n"
            "checkpoint_config = dict(by_epoch=False, interval=100)\n"
        )[:2]
    )
    assert "total_epochs (own.py, line 2): must be given, in epochs, but got None." in said
    assert "`runner.max_iters` (2000) is not read: divide it by the steps of an epoch" in said


def test_a_detector_and_a_schedule_that_nobody_knows_come_together(start):
    said = refused(
        *start(
            "lr_config = dict(_delete_=True, policy='Ladder', step=[8, 11])\n"
            "model = dict(pts_bbox_head=dict(attention_bias_config=None))\n"
        )[:2]
    )
    assert "for 2 reasons" in said
    assert "policy" in said
    assert "Ladder" in said
    assert "model.pts_bbox_head.attention_bias_config (own.py, line 3): must be an argument" in said


def test_settings_that_do_nothing_are_named_and_the_training_starts(start):
    result, started, told = start(
        "optimizer_config = dict(\n    grad_clip=dict(max_norm=35, norm_type=2),\n"
        "    paramwise_cfg=dict(custom_keys=dict(task_heads=dict(lr_mult=10.0))))\n"
        "custom_hooks = [dict(type='ExpMomentumEMAHook'), dict(type='Unheard')]\n"
        "workflow = [('train', 1), ('val', 1)]\n"
        "optimizer = dict(paramwise_cfg=dict(custom_keys=dict(query_embed=dict(lr_mult=0.3))))\n"
    )
    assert result.exit_code == 0, result.stderr
    assert len(started) == 1
    assert [text.partition(": ")[0] for text in told] == [
        "optimizer_config.paramwise_cfg (own.py, line 4)",
        "workflow (own.py, line 6)",
        "custom_hooks (own.py, line 5)",
        "optimizer.paramwise_cfg.custom_keys.query_embed (own.py, line 7)",
    ]
    assert "`paramwise_cfg` is read at `optimizer.paramwise_cfg`: write it there." in told[0]
    assert "Unheard is not run (Unheard is registered nowhere)" in told[2]
    assert "ExpMomentumEMAHook" not in told[2]  # it runs


def test_of_several_processes_one_speaks(start, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    _, started, told = start("workflow = [('train', 1), ('val', 1)]\n")
    assert (len(started), told) == (1, [])


def test_an_empty_config_is_told_all_that_it_lacks(tmp_path):
    (tmp_path / "empty.py").touch()
    result = CliRunner().invoke(train.app, [str(tmp_path / "empty.py")])
    said = refused(result, [])
    for key in ("model", "data.train", "data.val", "data.samples_per_gpu", "optimizer.lr"):
        assert f" {key}: must be given" in said
    assert "total_epochs: must be given" in said


def test_scoring_is_checked_for_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_config(
        tmp_path,
        "model = dict(img_neck=dict(norm_eval=True))\nlr_config = dict(policy='Ladder')\n"
        "total_epochs = None\ndata = dict(val=dict(pipeline=[dict(type='Loads')]))\n",
    )
    (tmp_path / "data" / "train.pkl").unlink()
    result = CliRunner().invoke(evaluate.app, [str(path), "gone.pth"])
    said = refused(result, [])
    for part in ("img_neck.norm_eval", "data.val.pipeline.0", "'gone.pth' is not there"):
        assert part in said
    for part in ("Ladder", "total_epochs", "train.pkl"):
        assert part not in said


def test_the_config_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(write_config(tmp_path, "freeze = ['pts_neck']\n"))
    before = repr(cfg)
    preflight(cfg)
    assert repr(cfg) == before
