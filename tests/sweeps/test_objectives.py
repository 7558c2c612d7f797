"""Several objectives in a spec, and their values."""

from dataclasses import replace
from pathlib import Path

import pytest
from pareto_samples import THREE, pareto_record, pareto_spec, scored
from spec_samples import small_spec
from sweep_samples import make_record

from sweeps.objectives import (
    missing_keys,
    objectives_in,
    objectives_of,
    read_objectives,
    values_of,
)
from sweeps.section import SpecError
from sweeps.spec import load_copy


def test_names_keys_and_modes_follow_from_the_spec(tmp_path: Path) -> None:
    nds, time, ap = objectives_of(pareto_spec(tmp_path, THREE))
    assert (nds.name, nds.keys, nds.mode, nds.noise) == ("NDS", ("val/nds",), "max", 0.002)
    assert (time.name, time.keys, time.mode, time.noise) == ("time", (), "min", 0.5)
    assert (ap.name, ap.mode) == ("AP(pedestrian, bicycle)", "max")
    assert ap.keys == ("val/ap/pedestrian", "val/ap/bicycle")
    assert [each.key for each in (nds, time, ap)] == ["nds", "time", "ap_pedestrian_bicycle"]
    (error,) = objectives_of(pareto_spec(tmp_path, "[{metric: mAVE, noise: 0.1}]"))[1:]
    assert (error.name, error.keys, error.mode) == ("mAVE", ("val/mave",), "min")


def test_values_are_those_of_the_last_rung(tmp_path: Path) -> None:
    objectives = objectives_of(pareto_spec(tmp_path, THREE))
    trial = scored(0, 0.4, 120.0, (0.3, 0.1))
    assert values_of(trial, objectives) == pytest.approx((0.4, 120.0, 0.2))
    assert values_of(scored(1, 0.4, 120.0, outcome="stopped"), objectives) is None
    assert values_of(scored(2, 0.4, 120.0, outcome="diverged"), objectives) is None


def test_a_rung_without_the_metrics_is_said_to_lack_them(tmp_path: Path) -> None:
    objectives = objectives_of(pareto_spec(tmp_path, THREE))
    rung = scored(0, 0.4, 120.0).rungs[-1]
    assert missing_keys(rung, objectives) == ()
    assert missing_keys(replace(rung, metrics={"val/nds": 0.4}), objectives) == (
        "val/ap/pedestrian",
        "val/ap/bicycle",
    )


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(9.346, "9.35 s"), (119.9, "119.90 s"), (600.0, "10.00 min"), (8280.0, "2.300 h")],
)
def test_a_time_is_shown_with_its_unit(seconds: float, shown: str) -> None:
    (time,) = read_objectives({"metric": "time", "mode": "min", "noise": None})
    assert time.show(seconds) == shown


def test_a_record_says_whether_it_has_several(tmp_path: Path) -> None:
    spec = pareto_spec(tmp_path)
    assert objectives_in(pareto_record(spec)) == objectives_of(spec)
    assert objectives_in(make_record()) == ()
    single = small_spec(tmp_path)
    assert objectives_in(make_record(spec=single.dump())) == ()
    # A spec of one objective is written as before there could be more.
    assert "also" not in single.dump()["objective"]


def test_a_copy_reads_as_the_spec(tmp_path: Path) -> None:
    spec = pareto_spec(tmp_path, THREE)
    spec.write_copy(tmp_path)
    assert load_copy(tmp_path) == spec


def problems(path: Path, also: str, **sections: str) -> list[str]:
    with pytest.raises(SpecError) as error:
        small_spec(path, objective=f"{{noise: 0.01, also: {also}}}", **sections)
    return [f"{each.where}: {each.message}" for each in error.value.problems]


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("{metric: time}", "objective.also: must be a list of objectives, but got {'metric': "),
        ("[time]", "objective.also.0: must be a mapping with metric, classes, mode, noise, but"),
        ("[{metric: NSD}]", "objective.also.0.metric: must be one of 'NDS', 'mAP', 'mATE', 'mAS"),
        ("[{mode: min}]", "objective.also.0.metric: must be given"),
        ("[{metric: time, mode: max}]", "objective.also.0.mode: must be 'min' for time, but got"),
        ("[{metric: time, nois: 1}]", "objective.also.0.nois: unknown key 'nois'; valid: metric,"),
        ("[{metric: mAP, noise: -1}]", "objective.also.0.noise: must be >= 0.0, but got -1"),
        ("[{metric: AP}]", "objective.also.0.classes: must be given with metric AP: the classes"),
        ("[{metric: AP, classes: []}]", "objective.also.0.classes: must be given with metric AP"),
        ("[{metric: AP, classes: car}]", "objective.also.0.classes: must be a list, but got 'car"),
        (
            "[{metric: mAP, classes: [car]}]",
            "objective.also.0.classes: must not be given with mAP: it is for metric AP",
        ),
        (
            "[{metric: AP, classes: [car, car]}]",
            "objective.also.0.classes: must name each class once, but got 'car' 2 times",
        ),
        (
            "[{metric: NDS}]",
            "objective.also.0: must differ from the other objectives, but is the same as objective",
        ),
        (
            "[{metric: AP, noise: 1, classes: [car, bus]}, {metric: AP, classes: [bus, car]}]",
            "objective.also.1: must differ from the other objectives, but is the same as also.0",
        ),
        (
            "[{metric: mAP}, {metric: mATE}, {metric: mASE}, {metric: time}]",
            "objective.also: must be no more than 3 objectives, but got 4 of them",
        ),
    ],
)
def test_mistakes_are_told_where_they_stand(tmp_path: Path, also: str, message: str) -> None:
    assert any(problem.startswith(message) for problem in problems(tmp_path, also)), problems(
        tmp_path, also
    )


def test_an_unknown_class_names_the_nearest(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "[{metric: AP, noise: 0.1, classes: [pedestrain]}]")
    assert problem.startswith("objective.also.0.classes: unknown class 'pedestrain'; valid: car,")
    assert problem.endswith("did you mean 'pedestrian'?")


def test_what_several_objectives_exclude_is_refused(tmp_path: Path) -> None:
    told = problems(
        tmp_path,
        "[{metric: time}]",
        search="{sampler: cmaes}",
        known="[{params: {x: 0.1, y: 0.1}, NDS: 0.4}]",
    )
    assert any(
        each.startswith("search.sampler: must be gp, tpe, random or grid with several objectives")
        for each in told
    )
    assert any(each.startswith("known: must not be given with several objec") for each in told)


def test_noise_is_declared_or_measured_by_the_control(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "[{metric: mAVE}]", control="false")
    assert "noise of also.0 must be given, or measured by a control with 2 seeds" in problem

    def seeds(also: str) -> int:
        objective = f"{{noise: 0.01, also: {also}}}"
        return small_spec(tmp_path, objective=objective).control_seeds

    assert seeds("[{metric: mAVE}]") == 3
    assert seeds("[{metric: mAVE, noise: 0.05}]") == 1
    # A training time without noise is compared as it is.
    assert seeds("[{metric: time}]") == 1
    spec = small_spec(tmp_path, objective="{noise: 0.01, also: [{metric: time}]}", control="false")
    assert spec.control_seeds == 0
