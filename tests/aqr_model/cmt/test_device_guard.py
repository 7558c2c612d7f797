"""What would go wrong on a GPU, found without one.

The training step runs on torch's meta device: a tensor made on the wrong device, or a read of
values that is not announced, raises there. The announced crossings are answered by stand-ins.
"""

import aqr_model  # noqa: F401  (its shims come before any import of mmdet)

# isort: split
from collections import Counter

import numpy as np
import pytest
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from mmdet3d.models import build_model
from torch import nn

from aqr_model.aqr import crossings, window_attention
from aqr_model.cmt import head as head_module
from aqr_model.cmt.loss import criterion, losses
from aqr_model.engine.loop import total_loss
from aqr_model.preflight.reading import load_config

META = torch.device("meta")
R50 = "aqr_model/configs/cmt_aqr_voxel0100_r50_800x320_cbgs.py"
BATCH, NUM_QUERY = 2, 900
STEP = {  # of the detector; the loop adds the batch and one read of loss and gradient norm
    "upload: cameras": 1,
    "upload: denoising queries": 1,
    "upload: ground truth": 1,
    "upload: targets of the losses": 1,
    "read: views that see a query": 1,
    "read: queries by number of views": 1,
    "read: matching costs": 1,
}


def metas():
    made = []
    for sample in range(BATCH):
        boxes = torch.rand(7 + sample, 9) + 1
        matrices = [np.eye(4) + 0.01 * view for view in range(6)]
        made.append(
            {
                "lidar2img": matrices,
                "pad_shape": [(320, 800, 3)] * 6,
                "gt_bboxes_3d": LiDARInstance3DBoxes(boxes, box_dim=9, origin=(0.5, 0.5, 0.5)),
                "gt_labels_3d": torch.arange(len(boxes)),
                "noise_seed": sample,
            }
        )
    return made


@pytest.fixture(scope="module")
def detector():
    with META:
        model = build_model(load_config(R50).model)
    return model.train()


@pytest.fixture
def stand_ins(monkeypatch) -> Counter[str]:
    """Answers to the announced reads; the count of all crossings."""
    counted: Counter[str] = Counter()

    def read(tensors, what):
        counted[f"read: {what}"] += 1
        answers = [torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in tensors]
        if what == "queries by number of views":
            answers[0][1] = BATCH * NUM_QUERY  # one view each
        return answers

    def places(mask, what):
        counted[f"read: {what}"] += 1
        return tuple(torch.zeros(100, dtype=torch.long, device=META) for _ in mask.shape)

    def match(costs):
        number = min(costs.shape[1:])
        rows = torch.arange(number).expand(len(costs), -1)
        return rows, rows

    monkeypatch.setattr(criterion, "read", read)
    monkeypatch.setattr(window_attention, "read", read)
    monkeypatch.setattr(head_module, "places", places)
    monkeypatch.setattr(losses, "match", match)
    return counted


def step(model: nn.Module, monkeypatch) -> dict[str, torch.Tensor]:
    """Forward, losses, backward, with LiDAR features in place of spconv's."""
    bev = torch.empty(BATCH, 512, 128, 128, device=META, requires_grad=True)
    monkeypatch.setattr(model, "extract_pts_feat", lambda *_: [bev], raising=False)
    truths = metas()
    model.zero_grad()
    terms = model(
        return_loss=True,
        points=None,
        img=torch.empty(BATCH, 6, 3, 320, 800, device=META),
        img_metas=truths,
        gt_bboxes_3d=[meta["gt_bboxes_3d"] for meta in truths],
        gt_labels_3d=[meta["gt_labels_3d"] for meta in truths],
    )
    total_loss(terms).backward()
    assert bev.grad is not None
    return terms


def test_a_training_step_stays_on_its_device(detector, stand_ins, monkeypatch):
    with crossings.crossings() as uploads:
        terms = step(detector, monkeypatch)
    assert len(terms) == 24
    assert {term.device for term in terms.values()} == {META}
    lidar = ("pts_voxel_encoder.", "pts_middle_encoder.", "pts_backbone.", "pts_neck.")
    trained = {
        name: parameter.grad
        for name, parameter in detector.named_parameters()
        if parameter.requires_grad and not name.startswith(lidar)
    }
    assert {name for name, grad in trained.items() if grad is None} == set()
    assert len(trained) > 150
    uploads.pop("upload: a constant, once", None)
    assert stand_ins + uploads == STEP


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
    detector, stand_ins, monkeypatch, fault, said
):
    head = detector.pts_bbox_head
    step(detector, monkeypatch)
    monkeypatch.setitem(head._modules, "shared_conv", fault(head.shared_conv))
    with pytest.raises((RuntimeError, NotImplementedError), match=said):
        step(detector, monkeypatch)
