import pytest
import torch
from aqr_alone import rendering
from measure import DEVICE, peak_mb, show, side_by_side

LEAST_RATIO = 500
MOST_EXTRA_MB = 64


def test_rendering_both_maps(benchmark):
    """4 x 1730 queries onto 128x128 and 6x20x50, forward and backward."""
    torch.set_num_threads(1)
    fast, slow, skipping = (
        rendering("r50", 1730, how) for how in ("fast", "one by one", "seen one by one")
    )
    for loop in (slow, skipping):
        for of_fast, of_loop in zip(fast(), loop(), strict=True):
            torch.testing.assert_close(of_fast, of_loop, rtol=1e-4, atol=1e-4)
    slow_s, skipping_s = side_by_side([slow, skipping], rounds=2, warm_up=0)
    (fast_s,) = side_by_side([fast], rounds=30, warm_up=3)
    benchmark.pedantic(fast, rounds=10)
    extra_mb = peak_mb(rendering, "r50", 1730, "fast")
    show(
        benchmark,
        ms=1e3 * fast_s,
        loop_s=slow_s,
        ratio=slow_s / fast_s,
        skipping_loop_s=skipping_s,
        ratio_to_skipping=skipping_s / fast_s,
        extra_mb=extra_mb,
    )
    assert extra_mb < MOST_EXTRA_MB
    assert slow_s / fast_s >= LEAST_RATIO


@pytest.mark.skipif(DEVICE.type == "cpu", reason="VoV counts are for a GPU")
def test_rendering_at_vov_size(benchmark):
    """2 x 1730 queries onto 180x180 and 6x40x100, forward and backward."""
    benchmark.pedantic(rendering("vov", 1730, "fast"), rounds=30, warmup_rounds=3)
    show(benchmark, ms=1e3 * benchmark.stats.stats.median)
