"""The front, with noise and with repeats; twins by the definitions, word for word."""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pareto_samples import THREE, pareto_record, pareto_spec, scored

from sweeps.analysis import leaderboard
from sweeps.noise import Noise
from sweeps.objectives import Objective, objectives_of, values_of
from sweeps.pareto import (
    Place,
    best_of_front,
    decide_on_all,
    dominates,
    front_of,
    noise_to_stop_by,
    pareto_front,
)
from sweeps.stopping import SAFE_MARGIN_SIGMAS, decide
from sweeps.trials import TrialRecord

NDS = Objective(name="NDS", keys=("val/nds",), mode="max")
TIME = Objective(name="time", keys=(), mode="min")
BOTH = (NDS, TIME)
NO_NOISE = (Noise(deviation=0.0), Noise(deviation=0.0))

# Few different values, so that ties and equal trials are common.
NDS_VALUES = st.integers(0, 4).map(lambda n: 0.40 + n / 100)
TIMES = st.integers(1, 5).map(float)


def place(number: int, values: Sequence[float], *, repeats: int = 0) -> Place:
    trial = scored(number, values[0], values[1])
    return Place(
        trial=trial,
        values=tuple(values),
        num_scores=repeats or 1,
        is_repeated=repeats > 0,
    )


@st.composite
def places(draw: st.DrawFn) -> list[Place]:
    rows = draw(st.lists(st.tuples(NDS_VALUES, TIMES, st.integers(0, 2)), max_size=8))
    return [place(i, row[:2], repeats=row[2]) for i, row in enumerate(rows)]


def beats(
    one: Sequence[float], other: Sequence[float], signs: Sequence[float], limits: Sequence[float]
) -> bool:
    """Better by more than the limit on one objective, worse by more than that on none."""
    gains = [sign * (a - b) for a, b, sign in zip(one, other, signs, strict=True)]
    pairs = list(zip(gains, limits, strict=True))
    return all(gain >= -limit for gain, limit in pairs) and any(g > limit for g, limit in pairs)


def slow_judged(
    given_places: Sequence[Place], objectives: Sequence[Objective], noises: Sequence[Noise]
) -> tuple[Place, ...]:
    """Each place against each other one, from the definitions."""
    signs = [each.sign for each in objectives]
    judged: list[Place] = []
    for one in given_places:
        rivals = [
            other
            for other in given_places
            if other.trial.label != one.trial.label and (other.is_repeated or not one.is_repeated)
        ]
        beating: list[Place] = []
        for other in rivals:
            limits = [noise.threshold(other.num_scores, one.num_scores) for noise in noises]
            if beats(other.values, one.values, signs, limits):
                beating.append(other)
        best = max(beating, key=lambda p: (signs[0] * p.values[0], -p.trial.number), default=None)
        on_front = not any(dominates(other.values, one.values, signs) for other in rivals)
        beaten_by = None if best is None else best.trial.label
        judged.append(replace(one, on_front=on_front, beaten_by=beaten_by))
    return tuple(judged)


def slow_front(given_places: Sequence[Place]) -> set[int]:
    """Who is on the front, from the definition."""
    front = set()
    for one in given_places:
        pushed = False
        for other in given_places:
            if one.is_repeated and not other.is_repeated:
                continue
            as_good = other.values[0] >= one.values[0] and other.values[1] <= one.values[1]
            better = other.values[0] > one.values[0] or other.values[1] < one.values[1]
            pushed = pushed or (as_good and better)
        if not pushed:
            front.add(one.trial.number)
    return front


@given(places())
def test_the_front_is_what_nothing_dominates(given_places: list[Place]) -> None:
    judged = pareto_front(given_places, BOTH, NO_NOISE)
    assert {p.trial.number for p in judged if p.on_front} == slow_front(given_places)
    assert not given_places or any(p.on_front for p in judged)
    # Without noise the two notions are one.
    assert all(p.standing == ("front" if p.on_front else "") for p in judged)


