"""How the Gaussian process searches: on a bowl in two axes, with early scores and known points."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from spec_samples import small_spec

from sweeps.belief import expected_scores
from sweeps.evidence import Axes, gather
from sweeps.gp_proposing import GpProposer
from sweeps.proposing import Proposer
from sweeps.spec import SpecError, SweepSpec
from sweeps.trials import Outcome, RungResult, TrialRecord

BEST = (0.3, 0.6)
NOISE = 0.002
GP = "{sampler: gp, seed: 0}"


def bowl(x: float, y: float, best: tuple[float, float] = BEST) -> float:
    return 0.5 - 0.1 * math.hypot(x - best[0], y - best[1]) ** 2


def spec_of(path: Path, **sections: str) -> SweepSpec:
    sections = {"search": GP, "constraints": "[]", "budget": "{trials: 60}", **sections}
    return small_spec(path, objective=f"{{noise: {NOISE}}}", **sections)


def rung(fraction: float, nds: float) -> RungResult:
    return RungResult(
        fraction=fraction,
        val_share=1.0,
        epoch=fraction,
        step=1,
        metrics={"val/nds": nds},
        checkpoint=None,
        seconds=1.0,
    )


def trial(
    number: int, point: tuple[float, float], *scores: float, outcome: Outcome | None = "finished"
) -> TrialRecord:
    sampled = {"x": point[0], "y": point[1]}
    result = scores[-1] if outcome == "finished" else None
    return TrialRecord(
        number=number,
        label=f"t{number:03d}",
        role="search",
        params=sampled,
        sampled=sampled,
        seed=0,
        config_hash="",
        rungs=tuple(rung((1 + i) / 2, score) for i, score in enumerate(scores)),
        outcome=outcome,
        told=result,
        value=result,
    )


def known(number: int, point: tuple[float, float], value: float) -> TrialRecord:
    return replace(trial(number, point, value), role="known", rungs=())


def control(value: float) -> TrialRecord:
    return replace(trial(0, (0.0, 0.0), value), role="control", sampled={}, value=value)


def searched(
    spec: SweepSpec,
    count: int,
    trials: Sequence[TrialRecord] = (),
    score: Callable[[float, float], float] = bowl,
) -> list[tuple[float, float]]:
    """The points of so many trials, one after the other, with noise."""
    source = Proposer(spec, spec.build_space(), list(trials))
    rng = np.random.default_rng(spec.seed + 100)
    points = []
    for number in range(len(trials), len(trials) + count):
        sampled = source.propose()
        points.append((float(sampled["x"]), float(sampled["y"])))
        full = score(*points[-1]) + NOISE * rng.normal()
        early = score(*points[-1]) - 0.1 + NOISE * rng.normal()
        source.learn(trial(number, points[-1], early, full))
    return points


def away(point: tuple[float, float], other: tuple[float, float] = BEST) -> float:
    return math.dist(point, other)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_closes_in_on_the_best(tmp_path: Path, seed: int) -> None:
    spec = spec_of(tmp_path, search=f"{{sampler: gp, seed: {seed}}}")
    points = searched(spec, 18)
    assert min(map(away, points[-6:])) < 0.12
    assert np.mean([away(p) for p in points[-6:]]) < np.mean([away(p) for p in points[:8]])


def test_it_minimises_where_less_is_better(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    lower = spec.model_copy(update={"objective": spec.objective.model_copy(update={"mode": "min"})})
    points = searched(lower, 18, score=lambda x, y: -bowl(x, y))
    assert min(map(away, points[-6:])) < 0.12


def test_the_first_trials_spread_and_a_resume_goes_on_with_them(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    first = searched(spec, 8)
    apart = [math.dist(a, b) for i, a in enumerate(first) for b in first[:i]]
    assert min(apart) > 0.1
    halves = {(x > 0.5, y > 0.5) for x, y in first}
    assert len(halves) == 4
    begun = [trial(i, p, 0.3, 0.4) for i, p in enumerate(first[:5])]
    assert searched(spec, 3, begun) == first[5:]


def test_trials_at_once_lie_apart(tmp_path: Path) -> None:
    # Four trials leave much open: the process has reason to look at several places.
    spec = spec_of(tmp_path, search="{sampler: gp, seed: 0, startup: 4}")
    points = searched(spec, 4)
    trials = [trial(i, p, bowl(*p) - 0.1, bowl(*p)) for i, p in enumerate(points)]
    source = GpProposer(spec, spec.build_space(), trials)
    proposed = [source.propose(4 + i) for i in range(4)]
    places = [(float(p["x"]), float(p["y"])) for p in proposed]
    assert min(math.dist(a, b) for i, a in enumerate(places) for b in places[:i]) > 0.05


def test_a_discrete_space_is_searched_to_its_end(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, space="{x: {choices: [0, 1, 2]}, y: {low: 0, high: 1, step: 0.5}}")
    points = searched(spec, 9, score=lambda x, y: 0.4 + 0.01 * (x == 1) - 0.01 * y)
    assert len(set(points)) == 9


def test_a_space_without_an_untried_point_repeats_one(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        space="{x: {choices: [0, 1]}, y: {low: 0, high: 1, step: 1}}",
        search="{sampler: gp, seed: 0, startup: 1}",
    )
    points = searched(spec, 7, score=lambda x, y: 0.4 + 0.01 * x)
    corners = {(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)}
    assert set(points[:4]) == corners
    assert set(points[4:]) <= corners


@pytest.mark.parametrize("objective", ["{}", "{noise: 0}"])
@pytest.mark.parametrize("num_ended", [1, 2, 4])
@pytest.mark.parametrize("rungs", [(0.68, 0.68, 0.68), (0.5, 0.6, 0.68)])
def test_scores_that_do_not_spread_still_say_where_trials_have_been(
    tmp_path: Path, objective: str, num_ended: int, rungs: tuple[float, ...]
) -> None:
    # One score of each rung, or equal ones: what trials gain from rung to rung says nothing of
    # the differences between points.
    spec = small_spec(
        tmp_path,
        objective=objective,
        search="{sampler: gp, seed: 0, startup: 1}",
        constraints="[]",
        stopping="{rule: none, rungs: [0.25, 0.5, 1.0]}",
    )
    source, places = Proposer(spec, spec.build_space(), []), []
    for number in range(num_ended + 4):
        sampled = source.propose()
        places.append((float(sampled["x"]), float(sampled["y"])))
        if number < num_ended:
            source.learn(trial(number, places[-1], *rungs))
    apart = [math.dist(a, b) for i, a in enumerate(places) for b in places[:i]]
    assert min(apart) > 0.2


def test_scores_of_a_running_trial_count(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    rng = np.random.default_rng(1)
    points = [tuple(rng.random(2)) for _ in range(10)]
    trials = [trial(i, p, bowl(*p) - 0.1, bowl(*p)) for i, p in enumerate(points)]
    here = (0.85, 0.15)
    axes, space = Axes(spec.build_space()), spec.build_space()
    for early, near in ((bowl(*here) - 0.1, False), (0.42, True)):
        source = GpProposer(spec, space, trials)
        source.observe(trial(10, here, early, outcome=None))
        evidence = gather(spec, list(source._trials.values()), [])
        assert len(evidence.scores) == 21
        process = source._fitter.fit(evidence, axes)
        mean, _ = process.predict(axes.features([{"x": here[0], "y": here[1]}]))
        # 0.42 after half of the training is worth 0.52 at its end, above all others.
        expected = evidence.level + evidence.scale * mean[0]
        assert (expected > 0.503) == near


def test_the_expectation_sees_through_a_lucky_score(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    rng = np.random.default_rng(2)
    points = [tuple(rng.random(2)) for _ in range(20)] + [BEST, (0.7, 0.2)]
    scores = [bowl(*p) for p in points]
    scores[-1] = 0.5 + 0.002  # really 0.468: luck put it first
    trials = [
        trial(i, p, bowl(*p) - 0.1, v) for i, (p, v) in enumerate(zip(points, scores, strict=True))
    ]
    expected = expected_scores(spec, spec.build_space(), trials, [])
    assert expected[21] < expected[20]
    assert expected == expected_scores(spec, spec.build_space(), trials, [])
    assert set(expected) == set(range(22))
    lone = [*trials, trial(22, (0.1, 0.1), 0.3, outcome="stopped")]
    assert 22 not in expected_scores(spec, spec.build_space(), lone, [])


WRONG, RIGHT = (0.9, 0.1), BEST


def known_spec(
    path: Path, points: Sequence[tuple[float, float]], score, more: str = ""
) -> SweepSpec:
    told = ", ".join(
        f"{{params: {{x: {x}, y: {y}}}, NDS: {score(x, y):.4f}{more}}}" for x, y in points
    )
    return spec_of(path, known=f"[{told}]")


def known_trials(spec: SweepSpec) -> list[TrialRecord]:
    return [
        known(i, (float(p.params["x"]), float(p.params["y"])), p.value)
        for i, p in enumerate(spec.known)
    ]


def cross(center: tuple[float, float], arm: float) -> list[tuple[float, float]]:
    """Points that tell where the best is."""
    x, y = center
    return [center, (x + arm, y), (x - arm, y), (x, y + arm), (x, y - arm)]


@pytest.mark.parametrize("code", ["other", "same"])
def test_points_that_are_too_good_do_not_hold_the_search(tmp_path: Path, code: str) -> None:
    # Known points around a wrong place, all of them 0.02 too high: ten times the noise.
    def biased(x: float, y: float) -> float:
        return 0.02 + bowl(x, y, WRONG)

    spec = known_spec(tmp_path, cross(WRONG, 0.1), biased, f", code: {code}")
    points = searched(spec, 20, known_trials(spec))
    late = points[-8:]
    assert sum(away(p) < away(p, WRONG) for p in late) >= 7
    assert min(map(away, late)) < 0.12


def test_right_points_of_other_code_speed_the_start_up(tmp_path: Path) -> None:
    # Another level, the same shape.
    spec = known_spec(tmp_path, cross(RIGHT, 0.3), lambda x, y: bowl(x, y) - 0.03)
    with_known = searched(spec, 6, known_trials(spec))
    without = searched(spec_of(tmp_path), 6)
    assert min(map(away, with_known)) < 0.1
    assert np.mean([away(p) for p in with_known]) < np.mean([away(p) for p in without])


def test_a_point_with_its_control_counts_by_its_gain(tmp_path: Path) -> None:
    spec = known_spec(tmp_path, [RIGHT], bowl, ", control: 0.48")
    trials = known_trials(spec)
    alone = gather(spec, trials, [])
    assert [score.value for score in alone.scores] == [0.5]
    compared = gather(spec, trials, [control(0.41)])
    assert [score.value for score in compared.scores] == pytest.approx([0.43])
    # It is known better then, and stays another source than this sweep's own scores.
    assert compared.sources[-1].offset < alone.sources[-1].offset
    assert compared.scores[0].source == alone.scores[0].source == 2


def test_points_of_one_kind_share_a_source(tmp_path: Path) -> None:
    told = "[{params: {x: 0.1, y: 0.1}, NDS: 0.4%s}, {params: {x: 0.2, y: 0.1}, NDS: 0.5%s}]"
    kinds = {
        ("", ""): 1,
        (", fidelity: 0.5", ""): 2,
        (", epochs: 0.5", ", fidelity: 0.5"): 1,
        (", code: same", ""): 2,
        (", semantics: right", ", code: same"): 1,
        (", semantics: legacy", ", code: other"): 1,
    }
    for more, count in kinds.items():
        spec = spec_of(tmp_path, known=told % more)
        assert len(gather(spec, known_trials(spec), []).sources) == 2 + count, more


def test_a_spec_says_how_a_point_came_about_and_reads_back(tmp_path: Path) -> None:
    told = "[{params: {x: 0.1, y: 0.1}, NDS: 0.4, fidelity: 0.5, code: same, control: 0.39}]"
    spec = spec_of(tmp_path, known=told)
    assert spec.dump()["known"] == [
        {
            "params": {"x": 0.1, "y": 0.1},
            "NDS": 0.4,
            "fidelity": 0.5,
            "code": "same",
            "control": 0.39,
        }
    ]
    (point,) = spec.known
    assert point.share_of(2.0) == 0.5
    assert point.is_foreign(2.0)
    assert not point.model_copy(update={"fidelity": None}).is_foreign(2.0)
    with pytest.raises(SpecError, match="which says it"):
        spec_of(tmp_path, known=told.replace("fidelity", "epochs: 1, fidelity"))
    with pytest.raises(SpecError, match="'same' or 'other'"):
        spec_of(tmp_path, known=told.replace("code: same", "code: mine"))


@pytest.mark.parametrize(
    "sections",
    [
        {"objective": "{noise: 0}"},
        {"objective": "{}"},
        {"stopping": "{rule: none, rungs: [1.0]}"},
        {"space": "{x: {low: 0.5, high: 0.5}, y: {low: 0, high: 1}}"},
        {"constraints": "[x + y <= 0.1]"},
    ],
)
@pytest.mark.parametrize("score", [lambda x, y: 0.4, bowl])
def test_it_works_at_the_edges_of_what_a_spec_may_say(tmp_path: Path, sections, score) -> None:
    spec = small_spec(
        tmp_path, **{"search": "{sampler: gp, startup: 2}", "constraints": "[]", **sections}
    )
    space, trials = spec.build_space(), list[TrialRecord]()
    source = Proposer(spec, space, [])
    for number in range(6):
        sampled = source.propose()
        assert space.is_feasible(sampled)
        point = (float(sampled["x"]), float(sampled["y"]))
        rungs = len(spec.stopping.fidelities)
        trials.append(trial(number, point, *[score(*point)] * rungs))
        source.learn(trials[-1])
    expected = expected_scores(spec, space, trials, [])
    assert all(expected[t.number] == pytest.approx(score(*_of(t)), abs=0.02) for t in trials)


def _of(trial: TrialRecord) -> tuple[float, float]:
    return float(trial.sampled["x"]), float(trial.sampled["y"])


def test_a_first_point_that_is_likely_to_go_wrong_is_passed_over(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, search="{sampler: gp, startup: 30}")
    source, wrong = Proposer(spec, spec.build_space(), []), []
    for number in range(24):
        sampled = source.propose()
        wrong.append(float(sampled["x"]) > 0.5)
        ended = trial(number, (float(sampled["x"]), float(sampled["y"])), 0.3, 0.4)
        source.learn(replace(ended, outcome="diverged", rungs=()) if wrong[-1] else ended)
    assert sum(wrong[:6]) >= 2
    assert sum(wrong[-12:]) <= 3
