import pytest
import torch
from measure import peak_mb, show, side_by_side

head_cases = pytest.importorskip("head_cases", reason="the head needs mmdet3d")


def test_head_forward(benchmark):
    """R50's head in training, one sample: torch's fused attention, and attention written out."""
    torch.set_num_threads(1)
    hows = ("fused", "masked dense")
    fused, dense = (head_cases.head_forward(1, how) for how in hows)
    outputs = [work()[0][0] for work in (fused, dense)]
    for name in ("center", "cls_logits", "dn_center"):
        torch.testing.assert_close(outputs[0][name], outputs[1][name], rtol=1e-3, atol=1e-3)
    del outputs
    fused_s, dense_s = side_by_side([fused, dense], rounds=3, warm_up=0)
    benchmark.pedantic(fused, rounds=1)
    fused_mb, dense_mb = (peak_mb(head_cases.head_forward, 1, how) for how in hows)
    show(
        benchmark,
        s=fused_s,
        dense_s=dense_s,
        ratio=dense_s / fused_s,
        mb=fused_mb,
        dense_mb=dense_mb,
        share=fused_mb / dense_mb,
    )
    assert fused_s < dense_s
    assert fused_mb < 0.5 * dense_mb
