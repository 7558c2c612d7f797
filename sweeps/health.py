"""Verdicts on a trial's losses and statistics between its rungs: pure functions on tables.

A rule is data; `RULES` holds the users' signals, corrected where their own runs show them to be
wrong. A verdict that stops ends a trial before its first NDS; any other flags it. What has not been
reported, or is not finite, is not judged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from sweeps.signals import TESTS, Case, Points, Test, finite

History = Mapping[str, Points]
Action = Literal["stop", "flag"]

CLAMP = "aqr/effective/max_weight_clamp"
_LOSS = ("train/loss",)
_WEIGHTS = ("aqr/lidar_weights_stats", "aqr/camera_weights_stats")
_MAPS = ("aqr/weight_map_bev_stats", "aqr/weight_map_pers_stats")
_PREDICTOR_GRADIENT = "aqr/grad_norm/aqr_weight_generator.weight_predictor"


@dataclass(frozen=True, kw_only=True)
class HealthRule:
    """One signal.

    Attributes:
        name: As a spec writes it.
        test: How the values are judged; see `docs/health.md`.
        metrics: Each is judged by itself, and one that fails is enough.
        threshold: In the unit of the test: a value, a share, sigmas, a ratio.
        action: What a verdict does.
        grace: Share of the budget before which nothing is said.
        window: Share of the budget that is looked back upon.
        reports: Fewest values that a verdict needs.
        meaning: What is wrong then.
        source: The users' signal behind it.
        correction: How that signal was changed, and why; empty if it stands as it was.

    Raises:
        ValueError: If a number is out of its range.
    """

    name: str
    test: Test
    metrics: tuple[str, ...]
    threshold: float
    action: Action
    grace: float
    window: float = 0.0
    reports: int = 2
    meaning: str
    source: str
    correction: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold) or self.threshold < 0:
            raise ValueError(f"`threshold >= 0` must hold, but got {self.threshold}")
        if self.action not in ("stop", "flag"):
            raise ValueError(f"`action` must be stop or flag, but got {self.action!r}")
        if not 0 <= self.grace < 1:
            raise ValueError(f"`0 <= grace < 1` must hold, but got {self.grace}")
        if not 0 <= self.window <= 1:
            raise ValueError(f"`0 <= window <= 1` must hold, but got {self.window}")
        if self.reports < 1:
            raise ValueError(f"`reports >= 1` must hold, but got {self.reports}")

    @property
    def needs_control(self) -> bool:
        """Whether it says nothing without the control's curve."""
        return self.test in ("flat", "above_control", "diverging", "times_control")


@dataclass(frozen=True, kw_only=True)
class HealthVerdict:
    """What a rule says.

    Raises:
        ValueError: If there is no reason.
    """

    rule: str
    stop: bool
    reason: str

    def __post_init__(self) -> None:
        if not self.reason:
            raise ValueError("a verdict must carry a reason")


