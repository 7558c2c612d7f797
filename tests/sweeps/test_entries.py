"""What is written in one transaction reads as what Optuna writes value by value."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import OperationalError

from sweeps import entries
from sweeps.entries import Change, change, enter, number_of, set_study_attrs

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "x": FloatDistribution(0.0, 1.0),
    "lr": FloatDistribution(1e-3, 10.0, log=True),
    "n": IntDistribution(1, 9, step=2),
    "mode": CategoricalDistribution(("a", "b", None)),
}
PARAMS = {"x": 0.1 + 0.2, "lr": 0.25, "n": 5, "mode": "b"}


@dataclass
class Pair:
    """One storage written by us, its twin by Optuna."""

    ours: RDBStorage
    twin: RDBStorage
    study: int

    def trials(self) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        both = self.ours.get_all_trials(self.study), self.twin.get_all_trials(self.study)
        return both[0], both[1]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    storages = [RDBStorage(f"sqlite:///{tmp_path / name}") for name in ("ours.db", "twin.db")]
    (study, _) = (each.create_new_study([StudyDirection.MAXIMIZE], "s") for each in storages)
    yield Pair(storages[0], storages[1], study)
    for each in storages:
        each.remove_session()
        each.engine.dispose()


def running(**attrs: Any) -> FrozenTrial:
    return create_trial(
        state=TrialState.RUNNING, params=PARAMS, distributions=DISTRIBUTIONS, user_attrs=attrs
    )


def known(value: float) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE,
        value=value,
        params={"x": 0.5},
        distributions={"x": DISTRIBUTIONS["x"]},
        user_attrs={"role": "known"},
        system_attrs={"fixed": [1, 2]},
        intermediate_values={0: 0.25, 1: float("nan")},
    )


@pytest.mark.parametrize(
    "template",
    [
        running(role="search", params={"x": 1}),
        running(),
        known(0.25),
        known(float("inf")),
        known(float("-inf")),
        create_trial(state=TrialState.COMPLETE, values=[0.25, -3.0]),
        create_trial(state=TrialState.FAIL, user_attrs={"text": 'line\n"quoted" Ä'}),
    ],
)
def test_a_trial_enters_as_by_optuna(pair: Pair, template: FrozenTrial) -> None:
    for _ in range(2):
        trial_id = enter(pair.ours.engine, pair.study, template)
        assert pair.twin.create_new_trial(pair.study, template) == trial_id
    ours, twin = pair.trials()
    assert [trial.number for trial in ours] == [0, 1]
    assert repr(ours) == repr(twin)  # NaN does not equal itself
    assert number_of(pair.ours.engine, trial_id) == 1


def test_numbers_count_within_a_study(pair: Pair) -> None:
    other = pair.ours.create_new_study([StudyDirection.MAXIMIZE], "other")
    ids = [enter(pair.ours.engine, study, running()) for study in (pair.study, other, pair.study)]
    assert [number_of(pair.ours.engine, trial_id) for trial_id in ids] == [0, 0, 1]


def test_changes_read_as_those_of_optuna(pair: Pair) -> None:
    template = running(attempts=1)
    trial_id = enter(pair.ours.engine, pair.study, template)
    assert pair.twin.create_new_trial(pair.study, template) == trial_id
    engine = pair.ours.engine
    change(engine, trial_id, Change(attrs={"attempts": 2, "rungs": [{"a": 1.5}]}))
    change(engine, trial_id, Change(attrs={"rungs": []}, intermediate={0: 0.5}))
    change(engine, trial_id, Change(intermediate={0: float("nan"), 1: float("inf")}))
    change(
        engine,
        trial_id,
        Change(attrs={"end": {"told": 0.5}}, state=TrialState.COMPLETE, values=[0.5]),
    )
    for key, value in (("attempts", 2), ("rungs", []), ("end", {"told": 0.5})):
        pair.twin.set_trial_user_attr(trial_id, key, value)
    for step, value in ((0, float("nan")), (1, float("inf"))):
        pair.twin.set_trial_intermediate_value(trial_id, step, value)
    pair.twin.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.5])
    (ours,), (twin,) = pair.trials()
    assert ours.datetime_complete is not None
    assert twin.datetime_complete is not None
    assert abs(ours.datetime_complete - twin.datetime_complete) < timedelta(minutes=1)
    ours.datetime_complete = twin.datetime_complete
    for each in (ours, twin):  # Optuna keeps the order of what was first written
        each.user_attrs = dict(sorted(each.user_attrs.items()))
    assert repr(ours) == repr(twin)


def test_what_has_ended_stays(pair: Pair) -> None:
    engine = pair.ours.engine
    trial_id = enter(engine, pair.study, running())
    end = Change(attrs={"end": 1}, state=TrialState.FAIL)
    change(engine, trial_id, end)
    before = repr(pair.trials()[0])
    change(engine, trial_id, end, again=True)
    for later in (end, Change(attrs={"end": 2})):
        with pytest.raises(UpdateFinishedTrialError):
            change(engine, trial_id, later)
    with pytest.raises(UpdateFinishedTrialError):
        change(engine, trial_id, Change(attrs={"end": 2}), again=True)
    assert repr(pair.trials()[0]) == before


def test_a_change_stands_whole_or_not_at_all(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = pair.ours.engine
    trial_id = enter(engine, pair.study, running())
    before = repr(pair.trials()[0])
    upsert, calls = entries._upsert, []

    def breaking_at(number: int) -> Callable[..., None]:
        calls.clear()

        def broken(*args: Any) -> None:
            calls.append(args)
            upsert(*args)
            if len(calls) == number:
                raise OperationalError("insert", {}, OSError("disk full"))

        return broken

    end = Change(attrs={"a": 1}, intermediate={0: 1.0}, state=TrialState.COMPLETE, values=[1.0])
    for number in (1, 2, 3):
        monkeypatch.setattr(entries, "_upsert", breaking_at(number))
        with pytest.raises(StorageInternalError):
            change(engine, trial_id, end)
        assert repr(pair.trials()[0]) == before
    monkeypatch.setattr(entries, "_upsert", breaking_at(1))
    with pytest.raises(StorageInternalError):
        enter(engine, pair.study, running(a=1))
    assert repr(pair.trials()[0]) == before
    monkeypatch.setattr(entries, "_upsert", breaking_at(4))
    change(engine, trial_id, end)
    assert repr(pair.trials()[0]) != before


def test_attributes_of_a_study(pair: Pair) -> None:
    set_study_attrs(pair.ours.engine, pair.study, {"a": 1, "b": {"c": [None]}})
    set_study_attrs(pair.ours.engine, pair.study, {"a": 2})
    assert pair.ours.get_study_user_attrs(pair.study) == {"a": 2, "b": {"c": [None]}}