@given(places(), st.floats(0.0, 0.02), st.floats(0.0, 2.0))
def test_noise_makes_ties_and_doubts_but_moves_no_front(
    given_places: list[Place], nds_noise: float, time_noise: float
) -> None:
    noises = (Noise(deviation=nds_noise), Noise(deviation=time_noise))
    judged = pareto_front(given_places, BOTH, noises)
    assert {p.trial.number for p in judged if p.on_front} == slow_front(given_places)
    by_label = {p.trial.label: p for p in judged}
    for one in judged:
        rivals = [p for p in judged if p is not one and (p.is_repeated or not one.is_repeated)]
        beating = set()
        for other in rivals:
            limits = [noise.threshold(other.num_scores, one.num_scores) for noise in noises]
            gains = (other.values[0] - one.values[0], one.values[1] - other.values[1])
            ahead = [gain > limit for gain, limit in zip(gains, limits, strict=True)]
            behind = [gain < -limit for gain, limit in zip(gains, limits, strict=True)]
            if any(ahead) and not any(behind):
                beating.add(other.trial.label)
        assert (one.beaten_by is None) == (not beating)
        assert one.beaten_by is None or one.beaten_by in beating
        if one.beaten_by is not None:
            most = max(by_label[label].values[0] for label in beating)
            assert by_label[one.beaten_by].values[0] == most


AP = Objective(name="AP(bicycle)", keys=("val/ap/bicycle",), mode="max")
SCORES = st.floats(0.0, 1.0) | NDS_VALUES


@given(
    st.lists(st.tuples(SCORES, TIMES, SCORES, st.integers(0, 3)), max_size=20),
    st.lists(st.floats(0.0, 0.02) | st.just(0.0), min_size=3, max_size=3),
    st.integers(2, 3),
)
def test_all_at_once_is_each_pair_by_itself(
    rows: list[tuple[float, float, float, int]], deviations: list[float], num_objectives: int
) -> None:
    objectives = (NDS, TIME, AP)[:num_objectives]
    noises = [Noise(deviation=each) for each in deviations][:num_objectives]
    given_places = [
        place(i, row[:num_objectives], repeats=row[3]) for i, row in enumerate(reversed(rows))
    ]
    expected = slow_judged(given_places, objectives, noises)
    assert pareto_front(given_places, objectives, noises) == expected


def test_a_thousand_trials_take_no_time() -> None:
    draw = random.Random(0)
    many = [
        place(i, (draw.gauss(0.4, 0.01), draw.gauss(100, 5), draw.gauss(0.3, 0.02)))
        for i in range(1000)
    ]
    noises = [Noise(deviation=each) for each in (0.002, 0.5, 0.01)]
    begun = time.process_time()
    judged = pareto_front(many, (NDS, TIME, AP), noises)
    # It is done at each look at a sweep, some times a second.
    assert time.process_time() - begun < 1.0
    assert 1 < sum(each.on_front for each in judged) < 100
    few = many[:200]
    assert pareto_front(few, (NDS, TIME, AP), noises) == slow_judged(few, (NDS, TIME, AP), noises)


@given(places(), st.permutations(range(8)))
def test_the_front_does_not_depend_on_the_order(
    given_places: list[Place], order: list[int]
) -> None:
    moved = [given_places[i] for i in order if i < len(given_places)]
    here = {p.trial.label: p for p in pareto_front(given_places, BOTH, NO_NOISE)}
    assert here == {p.trial.label: p for p in pareto_front(moved, BOTH, NO_NOISE)}


@given(st.tuples(NDS_VALUES, TIMES), st.tuples(NDS_VALUES, TIMES))
def test_to_dominate_is_to_beat_without_noise_and_never_goes_both_ways(
    one: tuple[float, float], other: tuple[float, float]
) -> None:
    signs = (1.0, -1.0)
    assert beats(one, other, signs, (0.0, 0.0)) == dominates(one, other, signs)
    assert not (dominates(one, other, signs) and dominates(other, one, signs))
    assert not (beats(one, other, signs, (0.01, 1.0)) and beats(other, one, signs, (0.01, 1.0)))


def standings(front) -> dict[str, str]:
    return {p.trial.label[:4]: p.standing for p in front.places}


def test_ties_and_doubts_are_told(tmp_path: Path) -> None:
    spec = pareto_spec(tmp_path)  # ties: up to 0.0057 NDS, 1.41 s
    front = front_of(
        pareto_record(
            spec,
            scored(0, 0.430, 100.0),
            scored(1, 0.429, 100.5),  # dominated, by less than the noise
            scored(2, 0.410, 99.5),  # on the front by half a second
            scored(3, 0.400, 60.0),
            scored(4, 0.390, 70.0),
            scored(5, 0.410, 50.0, outcome="stopped"),
            scored(6, 0.500, 10.0, outcome="diverged"),
        )
    )
    assert front is not None
    assert standings(front) == {
        "t000": "front",
        "t001": "ties with front",
        "t002": "front by noise",
        "t003": "front",
        "t004": "",
    }
    assert [p.trial.number for p in front.members] == [0, 2, 3]
    assert [p.trial.number for p in front.tied] == [1]
    assert front.places[2].beaten_by == front.places[0].trial.label
    assert front.control is None


