import math

import pytest

from sweeps.health import (
    RULES,
    HealthVerdict,
    judge,
    parse_rules,
    watched,
)

TOTAL = 1000
LOSS = "train/loss"
LIDAR, CAMERA = "aqr/lidar_weights_stats", "aqr/camera_weights_stats"
BEV_MAP, PERS_MAP = "aqr/weight_map_bev_stats", "aqr/weight_map_pers_stats"
CHANGE = "aqr/modulation_effect_pers/relative_change"
BEV_CHANGE = "aqr/modulation_effect_bev/relative_change"
GRADIENT = "aqr/grad_norm/aqr_weight_generator.weight_predictor"
NAN = math.nan


def every(interval, values):
    """A curve that reports its first value at the first interval."""
    return [(interval * (i + 1), value) for i, value in enumerate(values)]


def says(history, *, control=(), rules=RULES):
    verdicts = judge(history, rules, control=control, total_steps=TOTAL)
    return {verdict.rule: verdict for verdict in verdicts}


def names(history, **how):
    return sorted(says(history, **how))


# A control that scatters by .1 about 10: neighbours differ by .2 x sqrt(1/2) sigmas.
CONTROL = {LOSS: every(10, [10.0 + 0.1 * (-1) ** i for i in range(100)])}
SIGMA = 0.2 / math.sqrt(2)


def beside(*gaps):
    """A loss that stands by some multiples of the control's scatter above it, from step 10 on."""
    curve = CONTROL[LOSS][: len(gaps)]
    return {LOSS: [(step, own + gap * SIGMA) for (step, own), gap in zip(curve, gaps, strict=True)]}


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        (CHANGE, [0.84, 0.81], ["relative_change_pers"]),
        (CHANGE, [0.5, 0.5], []),  # the threshold itself holds
        (CHANGE, [0.5 + 1e-9, 0.5 + 1e-9], ["relative_change_pers"]),
        (CHANGE, [0.84], []),  # one report is no trend
        (CHANGE, [0.84, 0.33], []),
        (CHANGE, [0.33, 0.84], []),
        (CHANGE, [NAN, 0.84], []),  # what is not finite is no report
        (CHANGE, [0.84, NAN, 0.81], ["relative_change_pers"]),
        (CHANGE, [math.inf, math.inf], []),
        (BEV_CHANGE, [0.136, 0.136], ["relative_change_bev"]),
        (BEV_CHANGE, [0.135, 0.135], []),
        (f"{LIDAR}/mean", [0.04, 0.03], ["weights_low", "weights_near_zero"]),
        (f"{CAMERA}/mean", [0.04, 0.03], ["weights_low", "weights_near_zero"]),
        (f"{CAMERA}/mean", [0.05, 0.05], ["weights_low"]),
        (f"{CAMERA}/mean", [0.2, 0.2], []),
        (f"{CAMERA}/max", [0.19, 0.19], ["weights_all_low"]),
        (f"{CAMERA}/max", [0.2, 0.19], []),
        (f"{LIDAR}/std", [0.36, 0.4], ["weights_polarised"]),
        (f"{LIDAR}/std", [0.35, 0.35], []),
        (f"{LIDAR}/std", [0.29, 0.29], []),  # a uniform spread
        (f"{BEV_MAP}/mean", [0.05], ["map_mean"]),  # a background of 0
        (f"{PERS_MAP}/mean", [1.6], ["map_mean"]),
        (f"{PERS_MAP}/mean", [1.5], []),
        (f"{PERS_MAP}/mean", [0.5], []),
        (f"{BEV_MAP}/share_saturated", [0.3, 0.26], ["map_saturated"]),
        (f"{BEV_MAP}/share_saturated", [0.25, 0.25], []),
        (GRADIENT, [0.0, 0.0], ["no_gradient"]),
        (GRADIENT, [0.0, 1e-12], []),
        (GRADIENT, [0.0], []),
        (GRADIENT, [NAN, NAN], []),
        ("aqr/no/such_thing", [9.0, 9.0], []),
    ],
)
def test_single_values_are_judged_by_their_thresholds(metric, values, expected):
    assert names({metric: every(100, values)}) == expected


def test_nothing_reported_says_nothing():
    assert names({}) == []
    assert names({CHANGE: []}) == []


def test_a_fresh_aqr_does_not_route_yet_and_is_let_be():
    flat = {f"{LIDAR}/std": every(20, [0.0] * 12)}
    assert names(flat) == []
    assert names({f"{LIDAR}/std": every(20, [0.0] * 13)}) == ["no_routing"]
    routing = {f"{LIDAR}/std": every(20, [0.0] * 12 + [0.01])}
    assert names(routing) == []


