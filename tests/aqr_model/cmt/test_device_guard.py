"""What would go wrong on a GPU, found without one.

The training step runs on torch's meta device: a tensor made on the wrong device, or a read of
values that is not announced, raises there. The announced crossings are answered by stand-ins.
"""

import meta_step
import pytest
import torch
from meta_step import META
from torch import nn

from aqr_model.aqr.crossings import crossings

BATCH = 2
STEP = {  # of the detector; the loop adds the batch and one read of loss and gradient norm
    "upload: cameras": 1,
    "upload: denoising queries": 1,
    "upload: ground truth": 1,
    "upload: targets of the losses": 1,
    "read: views that see a query": 1,
    "read: queries by number of views": 1,
    "read: matching costs": 1,
}


@pytest.fixture(scope="module")
def detector():
    return meta_step.build()


@pytest.fixture
def reads():
    with meta_step.stand_ins(BATCH) as counted:
        yield counted


def test_a_training_step_stays_on_its_device(detector, reads):
    with crossings() as uploads:
        terms = meta_step.step(detector, BATCH)
    assert len(terms) == 24
    assert {term.device for term in terms.values()} == {META}
    trained = {n: p.grad for n, p in detector.named_parameters() if p.requires_grad}
    assert {name for name, grad in trained.items() if grad is None} == set()
    assert len(trained) > 150
    uploads.pop("upload: a constant, once", None)
    assert reads + uploads == STEP


class Shifted(nn.Module):
    """Adds what stands on the CPU."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + torch.ones(1, 256, 1, 1)


class Peeking(nn.Module):
    """Looks at a value, by one of the ways."""

    def __init__(self, inner, look):
        super().__init__()
        self.inner, self.look = inner, look

    def forward(self, x):
        out = self.inner(x)
        self.look(out)
        return out


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Shifted, "device cpu is not on the expected device meta"),
        (lambda inner: Peeking(inner, lambda x: x.cpu()), "Cannot copy out of meta"),
        (lambda inner: Peeking(inner, lambda x: x.mean().item()), r"item\(\) cannot be called"),
        (lambda inner: Peeking(inner, lambda x: bool((x > 0).all())), "on meta|meta tensor"),
        (lambda inner: Peeking(inner, lambda x: x[x > 0]), "nonzero.*meta|meta.*nonzero"),
        (lambda inner: Peeking(inner, lambda x: x.sum(dim=1).tolist()), "meta"),
    ],
    ids=["a constant on the CPU", "cpu", "item", "if", "a mask as index", "tolist"],
)
def test_the_guard_finds_a_crossing_that_is_not_announced(
    detector, reads, monkeypatch, fault, said
):
    head = detector.pts_bbox_head
    meta_step.step(detector, BATCH)
    monkeypatch.setitem(head._modules, "shared_conv", fault(head.shared_conv))
    with pytest.raises((RuntimeError, NotImplementedError), match=said):
        meta_step.step(detector, BATCH)
