import json

import pytest
from sweep_samples import make_trial

from sweeps.tracked import (
    Delivery,
    delivered_bytes,
    delta_point,
    final_points,
    load_delivery,
    metric_label,
    points_of,
    run_name,
    save_delivery,
    status_of,
    trial_tags,
)

FRESH = Delivery(uri="sqlite:///a", run_id="r1")


def log(step, time_ms=0, **values):
    return {"kind": "log", "step": step, "time_ms": time_ms, "values": values}


def test_points_carry_their_own_step_and_time():
    points, artifacts, after = points_of([log(10, 5, loss=1.5), log(20, 6, loss=1.0)], FRESH)
    assert [(p.key, p.value, p.step, p.time_ms) for p in points] == [
        ("loss", 1.5, 10, 5),
        ("loss", 1.0, 20, 6),
    ]
    assert artifacts == []
    assert after.steps == {"loss": 20}
    assert after.time_ms == 6


def test_rungs_are_points_too():
    rung = {"kind": "rung", "step": 50, "time_ms": 1, "metrics": {"val/nds": 0.4}}
    assert points_of([rung], FRESH)[0][0].key == "val/nds"


def test_an_attempt_does_not_repeat_what_an_earlier_one_sent():
    records = [
        log(10, loss=1.0),
        log(20, loss=0.9),
        {"kind": "attempt", "attempt": 2, "time_ms": 9},
        log(20, loss=0.8, late=3.0),
        log(30, loss=0.7),
    ]
    whole = points_of(records, FRESH)[0]
    assert [(p.key, p.step, p.value) for p in whole] == [
        ("loss", 10, 1.0),
        ("loss", 20, 0.9),
        ("late", 20, 3.0),
        ("loss", 30, 0.7),
    ]
    first, _, between = points_of(records[:4], FRESH)
    second, _, _ = points_of(records[4:], between)
    assert first + second == whole


def test_delivery_survives_the_disk(tmp_path):
    delivery = Delivery(
        uri="u", run_id="r", offset=7, steps={"a": 1}, repeated_to={}, time_ms=3, sent=("x",)
    )
    save_delivery(tmp_path, delivery)
    assert load_delivery(tmp_path, uri="u", run_id="r") == delivery
    assert delivered_bytes(tmp_path, uri="u") == 7
    assert [path.name for path in tmp_path.iterdir()] == ["delivered.json"]


@pytest.mark.parametrize("other", [{"uri": "v", "run_id": "r"}, {"uri": "u", "run_id": "s"}])
def test_delivery_begins_anew_for_another_run(tmp_path, other):
    save_delivery(tmp_path, Delivery(uri="u", run_id="r", offset=7))
    assert load_delivery(tmp_path, **other).offset == 0


def test_nothing_delivered_without_a_note(tmp_path):
    assert delivered_bytes(tmp_path, uri="u") == 0


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("val/ap/construction_vehicle", "val/ap/construction_vehicle"),
        ("aqr//w(x)|=1,2", "aqr/w_x___1_2"),
        ("/abs/../up", "up"),
        ("share<0.2", "share_0.2"),
        ("größe", "gr__e"),
        ("x" * 300, "x" * 250),
    ],
)
def test_metric_label(name, label):
    assert metric_label(name) == label


def test_run_names_are_short_and_sortable():
    sampled = {"aqr_lr_mult": 0.5, "residual_weight": 0.55, "amplification": 1.4237, "use_x": True}
    assert run_name(make_trial(7, 0.4, sampled=sampled)) == "t007 A=1.42 r=0.55 alm=0.5 ux=True"
    assert run_name(make_trial(0, 0.4, role="control")) == "control"


def test_ambiguous_symbols_are_written_out():
    sampled = {"model.head.loss_weight": 1.0, "model.neck.loss_weight": 2.0}
    name = run_name(make_trial(1, 0.4, sampled=sampled))
    assert name == "t001 model.head.loss_weight=1 model.neck.loss_weight=2"


@pytest.mark.parametrize(
    ("outcome", "interrupted", "status"),
    [
        ("finished", False, "FINISHED"),
        ("stopped", False, "KILLED"),
        ("diverged", False, "FAILED"),
        ("failed", True, "FAILED"),
        (None, False, "RUNNING"),
        (None, True, "KILLED"),
    ],
)
def test_status(outcome, interrupted, status):
    trial = make_trial(0, 0.4 if outcome in ("finished", "stopped") else None, outcome=outcome)
    assert status_of(trial, interrupted=interrupted) == status


def test_tags_say_what_became_of_a_trial():
    tags = trial_tags(make_trial(3, 0.3, outcome="stopped", reason="too low"))
    assert tags == {
        "trial": "003",
        "label": "t003-abcd1234",
        "role": "search",
        "config_hash": "abcd1234",
        "outcome": "stopped",
        "reached": "0.5",
        "stop_reason": "too low",
    }


def test_only_results_have_final_metrics():
    points = final_points(make_trial(0, 0.4, **{"val/ap/car": 0.5}), time_ms=4)
    assert {(p.key, p.value, p.step, p.time_ms) for p in points} == {
        ("final/nds", 0.4, 100, 4),
        ("final/map", 0.2, 100, 4),
    }
    assert final_points(make_trial(0, 0.4, outcome="stopped"), time_ms=4) == []


def test_delta_needs_both_scores():
    control = make_trial(0, 0.41, role="control")
    point = delta_point(make_trial(0, 0.43), control, metric="val/nds", time_ms=4)
    assert point is not None
    assert point.key == "delta/nds_vs_control"
    assert point.value == pytest.approx(0.02)
    waiting = make_trial(0, None, role="control", outcome=None)
    for trial, reference in [
        (make_trial(0, 0.43), None),
        (make_trial(0, 0.43), waiting),
        (make_trial(0, 0.43, outcome="stopped"), control),
    ]:
        assert delta_point(trial, reference, metric="val/nds", time_ms=4) is None


def test_a_note_is_plain_json(tmp_path):
    save_delivery(tmp_path, FRESH)
    assert json.loads((tmp_path / "delivered.json").read_text())["run_id"] == "r1"
