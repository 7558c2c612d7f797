"""VoVNet against a loop over plain functions; what is frozen; what recomputing changes."""

import pytest
import torch
from cmt_fill import fill
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import aqr_model  # noqa: F401  (registers)
from aqr_model.cmt.images.vovnet import SPECS, AggregationBlock, VoVNet

ALL = ("stem", "stage2", "stage3", "stage4", "stage5")
NAME = "V-99-eSE"


def conv_twin(weights: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    kernel = weights[f"{name}/conv.weight"]
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
    norm = [weights[f"{name}/norm.{part}"] for part in ("running_mean", "running_var")]
    scale, shift = weights[f"{name}/norm.weight"], weights[f"{name}/norm.bias"]
    mean, deviation = norm[0], (norm[1] + 1e-5).sqrt()
    return (
        ((x - mean[:, None, None]) / deviation[:, None, None] * scale[:, None, None])
        .add(shift[:, None, None])
        .relu()
    )


def block_twin(weights: dict[str, Tensor], place: str, name: str, x: Tensor) -> Tensor:
    outputs = [x]
    for i in range(SPECS[NAME].layers):
        outputs.append(conv_twin(weights, f"{place}.layers.{i}.{name}_{i}", outputs[-1]))
    joined = conv_twin(weights, f"{place}.concat.{name}_concat", torch.cat(outputs, dim=1))
    means = joined.flatten(2).sum(dim=2) / joined[0, 0].numel()
    kernel = weights[f"{place}.ese.fc.weight"][:, :, 0, 0]
    gates = (means @ kernel.T + weights[f"{place}.ese.fc.bias"] + 3).clamp(0, 6) / 6
    out = joined * gates[:, :, None, None]
    return out + x if out.shape == x.shape else out


def vovnet_twin(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    for i, stride in enumerate((2, 1, 2)):
        x = conv_twin(weights, f"stem.stem_{i + 1}", x, stride)
    outputs = [x]
    for stage, blocks in enumerate(SPECS[NAME].blocks, start=2):
        if stage > 2:
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for block in range(1, blocks + 1):
            name = f"OSA{stage}_{block}"
            x = block_twin(weights, f"stage{stage}.{name}", name, x)
        outputs.append(x)
    return outputs


def test_it_equals_the_loop():
    model = fill(VoVNet(NAME, out_features=ALL)).eval()
    x = torch.randn(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, twins = model(x), vovnet_twin(model.state_dict(), x)
    sizes = [(13, 18), (13, 18), (6, 9), (3, 4), (1, 2)]
    assert [tuple(out.shape[2:]) for out in ours] == sizes
    assert [out.shape[1] for out in ours] == [128, *SPECS[NAME].out]
    for out, twin in zip(ours, twins, strict=True):
        assert torch.allclose(out, twin, rtol=1e-4, atol=1e-4)


def test_the_configured_features_come_out_in_order():
    model = VoVNet(NAME, out_features=("stage5", "stage3")).eval()
    with torch.no_grad():
        shapes = [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 64))]
    assert shapes == [(1, 512, 8, 8), (1, 1024, 2, 2)]


@pytest.mark.parametrize("c_in", [8, 12])
def test_recomputing_changes_neither_values_nor_gradients(c_in):
    def made(with_cp: bool) -> AggregationBlock:
        block = AggregationBlock(c_in, hidden=4, c_out=12, layers=2, name="b", with_cp=with_cp)
        return fill(block).eval()

    results = []
    for block in (made(False), made(True)):
        x = torch.ones(2, c_in, 5, 6, requires_grad=True)
        out = block(x)
        out.square().sum().backward()
        results.append([out.detach(), x.grad, *(p.grad for p in block.parameters())])
    assert all(torch.equal(plain, again) for plain, again in zip(*results, strict=True))


@pytest.mark.parametrize(("frozen_stages", "still"), [(-1, 0), (0, 1), (2, 3), (4, 5)])
def test_frozen_stages_hold_also_in_training(frozen_stages, still):
    model = VoVNet(NAME, frozen_stages=frozen_stages, norm_eval=False)
    model.init_weights()
    model.train()
    for name in ALL:
        part = model.get_submodule(name)
        is_still = name in ALL[:still]
        assert all(p.requires_grad != is_still for p in part.parameters()), name
        norms = [m for m in part.modules() if isinstance(m, _BatchNorm)]
        assert all(norm.training != is_still for norm in norms), name


def test_batch_norms_keep_their_statistics_by_default():
    model = VoVNet(NAME).train()
    assert not any(m.training for m in model.modules() if isinstance(m, _BatchNorm))
    assert all(p.requires_grad for p in model.parameters())
    assert model.training


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"spec_name": "V-98"}, r"`spec_name` must be among \['V-99-eSE'\], but got \['V-98'\]"),
        ({"out_features": ["stage6"]}, r"`out_features` must be among .* but got \['stage6'\]"),
        ({"out_features": []}, r"`out_features` must be among"),
        ({"frozen_stages": 5}, r"`frozen_stages` must be among \[-1, 0, 1, 2, 3, 4\]"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        VoVNet(**{"spec_name": NAME, **wrong})