RULES: tuple[HealthRule, ...] = (
    HealthRule(
        name="loss_diverging",
        test="diverging",
        metrics=_LOSS,
        threshold=10.0,
        action="stop",
        grace=0.05,
        window=0.1,
        reports=4,
        meaning="the loss leaves the control's and does not come back",
        source="report 002: loss above 10",
        correction="In sigmas of the control's own scatter at the same step: the control itself "
        "stands at 9.9 to 10.5, and a loss that is high but falls towards it recovers.",
    ),
    HealthRule(
        name="loss_above_control",
        test="above_control",
        metrics=_LOSS,
        threshold=3.0,
        action="flag",
        grace=0.02,
        window=0.05,
        reports=3,
        meaning="the loss is above the control's at the same step",
        source="report 002: loss above 10",
        correction="Relative to the control, as loss_diverging.",
    ),
    HealthRule(
        name="loss_rising",
        test="rising",
        metrics=_LOSS,
        threshold=0.2,
        action="stop",
        grace=0.1,
        window=0.05,
        reports=4,
        meaning="the loss rises from its best level",
        source="report 002: the loss does not fall",
        correction="A rise beyond the control's own in the same steps: while the learning rate "
        "climbs, the control's loss rises by 4 %.",
    ),
    HealthRule(
        name="loss_flat",
        test="flat",
        metrics=_LOSS,
        threshold=3.0,
        action="flag",
        grace=0.3,
        window=0.05,
        reports=4,
        meaning="the loss stands still while the control's falls",
        source="report 002: the loss does not fall",
        correction="Only where the control falls: fine-tuning from a trained checkpoint is flat by "
        "nature (the control's falls by 1 % in an epoch).",
    ),
    HealthRule(
        name="gradient_above_control",
        test="times_control",
        metrics=("train/grad_norm",),
        threshold=3.0,
        action="flag",
        grace=0.02,
        window=0.05,
        reports=3,
        meaning="gradients are far larger than the control's: the features had a shock",
        source="facts, recorded runs: 257 at step 100 beside a control near 47",
    ),
    HealthRule(
        name="map_mean",
        test="off_neutral",
        metrics=tuple(f"{group}/mean" for group in _MAPS),
        threshold=0.5,
        action="flag",
        grace=0.0,
        reports=1,
        meaning="a weight map is far from neutral on the whole: a global gain, not a routing",
        source="report 002: map mean below .2, healthy .35 to .45",
        correction="Distance from 1, the neutral background: with a background of 0 the mean is "
        "the weights' sum over the cells (.05), whatever sigma is, and .35 cannot be reached.",
    ),
    HealthRule(
        name="map_saturated",
        test="saturated",
        metrics=tuple(f"{group}/share_saturated" for group in _MAPS),
        threshold=0.25,
        action="flag",
        grace=0.0,
        meaning="much of a weight map stands at the clamp: a constant gain there",
        source="report 002: map maximum above 2.0",
        correction="The share at the clamp: the maximum is the clamp itself, which is searched.",
    ),
    HealthRule(
        name="relative_change_pers",
        test="above",
        metrics=("aqr/modulation_effect_pers/relative_change",),
        threshold=0.5,
        action="stop",
        grace=0.05,
        meaning="the modulation replaces the camera features",
        source="report 002: relative change above 50 %; its run had 81 to 84 % and mAP .135",
    ),
    HealthRule(
        name="relative_change_bev",
        test="above",
        metrics=("aqr/modulation_effect_bev/relative_change",),
        threshold=0.135,
        action="flag",
        grace=0.05,
        meaning="the modulation replaces the BEV features",
        source="report 002: relative change above 50 %",
        correction="50 % of the 27 % of BEV features that are not zero: the others count as "
        "unchanged in this mean. The share is the R50 model's.",
    ),
    HealthRule(
        name="weights_near_zero",
        test="below",
        metrics=tuple(f"{group}/mean" for group in _WEIGHTS),
        threshold=0.05,
        action="stop",
        grace=0.05,
        meaning="a modality is switched off for every query",
        source="report 002: query weights fall below .2",
        correction="The mean near 0 stops; a mean below .2 is weights_low and flags.",
    ),
    HealthRule(
        name="weights_all_low",
        test="below",
        metrics=tuple(f"{group}/max" for group in _WEIGHTS),
        threshold=0.2,
        action="stop",
        grace=0.05,
        meaning="no query gives the modality a weight worth the name",
        source="report 002: query weights fall below .2",
    ),
    HealthRule(
        name="weights_low",
        test="below",
        metrics=tuple(f"{group}/mean" for group in _WEIGHTS),
        threshold=0.2,
        action="flag",
        grace=0.0,
        meaning="a modality is suppressed for most queries",
        source="report 002: query weights fall below .2",
    ),
    HealthRule(
        name="weights_polarised",
        test="above",
        metrics=tuple(f"{group}/std" for group in _WEIGHTS),
        threshold=0.35,
        action="flag",
        grace=0.0,
        meaning="the weights stand at 0 and 1",
        source="report 000: a standard deviation of about .3",
        correction="Above .35: .29 is a uniform spread over 0 to 1, which is not polarised.",
    ),
    HealthRule(
        name="no_routing",
        test="below",
        metrics=tuple(f"{group}/std" for group in _WEIGHTS),
        threshold=0.01,
        action="flag",
        grace=0.25,
        meaning="all queries have the same weight",
        source="report 000: a standard deviation of about .01",
        correction="After a quarter of the budget: a freshly added AQR has a deviation of 0, so "
        "that it changes nothing.",
    ),
    HealthRule(
        name="no_gradient",
        test="at_most",
        metrics=(_PREDICTOR_GRADIENT,),
        threshold=0.0,
        action="stop",
        grace=0.02,
        meaning="the weight generator does not learn",
        source="facts, D1: weights entered the maps as plain numbers, and nothing failed",
    ),
)

