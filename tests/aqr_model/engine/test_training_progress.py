import pytest
import torch
from mmcv import Config
from recorder import Recorder

from aqr_model.engine import progress as module
from aqr_model.engine.distributed import Workers
from aqr_model.engine.plan import make_plan
from aqr_model.engine.progress import Progress

CONFIG = Config(
    {
        "data": {"samples_per_gpu": 1},
        "total_epochs": 1,
        "log_config": {"interval": 2},
        "evaluation": {"rungs": [1.0]},
    }
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is told to."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def test_scoring_and_saving_are_no_part_of_a_step(clock):
    report = Recorder()
    plan = make_plan(CONFIG, num_samples=6)
    progress = Progress(report, plan, Workers(), rates=lambda: {"a": 1.0}, scale=None)
    with progress.paused():
        clock(50)  # a rung that is due before the first step
    for step in range(6):
        clock(2)
        progress.record(step, [{"loss": torch.ones(())}], torch.ones(2))
        with progress.paused():
            clock(1000 * step)  # in the middle of an interval and at its end
    seconds = [report.logs[step]["train/s_per_step"] for step in (2, 4, 6)]
    assert seconds == [2.0, 2.0, 2.0]


def test_an_error_inside_does_not_stop_the_clock(clock):
    progress = Progress(
        None, make_plan(CONFIG, num_samples=6), Workers(), rates=lambda: {}, scale=None
    )
    with pytest.raises(KeyError), progress.paused():
        raise KeyError