def test_finalists_stand_by_their_means_and_single_scores_push_none_away(tmp_path: Path) -> None:
    spec = pareto_spec(tmp_path, finalists="{top: 2, seeds: 2}")
    record = pareto_record(
        spec,
        scored(0, 0.450, 100.0),  # was lucky
        scored(1, 0.430, 90.0),
        scored(2, 0.440, 80.0),  # never repeated
        scored(3, 0.420, 101.0, role="finalist", repeats=0, seed=1),
        scored(4, 0.424, 103.0, role="finalist", repeats=0, seed=2),
        scored(5, 0.431, 91.0, role="finalist", repeats=1, seed=1),
        scored(6, 0.500, 10.0, role="finalist", repeats=1, seed=2, outcome="failed"),
    )
    front = front_of(record)
    assert front is not None
    first, second, third = front.places
    assert first.values == pytest.approx((0.422, 102.0))
    assert (first.num_scores, first.is_repeated, first.on_front) == (2, True, False)
    assert second.values == pytest.approx((0.431, 91.0))
    assert (second.num_scores, second.on_front) == (1, True)  # though t002 has better scores
    assert (third.is_repeated, third.on_front) == (False, True)
    assert [p.trial.number for p in front.members] == [1, 2]
    board = leaderboard(record)
    assert board.front == front
    assert [row.trial.number for row in board.finished] == [1, 0, 2]
    assert board.best is not None
    assert board.best.is_on_front


def test_of_equal_scores_the_one_on_the_front_is_best(tmp_path: Path) -> None:
    spec = pareto_spec(tmp_path)
    record = pareto_record(spec, scored(0, 0.43, 100.0), scored(1, 0.43, 90.0))
    assert [row.trial.number for row in leaderboard(record).finished] == [1, 0]


@given(st.lists(st.tuples(NDS_VALUES, TIMES), min_size=1, max_size=8))
def test_the_best_of_the_leaderboard_is_the_first_of_the_front(
    rows: list[tuple[float, float]],
) -> None:
    spec = pareto_spec(Path("nowhere"))
    trials = [scored(i, *row) for i, row in enumerate(rows)]
    board = leaderboard(pareto_record(spec, *trials))
    assert board.best is not None
    assert board.front is not None
    assert board.best.is_on_front
    assert board.front.members[0].trial == board.best.trial
    (chosen,) = best_of_front(trials, 1, objectives_of(spec))
    assert chosen == board.best.trial


def test_noise_is_declared_or_measured_on_repeats_without_a_prior(tmp_path: Path) -> None:
    spec = pareto_spec(tmp_path, "[{metric: time}, {metric: AP, classes: [bicycle], noise: 0.1}]")
    trials = (scored(0, 0.43, 100.0), scored(1, 0.4, 90.0))
    front = front_of(pareto_record(spec, *trials))
    assert front is not None
    assert [(n.deviation, n.source) for n in front.noises] == [
        (0.002, "declared"),
        (0.0, "assumed"),
        (0.1, "declared"),
    ]
    controls = [scored(i, 0.41, 80.0 + 2 * i, role="control", seed=i) for i in range(3)]
    repeats = [scored(i, 0.43, 90.0 + i, role="finalist", repeats=0, seed=i) for i in (2, 5)]
    front = front_of(pareto_record(spec, *trials, *repeats, controls=controls))
    assert front is not None
    # Squares: 8 of the control with 2 degrees of freedom, 4.5 of the finalist with 1.
    assert front.noises[1].deviation == pytest.approx((12.5 / 3) ** 0.5)
    assert front.noises[1].degrees_of_freedom == 3
    assert front.control is not None
    assert front.control.values == pytest.approx((0.41, 82.0, 0.1))
    assert front.control.beaten_by is None


