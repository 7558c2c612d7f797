"""How a config's intervals and budgets are read."""

import logging
from pathlib import Path

import pytest
import torch
from mmcv import Config
from mmcv.runner import CheckpointHook, build_runner
from typer.testing import CliRunner

from aqr_model import train
from aqr_model.engine.plan import PlanError, equal_denoising_slots, make_plan
from aqr_model.preflight.reading import load_config

USERS = Path("tests/data/users")


def with_rungs(cfg: Config, **settings) -> Config:
    """What a sweep makes of a config."""
    cfg.evaluation = {"rungs": [0.25, 0.5, 1.0], "val_shares": [0.5, 0.5, 1.0]}
    cfg.merge_from_dict({"total_epochs": 2, **settings})
    return cfg


def test_a_user_s_checkpoint_interval_stays_epochs_under_a_sweep():
    """`dict(interval=1)`, as CMT's and the users' files have it, is one epoch."""
    cfg = with_rungs(load_config(USERS / "r50_base.py"))
    assert dict(cfg.checkpoint_config) == {"interval": 1}
    plan = make_plan(cfg, num_samples=400)
    assert plan.checkpoint_interval == plan.steps_per_epoch == 100
    cfg.checkpoint_config.by_epoch = False
    assert make_plan(cfg, num_samples=400).checkpoint_interval == 1


@pytest.mark.parametrize(
    ("settings", "saved_after"),
    [
        ({"interval": 1}, [4, 8]),
        ({"interval": 2}, [8]),
        ({"interval": 3, "by_epoch": False}, [3, 6]),
        ({"interval": -1, "by_epoch": False}, []),
    ],
)
def test_periodic_checkpoints_come_when_mmcv_s_do(settings, saved_after, tmp_path, monkeypatch):
    """Two epochs of four steps in mmcv's own runner; what it saves at the very end is not asked."""

    class Model(torch.nn.Module):
        def train_step(self, batch, optimizer):
            return {"loss": batch.sum(), "log_vars": {}, "num_samples": 1}

    monkeypatch.setattr("time.sleep", lambda seconds: None)  # mmcv rests between epochs
    runner = build_runner(
        {"type": "EpochBasedRunner", "max_epochs": 2},
        default_args={
            "model": Model(),
            "work_dir": str(tmp_path),
            "logger": logging.getLogger("mmcv"),
        },
    )
    hook = CheckpointHook(**settings, save_last=False)
    saved = []
    # Within an epoch the runner counts a step after its hooks.
    runner.save_checkpoint = lambda *args, **kwargs: saved.append(runner.iter + (not hook.by_epoch))
    runner.register_hook(hook)
    runner.run([[torch.ones(1)] * 4], [("train", 1)])
    assert saved == saved_after
    cfg = with_rungs(load_config("aqr_model/configs/cmt_nano.py"))
    cfg.checkpoint_config = settings
    interval = make_plan(cfg, num_samples=8).checkpoint_interval
    ours = [step for step in range(1, 9) if step % interval == 0]
    assert ours == (saved_after or [8])  # the end is saved in any case


def test_the_shipped_configs_say_what_they_count():
    for path in Path("aqr_model/configs").glob("*.py"):
        assert load_config(path).checkpoint_config.by_epoch is False, path


def iterations(cfg: Config) -> Config:
    """Two samples a batch, no epochs: as in mmdet's and StreamPETR's schedules by iterations."""
    cfg.total_epochs = None
    cfg.runner = {"type": "IterBasedRunner", "max_iters": 20}
    cfg.evaluation = {"interval": 10}
    cfg.checkpoint_config = {"interval": 5}
    return cfg


def test_max_iters_is_refused_with_the_epochs_to_write(nano_cfg, tmp_path):
    cfg = iterations(nano_cfg())
    with pytest.raises(PlanError, match=r"20 iterations .* are 5 epochs .*`total_epochs = 5`"):
        make_plan(cfg, num_samples=8)
    # Two batches a step, and samples that do not fill one: of 13 samples a step takes 4.
    cfg.optimizer_config.cumulative_iters = 2
    with pytest.raises(PlanError, match=r"`total_epochs = 3\.33333`"):
        make_plan(cfg, num_samples=13, num_parts=2)
    cfg.dump(str(tmp_path / "iters.py"))
    ended = CliRunner().invoke(train.app, [str(tmp_path / "iters.py"), "--work-dir", str(tmp_path)])
    assert ended.exit_code == 2
    assert "Write `total_epochs = EPOCHS`" in ended.stderr


def test_with_epochs_an_iteration_based_config_counts_its_intervals_in_steps(nano_cfg):
    cfg = iterations(nano_cfg())
    cfg.total_epochs = 5
    plan = make_plan(cfg, num_samples=8)
    assert [rung.step for rung in plan.rungs] == [10, 20]
    assert plan.checkpoint_interval == 5
    # mmdet's evaluation says it for itself.
    cfg.runner = None
    cfg.evaluation = {"interval": 4, "by_epoch": False}
    assert [rung.step for rung in make_plan(cfg, num_samples=8).rungs] == [4, 8, 12, 16, 20]


def test_denoising_slots_have_two_values(nano_cfg):
    assert not equal_denoising_slots(nano_cfg())
    assert equal_denoising_slots(nano_cfg(denoising_slots="step"))
    with pytest.raises(PlanError, match="must be 'batch' or 'step', but got 'rank'"):
        equal_denoising_slots(nano_cfg(denoising_slots="rank"))
