import pytest
import torch
from torch import nn

from aqr_model.checkpoint import (
    CheckpointError,
    TrainState,
    load_pretrained,
    read_state,
    save_state,
    save_weights,
)


def base():
    return nn.ModuleDict({"neck": nn.Linear(2, 3), "head": nn.Linear(3, 1)})


def with_aqr():
    model = base()
    model["aqr_weight_generator"] = nn.Linear(3, 2)
    return model


def test_base_weights_fit_a_model_with_fresh_aqr(tmp_path):
    source, target = base(), with_aqr()
    save_weights(source, tmp_path / "base.pth", seed=1)
    before = target["aqr_weight_generator"].weight.clone()
    fresh = load_pretrained(target, tmp_path / "base.pth")
    assert fresh == ("aqr_weight_generator.weight", "aqr_weight_generator.bias")
    assert torch.equal(target["neck"].weight, source["neck"].weight)
    assert torch.equal(target["aqr_weight_generator"].weight, before)


def test_a_bare_state_dict_loads(tmp_path):
    torch.save(base().state_dict(), tmp_path / "bare.pth")
    assert load_pretrained(base(), tmp_path / "bare.pth") == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("neck.bias"), "missing: neck.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "left over: extra"),
        (lambda w: w.update({"head.bias": torch.zeros(2)}), r"shape of head.bias: .*\[1\].*\[2\]"),
    ],
)
def test_every_unexplained_entry_is_an_error(tmp_path, change, message):
    weights = base().state_dict()
    change(weights)
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    model = base()
    before = model["neck"].weight.clone()
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(model, tmp_path / "w.pth")
    assert torch.equal(model["neck"].weight, before)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no such file"):
        load_pretrained(base(), tmp_path / "none.pth")
    save_weights(base(), tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"w\.pth cannot be read"):
        load_pretrained(base(), tmp_path / "w.pth")


def test_a_training_state_comes_back_whole(tmp_path):
    model = base()
    optimizer = torch.optim.AdamW(model.parameters())
    model["head"](model["neck"](torch.ones(1, 2))).sum().backward()
    optimizer.step()
    state = TrainState(
        step=5, model=model.state_dict(), optimizer=optimizer.state_dict(), rungs_reported=1
    )
    save_state(state, tmp_path / "latest.pth")
    back = read_state(tmp_path / "latest.pth")
    assert (back.step, back.rungs_reported) == (5, 1)
    assert torch.equal(back.model["neck.weight"], model["neck"].weight)
    assert back.optimizer["param_groups"] == optimizer.state_dict()["param_groups"]
    assert [path.name for path in tmp_path.iterdir()] == ["latest.pth"]


def test_weights_are_no_training_state(tmp_path):
    save_weights(base(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="must be a training state"):
        read_state(tmp_path / "w.pth")
