import functools
import json
import logging
import re
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmcv.runner import load_state_dict
from mmdet3d.models import build_model
from torch import nn

import aqr_model  # noqa: F401  (registers)
from aqr_model.engine.weights.files import CheckpointError
from aqr_model.engine.weights.pretrained import load_pretrained
from aqr_model.engine.weights.states import (
    TrainState,
    previous_of,
    read_newest,
    read_state,
    save_state,
    save_weights,
)
from aqr_model.preflight.reading import load_config


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
    with pytest.raises(CheckpointError, match="that is a folder"):
        load_pretrained(base(), tmp_path)


def test_a_page_that_was_saved_as_a_checkpoint_shows_how_it_begins(tmp_path):
    (tmp_path / "w.pth").write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    with pytest.raises(CheckpointError, match=r"it begins with b'<!DOCTYPE html>") as caught:
        load_pretrained(base(), tmp_path / "w.pth")
    assert "weights_only" not in str(caught.value)


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


FULL_SIZE = ("voxel0100_r50_800x320_cbgs", "voxel0075_vov_1600x640_cbgs")
LEFTOVERS = ("aqr_weight_generator.bev_type_embed", "aqr_weight_generator.rv_type_embed")


@functools.cache
def detector(name: str) -> nn.Module:
    return build_model(load_config(f"aqr_model/configs/{name}.py").model)


def public_weights(name: str) -> dict[str, torch.Tensor]:
    """A checkpoint as the public list of names and shapes describes it."""
    shapes = json.loads(Path(f"tests/data/cmt_{name}.state_dict.json").read_text())
    whole = {entry: shape for entry, shape in shapes.items() if entry.endswith("tracked")}
    filled = {  # one number each, so that the file stays small
        entry: torch.tensor((zlib.crc32(entry.encode()) % 1000) / 1000).expand(shape)
        for entry, shape in shapes.items()
        if entry not in whole
    }
    return filled | {entry: torch.tensor(7) for entry in whole}


# The entries that mmcv missed when the users loaded a public checkpoint into their AQR model.
MISSED_IN_THE_LOG = {
    f"pts_bbox_head.aqr_weight_generator.{name}"
    for name in (
        "encoder.layers.0.attentions.0.attn.in_proj_weight",
        "encoder.layers.0.attentions.0.attn.in_proj_bias",
        "encoder.layers.0.attentions.0.attn.out_proj.weight",
        "encoder.layers.0.attentions.0.attn.out_proj.bias",
        "encoder.layers.0.ffns.0.layers.0.0.weight",
        "encoder.layers.0.ffns.0.layers.0.0.bias",
        "encoder.layers.0.ffns.0.layers.1.weight",
        "encoder.layers.0.ffns.0.layers.1.bias",
        "encoder.layers.0.norms.0.weight",
        "encoder.layers.0.norms.0.bias",
        "encoder.layers.0.norms.1.weight",
        "encoder.layers.0.norms.1.bias",
        "encoder.post_norm.weight",
        "encoder.post_norm.bias",
        "weight_predictor.weight",
        "weight_predictor.bias",
    )
}


def missed_by_mmcv(model: nn.Module, weights: dict, caplog) -> set[str]:
    """What mmcv's own loader misses; nothing else may be wrong."""
    whole = OrderedDict(weights)
    # The versions of its modules, which a file has from the model that it was saved from.
    vars(whole)["_metadata"] = vars(model.state_dict())["_metadata"]
    caplog.clear()
    load_state_dict(model, whole, logger=logging.getLogger("of_mmcv"))
    said = caplog.text
    missing = re.findall(r"missing keys in source state_dict: (.*)", said)
    assert "unexpected key" not in said
    assert "size mismatch" not in said
    return {name for line in missing for name in line.split(", ")}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_public_checkpoint_loads_as_mmcv_loads_it(tmp_path, name, caplog):
    """Names and shapes are those that the public implementation's models have."""
    weights = public_weights(name)
    torch.save({"meta": {"epoch": 20}, "state_dict": weights}, tmp_path / "public.pth")
    for config, missed in ((f"cmt_{name}", set()), (f"cmt_aqr_{name}", MISSED_IN_THE_LOG)):
        model = detector(config)
        assert set(load_pretrained(model, tmp_path / "public.pth")) == missed
        loaded = {key: value.clone() for key, value in model.state_dict().items()}
        assert all(torch.equal(loaded[key], value) for key, value in weights.items())
        assert missed_by_mmcv(model, weights, caplog) == missed
        assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