def test_the_grace_ends_at_its_step():
    (rule,) = parse_rules([{"rule": "relative_change_pers", "grace": 0.5}])
    bad = {CHANGE: [(490, 0.9), (499, 0.9)]}
    assert names(bad, rules=[rule]) == []
    assert names({CHANGE: [(490, 0.9), (500, 0.9)]}, rules=[rule]) == ["relative_change_pers"]


def test_a_map_at_a_clamp_of_one_is_neutral():
    full = {f"{BEV_MAP}/share_saturated": every(100, [0.9, 0.9])}
    clamp = "aqr/effective/max_weight_clamp"
    assert names({**full, clamp: every(100, [1.0, 1.0])}) == []
    assert names({**full, clamp: every(100, [1.5, 1.5])}) == ["map_saturated"]


def test_a_loss_beside_the_control_is_healthy():
    assert names(beside(*[0.0] * 100), control=[CONTROL]) == []


def test_a_loss_above_the_control_is_flagged_by_the_scatter():
    verdict = says(beside(*[3.1] * 20), control=[CONTROL])["loss_above_control"]
    assert not verdict.stop
    assert "3.1 times its scatter 0.1414 (allowed 3)" in verdict.reason
    assert names(beside(*[2.9] * 20), control=[CONTROL]) == []
    # Without a control, or where it has not come so far, nothing is said.
    assert names(beside(*[9.0] * 20)) == []
    short = {LOSS: CONTROL[LOSS][:8]}
    assert names(beside(*[9.0] * 20), control=[short]) == []
    assert names(beside(*[9.0] * 20), control=[{}]) == []
    nans = {LOSS: [(step, NAN) for step, _ in CONTROL[LOSS]]}
    assert names(beside(*[9.0] * 20), control=[nans]) == []


def test_only_a_loss_that_leaves_the_control_is_stopped():
    away = says(beside(*range(5, 35)), control=[CONTROL])
    assert away["loss_diverging"].stop
    assert "times its scatter 0.1414 (allowed 10), and" in away["loss_diverging"].reason
    coming_back = beside(*[60 - 2 * i for i in range(26)])
    assert names(coming_back, control=[CONTROL]) == ["loss_above_control"]
    # High for ever, yet no higher.
    assert names(beside(*[20.0] * 30), control=[CONTROL]) == ["loss_above_control"]


def test_the_control_is_read_between_its_reports():
    sparse = {LOSS: CONTROL[LOSS][::3]}
    high = {LOSS: [(step, value + 2.0) for step, value in CONTROL[LOSS][:40]]}
    assert names(high, control=[sparse]) == ["loss_above_control"]


def test_several_controls_count_with_their_mean():
    low = {LOSS: [(step, value - 1.0) for step, value in CONTROL[LOSS]]}
    high = {LOSS: [(step, value + 1.0) for step, value in CONTROL[LOSS]]}
    assert names(beside(*[0.0] * 30), control=[low, high]) == []
    assert names(beside(*[0.0] * 30), control=[low]) == ["loss_above_control"]


def test_a_rising_loss_is_stopped_without_a_control():
    rising = {LOSS: every(10, [8.0] * 20 + [9.7] * 6)}
    verdict = says(rising)["loss_rising"]
    assert verdict.stop
    assert "rose by 21.2%, from 8 at steps" in verdict.reason
    assert names({LOSS: every(10, [8.0] * 20 + [9.6] * 6)}) == []  # exactly 20 %
    assert names({LOSS: every(10, [10.0] * 20 + [8.0] * 6)}) == []
    assert names({LOSS: every(10, [8.0] * 4)}) == []


def test_a_rise_from_nothing_has_no_share():
    assert names({LOSS: every(10, [0.0] * 20 + [9.0] * 6)}) == []
    own = every(10, [8.0] * 20 + [9.9] * 6)
    nothing = {LOSS: every(10, [0.0] * 26)}
    assert "loss_rising" in names({LOSS: own}, control=[nothing])


def test_a_rise_that_the_control_shares_is_the_schedules():
    climb = [8.0 + 0.1 * (i % 2) for i in range(20)] + [9.8 + 0.1 * (i % 2) for i in range(20)]
    control = {LOSS: every(10, climb)}
    assert "loss_rising" in names({LOSS: every(10, climb)})
    assert names({LOSS: every(10, climb)}, control=[control]) == []


