"""Hooks of a config: averaged weights through a whole training."""

import pytest
import torch
from mmcv import Config
from torch import nn
from typer.testing import CliRunner

from aqr_model import evaluate
from aqr_model.engine.evaluator import Evaluator
from aqr_model.engine.hooks import AVERAGED_KEY, Averaged, averaging_hook
from aqr_model.engine.plan import PlanError
from aqr_model.engine.setup import build_detector
from aqr_model.engine.weights.files import CheckpointError
from aqr_model.engine.weights.pretrained import Wanted, load_pretrained
from aqr_model.engine.weights.states import read_state
from aqr_model.train import train

EMA = {"type": "EMAHook", "momentum": 0.4, "warm_up": 10, "priority": "ABOVE_NORMAL"}


class Recorder:
    """Keeps the rungs; may end the training at one."""

    def __init__(self, stop_at=None):
        self.rungs, self.stop_at = [], stop_at

    def rung(self, metrics, *, step, **place):
        self.rungs.append((step, dict(metrics)))
        if len(self.rungs) == self.stop_at:
            raise KeyError("stopped")

    def log(self, values, *, step):
        pass

    def artifact(self, path):
        pass


# --- averaged weights -------------------------------------------------------------------------


def test_averages_follow_mmcv_s_formula():
    model = nn.Linear(1, 1, bias=False)
    averaged = Averaged(model, averaging_hook(Config({"custom_hooks": [EMA]})))
    expected = model.weight.item()
    for step in range(6):
        with torch.no_grad():
            model.weight.fill_(float(step))
        averaged.update(step)
        momentum = min(0.4, (1 + step) / (10 + step))
        expected = (1 - momentum) * expected + momentum * step
    with averaged.in_place():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 5.0


@pytest.fixture(scope="module")
def averaged_run(tmp_path_factory, nano_cfg):
    """A whole training with averages, and the same one cut after its first rung and resumed."""
    root = tmp_path_factory.mktemp("ema")
    cfg = nano_cfg(custom_hooks=[EMA])
    whole, cut, rest = Recorder(), Recorder(stop_at=2), Recorder()
    train(cfg, workdir=root / "whole", report=whole)
    with pytest.raises(KeyError):
        train(cfg, workdir=root / "cut", report=cut)
    latest = root / "cut" / "latest.pth"
    train(cfg, workdir=root / "cut", report=rest, resume_from=latest)
    return cfg, root, whole, cut, rest


def final(folder):
    return torch.load(folder / "final.pth", weights_only=True)


def test_averages_come_back_bit_for_bit(averaged_run):
    _, root, whole, cut, rest = averaged_run
    assert cut.rungs + rest.rungs[1:] == whole.rungs
    one, two = (read_state(root / name / "latest.pth").model for name in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert any(name.startswith("ema_") for name in one)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_is_exported_is_what_was_scored(averaged_run):
    cfg, root, whole, _, _ = averaged_run
    state, exported = read_state(root / "whole" / "latest.pth").model, final(root / "whole")
    assert exported["meta"]["averaged"]
    apart = []
    for name, value in exported["state_dict"].items():
        copy = state.get("ema_" + name.replace(".", "_"))
        assert torch.equal(value, state[name] if copy is None else copy), name
        apart.append(not torch.equal(value, state[name]))
    assert sum(apart) > 50, "the averages are not the weights that train"
    assert not [name for name in exported["state_dict"] if name.startswith("ema_")]
    model = build_detector(cfg)
    load_pretrained(model, root / "whole" / "final.pth")
    alone = Evaluator(cfg, device=torch.device("cpu")).score(model)
    assert whole.rungs[-1][1] == alone | {AVERAGED_KEY: 1.0}


def test_both_sets_of_a_training_state_can_be_loaded(averaged_run):
    cfg, root, *_ = averaged_run
    path = root / "whole" / "latest.pth"
    state = read_state(path).model
    for averaged in (False, True):
        model = build_detector(cfg)
        load_pretrained(model, path, Wanted(averaged=averaged))
        want = final(root / "whole")["state_dict"] if averaged else state
        assert all(torch.equal(value, want[n]) for n, value in model.state_dict().items())


def test_the_command_scores_either_set(averaged_run):
    cfg, root, whole, *_ = averaged_run
    cfg.dump(str(root / "config.py"))
    shown = {}
    for averaged in (False, True):
        given = [str(root / "config.py"), str(root / "whole" / "latest.pth")]
        found = CliRunner().invoke(evaluate.app, given + ["--averaged"] * averaged)
        assert found.exit_code == 0, found.output
        shown[averaged] = dict(line.split() for line in found.stdout.splitlines() if "val/" in line)
    assert shown[True]["val/map"] == f"{whole.rungs[-1][1]['val/map']:.4f}"
    assert shown[True] != shown[False]


def test_a_training_that_began_without_averages_cannot_go_on_with_them(
    averaged_run, nano_cfg, tmp_path
):
    _, root, *_ = averaged_run
    with pytest.raises(CheckpointError, match=r"it also holds ema_.* custom_hooks included"):
        train(
            nano_cfg(),
            workdir=tmp_path,
            report=Recorder(),
            resume_from=root / "whole" / "latest.pth",
        )


@pytest.mark.parametrize(
    ("hooks", "said"),
    [
        ([EMA, EMA], "one EMA hook at most, but holds 2"),
        ([EMA | {"momentum": 2}], "EMAHook of custom_hooks: AssertionError"),
        ([EMA | {"decay": 0.9}], "EMAHook of custom_hooks: TypeError"),
        ([EMA | {"resume_from": "a.pth"}], "`resume_from` of EMAHook must be None"),
        ([EMA | {"priority": "VERY_LOW"}], "priority of EMAHook must be above LOW"),
    ],
)
def test_an_ema_hook_that_cannot_be_followed_is_refused(hooks, said):
    with pytest.raises(PlanError, match=said):
        averaging_hook(Config({"custom_hooks": hooks}))