_BY_NAME = {rule.name: rule for rule in RULES}
_SETTABLE = ("threshold", "action", "grace", "window", "reports")


def parse_rules(value: object) -> tuple[HealthRule, ...]:
    """Read the rules that a spec names.

    Args:
        value: "default", "off", or a list of names and of mappings such as
            `{rule: loss_rising, threshold: 0.3, action: flag}`. "default" in a list stands for all
            of them; what comes later replaces what came before under the same name.

    Raises:
        ValueError: With every mistake, the valid names and the nearest one.
    """
    if value == "off":
        return ()
    if value == "default":
        return RULES
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"must be default, off or a list of rules, but got {value!r}")
    chosen: dict[str, HealthRule] = {}
    problems: list[str] = []
    for item in value:
        try:
            chosen |= {rule.name: rule for rule in _read_item(item)}
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(chosen.values())


def _read_item(item: object) -> tuple[HealthRule, ...]:
    if item == "default":
        return RULES
    if isinstance(item, str):
        return (_find(item),)
    if not isinstance(item, Mapping) or not isinstance(item.get("rule"), str):
        raise ValueError(f"must be a rule's name or a mapping with `rule`, but got {item!r}")
    rule = _find(item["rule"])
    changes = {key: each for key, each in item.items() if key != "rule"}
    for key, each in changes.items():
        if key not in _SETTABLE:
            raise ValueError(f"{rule.name}: {_unknown('key', key, ('rule', *_SETTABLE))}")
        _require_kind(rule, key, each)
    try:
        return (replace(rule, **changes),)
    except ValueError as error:
        raise ValueError(f"{rule.name}: {error}") from error


def _require_kind(rule: HealthRule, key: str, value: object) -> None:
    if key == "action":
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (key == "reports" and not isinstance(value, int)):
        kind = "a whole number" if key == "reports" else "a number"
        raise ValueError(f"{rule.name}: `{key}` must be {kind}, but got {value!r}")


def _find(name: str) -> HealthRule:
    if name not in _BY_NAME:
        raise ValueError(_unknown("health rule", name, (*_BY_NAME, "default")))
    return _BY_NAME[name]


def _unknown(what: str, name: object, valid: Sequence[str]) -> str:
    near = get_close_matches(str(name), valid, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}; valid: {', '.join(valid)}{hint}"


def watched(rules: Sequence[HealthRule]) -> frozenset[str]:
    """Every metric that the rules look at."""
    return frozenset({metric for rule in rules for metric in rule.metrics} | {CLAMP})


def judge(
    history: History,
    rules: Sequence[HealthRule],
    *,
    control: Sequence[History] = (),
    total_steps: float,
) -> tuple[HealthVerdict, ...]:
    """Judge what a trial has reported so far.

    Args:
        history: (step, value) of each metric, by rising step.
        rules: What is looked for.
        control: The same of each run of the control; none if there is none.
        total_steps: Optimizer steps of the whole budget.

    Returns:
        One verdict for each rule that is broken, in the order of the rules.
    """
    verdicts = []
    for rule in rules:
        if found := _broken(rule, history, control, total_steps):
            reason = f"{found}: {rule.meaning}"
            verdicts.append(
                HealthVerdict(rule=rule.name, stop=rule.action == "stop", reason=reason)
            )
    return tuple(verdicts)


def _broken(
    rule: HealthRule, history: History, control: Sequence[History], total_steps: float
) -> str | None:
    """What breaks the rule, in words."""
    clamp = finite(history.get(CLAMP, ()))
    for metric in rule.metrics:
        points = finite(history.get(metric, ()))
        if len(points) < rule.reports or points[-1][0] < rule.grace * total_steps:
            continue
        since = points[-1][0] - rule.window * total_steps
        num_recent = max(rule.reports, sum(step > since for step, _ in points))
        case = Case(
            metric=metric,
            threshold=rule.threshold,
            points=points,
            recent=points[-num_recent:],
            control=tuple(finite(run[metric]) for run in control if run.get(metric)),
            clamp=clamp[-1][1] if clamp else None,
        )
        if found := TESTS[rule.test](case):
            return found
    return None
