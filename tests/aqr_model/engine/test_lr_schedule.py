from types import SimpleNamespace

import pytest
from mmcv.runner.hooks.lr_updater import CosineAnnealingLrUpdaterHook, CyclicLrUpdaterHook

from aqr_model.engine.optim import lr_schedule

TOTAL = 97


def mmcv_ratios(hook):
    """What mmcv's own hook makes of a base rate of 1, step by step."""
    runner = SimpleNamespace(
        max_iters=TOTAL,
        iter=0,
        optimizer=SimpleNamespace(param_groups=[{"lr": 1.0, "initial_lr": 1.0}]),
    )
    hook.before_run(runner)
    for runner.iter in range(TOTAL):
        yield hook.get_lr(runner, 1.0)


@pytest.mark.parametrize(
    ("times", "up", "ratio"), [(1, 0.3, (6, 0.001)), (1, 0.4, (6, 1e-4)), (2, 0.4, (10, 1e-4))]
)
def test_cyclic_equals_mmcv(times, up, ratio):
    hook = CyclicLrUpdaterHook(
        by_epoch=False, target_ratio=ratio, cyclic_times=times, step_ratio_up=up
    )
    ours = lr_schedule.factor(
        {"policy": "cyclic", "target_ratio": ratio, "cyclic_times": times, "step_ratio_up": up}
    )
    for step, expected in enumerate(mmcv_ratios(hook)):
        if step // (TOTAL // times) < times:  # mmcv has no phase for the remainder of a division
            assert ours(step, TOTAL) == pytest.approx(expected, rel=1e-12)


def test_cosine_equals_mmcv():
    hook = CosineAnnealingLrUpdaterHook(by_epoch=False, min_lr_ratio=1e-3)
    ours = lr_schedule.factor({"policy": "CosineAnnealing", "min_lr_ratio": 1e-3})
    for step, expected in enumerate(mmcv_ratios(hook)):
        assert ours(step, TOTAL) == pytest.approx(expected, rel=1e-12)


def test_warmup_rises_linearly_to_the_regular_rate():
    config = {"policy": "CosineAnnealing", "min_lr_ratio": 0.1}
    plain = lr_schedule.factor(config)
    warm = lr_schedule.factor(
        {**config, "warmup": "linear", "warmup_iters": 10, "warmup_ratio": 0.2}
    )
    assert warm(0, TOTAL) == pytest.approx(0.2 * plain(0, TOTAL))
    assert warm(5, TOTAL) == pytest.approx(0.6 * plain(5, TOTAL))
    assert warm(10, TOTAL) == plain(10, TOTAL)


def test_no_config_keeps_the_rate():
    assert lr_schedule.factor(None)(50, TOTAL) == 1.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"policy": "poly"}, "policy must be one of fixed, cyclic, CosineAnnealing"),
        ({"policy": "cyclic", "target_ratio": (6, 0), "step_ratio_up": 1.0}, "step_ratio_up"),
        ({"policy": "CosineAnnealing", "min_lr": 1}, "arguments of policy 'CosineAnnealing'"),
        ({"policy": "CosineAnnealing", "min_lr_ratio": 0, "warmup": "exp"}, "warmup must be"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ValueError, match=message):
        lr_schedule.factor(config)