def test_leftovers_of_users_checkpoints_are_named_and_dropped(tmp_path, caplog):
    name = FULL_SIZE[0]
    model = detector(f"cmt_aqr_{name}")
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    extra = [f"pts_bbox_head.{part}" for part in LEFTOVERS]
    weights |= {key: torch.zeros(256) for key in extra}
    weights["pts_bbox_head.weight_renderer.gaussian_kernel"] = torch.zeros(7, 7)
    torch.save({"state_dict": weights}, tmp_path / "users.pth")
    with caplog.at_level(logging.INFO):
        assert load_pretrained(model, tmp_path / "users.pth") == ()
    for key in (*extra, "pts_bbox_head.weight_renderer.gaussian_kernel"):
        assert key in caplog.text
    # A plain model cannot take what the users' AQR has learned.
    with pytest.raises(CheckpointError, match=r"left over: pts_bbox_head\.aqr_weight_generator"):
        load_pretrained(detector(f"cmt_{name}"), tmp_path / "users.pth")


@pytest.mark.parametrize("content", [[1, 2], {"step": 3, "model": {}}, {"state_dict": {"a": 1}}])
def test_what_holds_no_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth must hold weights by name"):
        load_pretrained(base(), tmp_path / "w.pth")


def test_a_part_of_aqr_is_fresh_as_a_whole_or_not_at_all(tmp_path):
    model = with_aqr()
    weights = model.state_dict()
    del weights["aqr_weight_generator.bias"]
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"missing: aqr_weight_generator\.bias"):
        load_pretrained(model, tmp_path / "w.pth")


def sparse_weights(model: nn.Module) -> list[str]:
    return [key for key, value in model.state_dict().items() if value.dim() == 5]


@pytest.mark.parametrize("versions", ["kept", "lost"])
@pytest.mark.parametrize("layout", ["spconv2", "spconv1"])
def test_sparse_weights_load_in_both_layouts(tmp_path, caplog, layout, versions):
    """mmdet3d permutes by the module's version, which a rewritten checkpoint has lost."""
    model = detector(f"cmt_{FULL_SIZE[0]}")
    names = sparse_weights(model)
    assert len(names) == 21
    wanted = {key: torch.randn(model.state_dict()[key].shape) for key in names}
    state = model.state_dict()
    for key, value in wanted.items():
        state[key] = value.movedim(0, -1).contiguous() if layout == "spconv1" else value
    if versions == "lost":
        state = dict(state)
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO):
        assert load_pretrained(model, tmp_path / "w.pth") == ()
    assert ("21 sparse convolutions" in caplog.text) == (layout == "spconv1")
    assert all(torch.equal(model.state_dict()[key], wanted[key]) for key in names)


def test_a_sparse_weight_in_no_known_layout_is_refused(tmp_path):
    model = detector(f"cmt_{FULL_SIZE[0]}")
    weights = dict(model.state_dict())
    key = sparse_weights(model)[0]
    weights[key] = weights[key].movedim(0, 1)
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"shape of {re.escape(key)}"):
        load_pretrained(model, tmp_path / "w.pth")


def state(step):
    model = base()
    return TrainState(step=step, model=model.state_dict(), optimizer={}, rungs_reported=0)


def test_the_state_before_stays_and_serves_if_the_latest_is_damaged(tmp_path, caplog):
    path = tmp_path / "latest.pth"
    for step in (1, 2, 3):
        save_state(state(step), path)
        assert read_newest(path).step == step
    assert read_state(previous_of(path)).step == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest.pth", "previous.pth"]
    assert not caplog.messages
    path.write_bytes(path.read_bytes()[:100])
    assert read_newest(path).step == 2
    (message,) = caplog.messages
    assert f"{path} cannot be read" in message
    assert f"goes on from the checkpoint before it, {previous_of(path)}, at step 2" in message


def test_two_damaged_states_are_an_error(tmp_path):
    path = tmp_path / "latest.pth"
    for step in (1, 2):
        save_state(state(step), path)
    for damaged in (path, previous_of(path)):
        damaged.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"previous\.pth cannot be read"):
        read_newest(path)


def test_a_state_of_the_older_version_says_so(tmp_path):
    torch.save({"format": 1, **vars(state(1))}, tmp_path / "latest.pth")
    with pytest.raises(CheckpointError, match="training state of an older version"):
        read_state(tmp_path / "latest.pth")


def test_a_file_system_without_hard_links_keeps_the_state_before_too(tmp_path, monkeypatch):
    def refuse(*names):
        raise OSError("no links")

    monkeypatch.setattr("aqr_model.engine.weights.states.os.link", refuse)
    for step in (1, 2):
        save_state(state(step), tmp_path / "latest.pth")
    assert read_state(previous_of(tmp_path / "latest.pth")).step == 1
