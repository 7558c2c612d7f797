import pytest
import torch
from aqr_alone import generating
from measure import DEVICE, peak_mb, show, side_by_side

LEAST_RATIO = 5
MOST_MEMORY = 0.1


def test_windowed_generator(benchmark):
    """4 x 900 queries over 22,384 tokens, windows 5 and 9, forward and backward."""
    torch.set_num_threads(1)
    fast, slow = (generating("r50", 900, how) for how in ("fast", "masked dense"))
    for of_fast, of_slow in zip(fast(), slow(), strict=True):
        # By norm: rounding turns a few of a million hidden units on or off.
        assert (of_fast - of_slow).norm() <= 1e-3 * of_slow.norm()
    fast_s, slow_s = side_by_side([fast, slow], rounds=3, warm_up=0)
    benchmark.pedantic(fast, rounds=2)
    works = ("fast", "masked dense", "masked, fused")
    fast_mb, slow_mb, fused_mb = (peak_mb(generating, "r50", 900, how) for how in works)
    (fused_s,) = side_by_side([generating("r50", 900, "masked, fused")], rounds=2)
    show(
        benchmark,
        s=fast_s,
        dense_s=slow_s,
        ratio=slow_s / fast_s,
        mb=fast_mb,
        dense_mb=slow_mb,
        share=fast_mb / slow_mb,
        fused_s=fused_s,
        fused_mb=fused_mb,
    )
    assert slow_s / fast_s >= LEAST_RATIO
    assert fast_mb <= MOST_MEMORY * slow_mb


@pytest.mark.skipif(DEVICE.type == "cpu", reason="VoV counts are for a GPU")
def test_generator_at_vov_size(benchmark):
    """2 x 900 queries over 56,400 tokens, windows 5 and 15, forward and backward."""
    benchmark.pedantic(generating("vov", 900, "fast"), rounds=20, warmup_rounds=3)
    mb = peak_mb(generating, "vov", 900, "fast")
    show(benchmark, ms=1e3 * benchmark.stats.stats.median, mb=mb)
