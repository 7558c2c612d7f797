"""Scores that another process makes while the training goes on."""

import math
import os
import signal
import time

import pytest
import torch

from aqr_model.engine import loop
from aqr_model.engine.loop import total_loss
from aqr_model.engine.rungs import Rungs
from aqr_model.engine.scoring import Request, ScoringProcess
from aqr_model.engine.weights.files import CheckpointError
from aqr_model.engine.weights.states import read_state
from aqr_model.train import Halted, train

BESIDE = {
    "evaluation": {"rungs": [1 / 3, 1.0], "val_shares": [0.5, 1.0]},
    "log_config.interval": 1,
    "model.pts_bbox_head.visualization_interval": 0,
}


class Recorder:
    """A report that keeps what it hears, in order."""

    def __init__(self):
        self.steps, self.rungs, self.saved = [], [], []

    def rung(self, metrics, *, step, checkpoint, **place):
        self.steps.append(f"rung {step}")
        self.rungs.append((step, {**place, **metrics}))
        self.saved.append(read_state(checkpoint).step)

    def log(self, values, *, step):
        self.steps.append(step)

    def artifact(self, path):
        pass


def final(folder):
    return torch.load(folder / "final.pth", weights_only=True)["state_dict"]


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def plain(nano_cfg, tmp_path_factory):
    """The training that waits for its scores."""
    folder, report = tmp_path_factory.mktemp("plain"), Recorder()
    train(nano_cfg(**BESIDE), workdir=folder, report=report)
    return folder, report


@pytest.fixture
def slow_scores(monkeypatch):
    """Scores that are not there before they are waited for."""
    monkeypatch.setattr(ScoringProcess, "is_over", lambda self: False)


def beside(nano_cfg, **overrides):
    cfg = nano_cfg(**BESIDE, **overrides)
    cfg.evaluation.beside_training = True
    return cfg


def test_a_training_waits_for_its_score_before_it_saves(plain, nano_cfg, tmp_path, slow_scores):
    folder, expected = plain
    report = Recorder()
    train(beside(nano_cfg, **{"checkpoint_config.interval": 5}), workdir=tmp_path, report=report)
    assert report.rungs == expected.rungs
    assert equal(final(tmp_path), final(folder))
    assert report.steps == [1, 2, 3, 4, 5, "rung 2", 6, "rung 6"]
    assert report.saved == [2, 6]


def test_a_score_is_handed_over_as_soon_as_it_is_there(nano_cfg, tmp_path, monkeypatch):
    report = Recorder()
    monkeypatch.setattr(
        Rungs, "has_score", property(lambda self: self.is_open and len(report.steps) >= 4)
    )
    train(beside(nano_cfg), workdir=tmp_path, report=report)
    assert report.steps == [1, 2, 3, 4, "rung 2", 5, 6, "rung 6"]


def test_a_training_that_must_leave_goes_on_at_the_open_rung(
    plain, nano_cfg, tmp_path, slow_scores
):
    folder, expected = plain
    report, asked = Recorder(), iter([False] * 4 + [True])
    with pytest.raises(Halted):
        train(beside(nano_cfg), workdir=tmp_path, report=report, halts=lambda: next(asked))
    assert report.rungs == []
    state = read_state(tmp_path / "latest.pth")
    assert (state.step, state.rungs_reported) == (2, 0)
    again = Recorder()
    train(beside(nano_cfg), workdir=tmp_path, report=again, resume_from=tmp_path / "latest.pth")
    assert again.rungs == expected.rungs
    assert again.steps == [3, 4, 5, 6, "rung 2", "rung 6"]
    assert equal(final(tmp_path), final(folder))


def test_a_training_that_breaks_behind_a_rung_hands_over_its_score(
    plain, nano_cfg, tmp_path, slow_scores, monkeypatch
):
    _, expected = plain
    terms = iter([1.0] * 3 + [math.nan])
    monkeypatch.setattr(loop, "total_loss", lambda found: next(terms) * total_loss(found))
    report = Recorder()
    with pytest.raises(FloatingPointError, match="at step 3 loss is nan"):
        train(beside(nano_cfg), workdir=tmp_path, report=report)
    assert report.rungs == expected.rungs[:1]


def test_a_resume_with_other_rungs_scores_none_that_is_passed(plain, nano_cfg, tmp_path):
    asked = iter([False] * 4 + [True])
    with pytest.raises(Halted):
        train(nano_cfg(**BESIDE), workdir=tmp_path, report=Recorder(), halts=lambda: next(asked))
    shares = [step / 6 for step in range(1, 7)]
    cfg = nano_cfg(**BESIDE | {"evaluation": {"rungs": shares, "val_shares": [0.5] * 5 + [1.0]}})
    report = Recorder()
    train(cfg, workdir=tmp_path, report=report, resume_from=tmp_path / "latest.pth")
    assert report.steps == ["rung 4", 5, "rung 5", 6, "rung 6"]
    assert report.rungs[-1] == plain[1].rungs[-1]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"freeze": ["pts_neck"]}, "parameter groups"),
        ({"optimizer.type": "SGD"}, "they lack dampening"),
    ],
)
def test_a_resume_with_another_optimizer_says_what_to_write(
    plain, nano_cfg, tmp_path, changed, said
):
    cfg = nano_cfg(**BESIDE, **changed)
    with pytest.raises(CheckpointError, match=f"{said}.*; resume with the `optimizer` and"):
        train(cfg, workdir=tmp_path, report=Recorder(), resume_from=plain[0] / "latest.pth")


@pytest.fixture
def request_of(nano_cfg, tmp_path):
    def make(detections):
        return Request(
            dataset=nano_cfg().data.val.to_dict(),
            imports={},
            val_share=1.0,
            detections=detections,
            workdir=tmp_path,
        )

    return make


def detections(value):
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    boxes = LiDARInstance3DBoxes(torch.full((1, 9), value), box_dim=9)
    found = {"boxes_3d": boxes, "scores_3d": torch.ones(1), "labels_3d": torch.zeros(1)}
    return [{"pts_bbox": found}] * 6


def test_what_scoring_raises_is_raised_with_its_type(request_of):
    scorer = ScoringProcess(request_of(detections(math.nan)))
    with pytest.raises(FloatingPointError, match="must be finite"):
        scorer.result()


def test_a_scoring_process_that_is_killed_is_an_error(request_of):
    scorer = ScoringProcess(request_of(detections(1.0)))
    assert not scorer.is_over()
    os.kill(scorer._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="exit code -9: it said nothing"):
        scorer.result()


def test_a_scoring_process_ends_when_nobody_wants_its_answer(request_of):
    scorer = ScoringProcess(request_of(detections(1.0)))
    scorer.cancel()
    assert scorer.is_over()
    deadline = time.monotonic() + 10
    while scorer._process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
