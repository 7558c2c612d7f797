"""What is declared as read is what a training reads, no more and no less."""

from pathlib import Path

import pytest
from mmcv.runner import build_optimizer
from recorder import Recorder
from torch import nn
from watched import Watched

from aqr_model.cmt.head import POINT_SETTINGS
from aqr_model.engine.optim.precision import read_precision
from aqr_model.engine.resuming import resume_path
from aqr_model.engine.weights.pretrained import Wanted
from aqr_model.preflight.keys import is_known, reads
from aqr_model.train import train

RATES = {"lr_mult": 1.0, "decay_mult": 1.0, "lr_mult_schedule": {"type": "constant", "value": 1.0}}


class Report(Recorder):
    def rung(self, metrics, **where):
        self.logs[-1] = metrics


@pytest.fixture(scope="module")
def noted(nano_cfg, tmp_path_factory):
    """Keys that a training of one step asks for, with everything on that a config can turn on."""
    cfg = nano_cfg(
        **{
            "total_epochs": 0.25,
            "evaluation": {"_delete_": True, "rungs": [1.0], "val_shares": [1.0]},
            "optimizer.paramwise_cfg.custom_keys.transformer": RATES,
            "optimizer.paramwise_cfg.norm_decay_mult": 1.0,
            "picture_interval": 1,
            "log_config.interval": 1,
            "num_threads": 1,
        }
    )
    paths = set()
    watched = Watched(dict(cfg.items()), paths)
    train(watched, workdir=tmp_path_factory.mktemp("read"), report=Report())
    # mmcv gets a copy of its own.
    build_optimizer(
        nn.ModuleDict({"transformer": nn.Linear(1, 1), "n": nn.Linear(1, 1)}), watched.optimizer
    )
    # What the commands read, and weights to start from.
    Wanted.of_config(watched)
    resume_path(watched, Path(), resume=False)
    # What stands in place of something else.
    read_precision(Watched({"fp16": {"loss_scale": 2.0}}, paths))
    read_precision(Watched({"optimizer_config": {"type": "Fp16", "loss_scale": 2.0}}, paths))
    return paths


def test_nothing_is_read_that_is_not_declared(noted):
    strange = {path for path in noted if not is_known(path)}
    assert strange == set()


def test_nothing_is_declared_that_is_not_read(noted):
    def is_read(pattern):
        pattern = pattern[:-1] if pattern[-1] == "**" else pattern
        return any(
            len(path) == len(pattern)
            and all(wanted in ("*", part) for part, wanted in zip(path, pattern, strict=True))
            for path in noted
        )

    # Read in their place: intervals without rungs, the budget of mmcv's newer runner.
    instead = {("evaluation", "interval"), ("runner", "max_epochs")}
    assert {pattern for pattern in reads() if not is_read(pattern)} <= instead


def test_of_the_points_settings_the_head_reads_what_it_declares(noted):
    def names(section):
        place = ("model", "pts_bbox_head", section)  # handed down by the detector
        return {path[3] for path in noted if path[:3] == place and len(path) == 4}

    assert names("train_cfg") == set(POINT_SETTINGS)
    assert names("test_cfg") == set()