def slow_layers(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[int]:
    """Fronts peeled one after the other, from the definition."""
    left = {t.number: values_of(t, objectives) or () for t in trials}
    order: list[int] = []
    while left:
        layer = [
            n
            for n, (nds, time) in left.items()
            if not any(a >= nds and b <= time and (a, b) != (nds, time) for a, b in left.values())
        ]
        order += sorted(layer, key=lambda n: (-left[n][0], n))
        left = {n: values for n, values in left.items() if n not in layer}
    return order


@given(st.lists(st.tuples(NDS_VALUES, TIMES), max_size=8), st.integers(1, 8))
def test_finalists_are_the_front_then_the_next_one(
    rows: list[tuple[float, float]], top: int
) -> None:
    trials = [scored(i, *row) for i, row in enumerate(rows)]
    others = [scored(90, 0.9, 0.1, outcome="stopped"), scored(91, 0.9, 0.1, role="finalist")]
    chosen = best_of_front([*others, *trials], top, BOTH)
    assert [trial.number for trial in chosen] == slow_layers(trials, BOTH)[:top]


PEERS = [(0.40, 100.0), (0.41, 101.0), (0.42, 102.0), (0.43, 103.0)]


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ((0.30, 150.0), True),
        ((0.30, 90.0), False),  # slow to learn, but quick: it may be on the front
        ((0.45, 150.0), False),
        ((0.30, 101.5), False),
    ],
)
def test_a_trial_stops_only_if_it_is_behind_on_all(
    values: tuple[float, float], stops: bool
) -> None:
    verdict = decide_on_all(
        "safe", BOTH, values=values, peers=PEERS, noises=(0.002, 0.5), val_share=0.25
    )
    assert verdict.stop is stops
    first, second = verdict.reason.split("; ")
    # Scores on a quarter of the scenes have twice the noise; times have no more of it.
    assert first.startswith("NDS: ")
    assert first.endswith(f"{SAFE_MARGIN_SIGMAS:g} x 0.0040")
    assert second.startswith("time: ")
    assert second.endswith(f"{SAFE_MARGIN_SIGMAS:g} x 0.5000")


@given(
    st.sampled_from(["safe", "fast"]),
    st.tuples(NDS_VALUES, TIMES),
    st.lists(st.tuples(NDS_VALUES, TIMES), max_size=7),
)
def test_it_is_each_objective_by_itself_taken_together(rule, values, peers) -> None:
    verdict = decide_on_all(
        rule, BOTH, values=values, peers=peers, noises=(0.002, 0.5), val_share=1.0
    )
    single = [
        decide(
            rule,
            value=values[i],
            peers=[peer[i] for peer in peers],
            noise=noise,
            val_share=1.0,
            mode=mode,
        )
        for i, (noise, mode) in enumerate(((0.002, "max"), (0.5, "min")))
    ]
    assert verdict.stop == all(each.stop for each in single)


def test_without_a_rule_or_a_noise_nothing_stops() -> None:
    worst = {"values": (0.1, 999.0), "peers": PEERS, "val_share": 1.0}
    never = decide_on_all("none", BOTH, noises=(0.002, 0.5), **worst)
    assert (never.stop, never.reason) == (False, "early stopping is off")
    waits = decide_on_all("safe", BOTH, noises=(None, 0.5), **worst)
    assert not waits.stop
    assert "NDS: the control has not measured the noise yet" in waits.reason
    assert decide_on_all("fast", BOTH, noises=(None, None), **worst).stop


def control(seed: int, seconds: float, **changes) -> TrialRecord:
    return scored(seed, 0.4, seconds, (0.3, 0.1 + seed / 10), role="control", seed=seed, **changes)


def test_the_noise_of_a_time_is_declared_measured_or_none() -> None:
    ended = [control(0, 80.0), control(1, 82.0), control(2, 84.0)]
    assert noise_to_stop_by(TIME, ended, 3) == pytest.approx(2.0)
    assert noise_to_stop_by(TIME, ended[:1], 1) == 0.0
    assert noise_to_stop_by(TIME, [], 0) == 0.0
    # Not before all that measure it have ended: the margin must not move.
    assert noise_to_stop_by(TIME, ended[:2], 3) is None
    declared = Objective(name="time", keys=(), mode="min", noise=7.0)
    assert noise_to_stop_by(declared, [], 0) == 7.0


def test_the_noise_of_a_metric_is_measured_or_not_known(tmp_path: Path) -> None:
    bicycle = Objective(name="AP(bicycle)", keys=("val/ap/bicycle",), mode="max")
    ended = [control(0, 80.0), control(1, 82.0), control(2, 84.0, outcome="failed")]
    assert noise_to_stop_by(bicycle, ended, 3) == pytest.approx(0.1 / 2**0.5)
    assert noise_to_stop_by(bicycle, [ended[0], ended[2]], 2) is None
    objectives = objectives_of(pareto_spec(tmp_path, THREE))
    assert noise_to_stop_by(objectives[2], [], 0) == 0.01