def test_a_flat_loss_is_flagged_only_where_the_control_falls():
    falling = {LOSS: every(10, [12.0 - 0.03 * i + 0.05 * (-1) ** i for i in range(60)])}
    flat = {LOSS: every(10, [9.0 + 0.05 * (-1) ** i for i in range(60)])}
    assert names(flat, control=[falling]) == ["loss_flat"]
    assert names(flat, control=[flat]) == []
    assert names(flat) == []
    assert names(falling, control=[falling]) == []


def test_a_shock_shows_in_the_gradient():
    norm = "train/grad_norm"
    control = {norm: every(10, [47.0] * 50)}
    assert names({norm: every(10, [142.0] * 10)}, control=[control]) == ["gradient_above_control"]
    assert names({norm: every(10, [141.0] * 10)}, control=[control]) == []
    assert names({norm: every(10, [142.0] * 10)}) == []


def test_a_control_without_scatter_gives_no_sigma():
    still = {LOSS: every(10, [10.0] * 50)}
    assert names({LOSS: every(10, [11.0] * 20)}, control=[still]) == []


def test_verdicts_say_what_they_saw():
    (verdict,) = judge({CHANGE: every(100, [0.84, 0.81])}, RULES, total_steps=TOTAL)
    assert verdict == HealthVerdict(
        rule="relative_change_pers",
        stop=True,
        reason="aqr/modulation_effect_pers/relative_change is 0.81 to 0.84 at steps 100-200, "
        "above 0.5: the modulation replaces the camera features",
    )
    with pytest.raises(ValueError, match="must carry a reason"):
        HealthVerdict(rule="loss_flat", stop=False, reason="")


def test_rules_are_named_once_and_say_where_they_come_from():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.meaning and rule.source for rule in RULES)
    assert {metric for rule in RULES for metric in rule.metrics} < watched(RULES)


def test_a_spec_takes_all_rules_or_none():
    assert parse_rules("default") == RULES
    assert parse_rules("off") == ()
    assert parse_rules([]) == ()


def test_a_spec_takes_some_rules_and_changes_them():
    one, two = parse_rules(["no_gradient", {"rule": "loss_rising", "threshold": 0.3}])
    assert one.name == "no_gradient"
    assert (two.name, two.threshold, two.action) == ("loss_rising", 0.3, "stop")
    all_but = parse_rules(["default", {"rule": "loss_rising", "action": "flag"}])
    assert [rule.name for rule in all_but] == [rule.name for rule in RULES]
    changed = next(rule for rule in all_but if rule.name == "loss_rising")
    assert changed.action == "flag"
    assert [rule for rule in all_but if rule is not changed] == [
        rule for rule in RULES if rule.name != "loss_rising"
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("on", "must be default, off or a list of rules, but got 'on'"),
        (3, "must be default, off or a list of rules, but got 3"),
        (["loss_risign"], "did you mean 'loss_rising'?"),
        (["loss_risign"], "valid: loss_diverging, loss_above_control, loss_rising"),
        ([7], "must be a rule's name or a mapping with `rule`, but got 7"),
        ([{"threshold": 1}], "must be a rule's name or a mapping with `rule`"),
        ([{"rule": "loss_flat", "treshold": 1}], "did you mean 'threshold'?"),
        ([{"rule": "loss_flat", "threshold": "much"}], "`threshold` must be a number, but got"),
        ([{"rule": "loss_flat", "threshold": True}], "`threshold` must be a number, but got True"),
        ([{"rule": "loss_flat", "threshold": NAN}], "`threshold >= 0` must hold, but got nan"),
        ([{"rule": "loss_flat", "threshold": -1}], "`threshold >= 0` must hold, but got -1"),
        ([{"rule": "loss_flat", "action": "kill"}], "`action` must be stop or flag"),
        ([{"rule": "loss_flat", "grace": 1}], "`0 <= grace < 1` must hold, but got 1"),
        ([{"rule": "loss_flat", "window": 2}], "`0 <= window <= 1` must hold, but got 2"),
        ([{"rule": "loss_flat", "reports": 0}], "`reports >= 1` must hold, but got 0"),
        ([{"rule": "loss_flat", "reports": 1.5}], "`reports` must be a whole number"),
    ],
)
def test_a_mistake_is_said(value, message):
    with pytest.raises(ValueError, match=r"must|unknown") as error:
        parse_rules(value)
    assert message in str(error.value)


def test_all_mistakes_come_at_once():
    with pytest.raises(ValueError, match="unknown") as error:
        parse_rules(["loss_risign", {"rule": "loss_flat", "grace": 7}])
    assert "loss_risign" in str(error.value)
    assert "loss_flat: `0 <= grace < 1` must hold, but got 7" in str(error.value)
