"""Trials written into Optuna's tables, each change in one transaction and few statements.

Optuna commits every single value by itself and reads a trial through its object mapper before each
of them. What belongs together is written together here: a kill leaves all of it or nothing, and the
disk is waited for once. Optuna reads what is written here as its own; the tests compare the two.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, Table, bindparam, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

Value = models.TrialValueModel
Intermediate = models.TrialIntermediateValueModel


def _table(model: Any) -> Table:
    return model.__table__


_TRIALS, _PARAMS = _table(models.TrialModel), _table(models.TrialParamModel)
_ATTRS, _STUDY_ATTRS = (
    _table(models.TrialUserAttributeModel),
    _table(models.StudyUserAttributeModel),
)
_VALUES, _INTERMEDIATES = _table(Value), _table(Intermediate)
_SYSTEM_ATTRS = _table(models.TrialSystemAttributeModel)

_NEXT_NUMBER = (
    select(func.count())
    .select_from(_TRIALS)
    .where(_TRIALS.c.study_id == bindparam("of_study"))
    .scalar_subquery()
)
_ENTER = insert(_TRIALS).values(number=_NEXT_NUMBER)
_STATE = select(_TRIALS.c.state).where(_TRIALS.c.trial_id == bindparam("id"))
_NUMBER = select(_TRIALS.c.number).where(_TRIALS.c.trial_id == bindparam("id"))
_END = update(_TRIALS).where(_TRIALS.c.trial_id == bindparam("id"))


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is to stand in a running trial.

    Attributes:
        attrs: User attributes, JSON values.
        intermediate: Objective by step.
        state: How it ends; None: it goes on.
        values: With which values.
    """

    attrs: Mapping[str, Any] = field(default_factory=dict)
    intermediate: Mapping[int, float] = field(default_factory=dict)
    state: TrialState | None = None
    values: Sequence[float] = ()


def enter(engine: Engine, study_id: int, template: FrozenTrial) -> int:
    """Enter a trial as its template says; its number is the next one of the study.

    The caller is the study's one writer.

    Returns:
        Optuna's id of the trial.
    """
    with _transaction(engine) as connection:
        entered = connection.execute(
            _ENTER,
            {
                "of_study": study_id,
                "study_id": study_id,
                "state": template.state,
                "datetime_start": _utc(template.datetime_start),
                "datetime_complete": _utc(template.datetime_complete),
            },
        )
        key = entered.inserted_primary_key
        assert key is not None
        trial_id = key[0]
        if template.params:
            connection.execute(insert(_PARAMS), [*_params(trial_id, template)])
        if template.system_attrs:
            _set_attrs(connection, _SYSTEM_ATTRS, {"trial_id": trial_id}, template.system_attrs)
        change = Change(
            attrs=template.user_attrs,
            intermediate=template.intermediate_values,
            values=template.values or (),
        )
        _write(connection, trial_id, change)
    return trial_id


def number_of(engine: Engine, trial_id: int) -> int:
    """A trial's number within its study."""
    with _transaction(engine) as connection:
        return connection.execute(_NUMBER, {"id": trial_id}).scalar_one()


def change(engine: Engine, trial_id: int, what: Change, *, again: bool = False) -> None:
    """Write a change to a running trial.

    Args:
        engine: Of the study's database.
        trial_id: Optuna's.
        what: The change.
        again: It may stand already, since the answer to an earlier try was lost.

    Raises:
        UpdateFinishedTrialError: If the trial has ended.
    """
    with _transaction(engine) as connection:
        state = connection.execute(_STATE, {"id": trial_id}).scalar_one()
        if again and what.state is not None and state == what.state:
            return
        if state.is_finished():
            raise UpdateFinishedTrialError(f"trial {trial_id} has ended and stays as it is")
        _write(connection, trial_id, what)
        if what.state is not None:
            ended = {"state": what.state, "datetime_complete": _utc(datetime.now())}
            connection.execute(_END, {"id": trial_id, **ended})


def set_study_attrs(engine: Engine, study_id: int, attrs: Mapping[str, Any]) -> None:
    """Set attributes of a study, all or none."""
    with _transaction(engine) as connection:
        _set_attrs(connection, _STUDY_ATTRS, {"study_id": study_id}, attrs)


@contextmanager
def _transaction(engine: Engine) -> Iterator[Connection]:
    """All or nothing; what fails is Optuna's own error, as in its methods."""
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise StorageInternalError(
            f"an error was raised during the commit of a change to the study: {error}"
        ) from error


def _write(connection: Connection, trial_id: int, what: Change) -> None:
    own = {"trial_id": trial_id}
    if what.attrs:
        _set_attrs(connection, _ATTRS, own, what.attrs)
    for step, score in what.intermediate.items():
        stored, kind = Intermediate.intermediate_value_to_stored_repr(score)
        row = {**own, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}
        _upsert(connection, _INTERMEDIATES, ("trial_id", "step"), [row])
    for objective, value in enumerate(what.values):
        stored, kind = Value.value_to_stored_repr(value)
        row = {**own, "objective": objective, "value": stored, "value_type": kind}
        _upsert(connection, _VALUES, ("trial_id", "objective"), [row])


def _set_attrs(
    connection: Connection, table: Table, owner: Mapping[str, int], attrs: Mapping[str, Any]
) -> None:
    rows = [{**owner, "key": key, "value_json": json.dumps(v)} for key, v in attrs.items()]
    _upsert(connection, table, (*owner, "key"), rows)


def _upsert(
    connection: Connection, table: Table, keys: tuple[str, ...], rows: list[dict[str, Any]]
) -> None:
    """Insert rows, or renew those that stand under the same keys."""
    renewed = tuple(name for name in rows[0] if name not in keys)
    connection.execute(_upserting(connection.dialect.name, table, keys, renewed), rows)


@cache
def _upserting(dialect: str, table: Table, keys: tuple[str, ...], renewed: tuple[str, ...]) -> Any:
    statement = {"sqlite": sqlite, "postgresql": postgresql}[dialect].insert(table)
    return statement.on_conflict_do_update(
        index_elements=list(keys), set_={name: statement.excluded[name] for name in renewed}
    )


def _params(trial_id: int, template: FrozenTrial) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": template.distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(template.distributions[name]),
        }
        for name, value in template.params.items()
    ]


def _utc(moment: datetime | None) -> datetime | None:
    """Optuna keeps local times as UTC, both without their zone."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)
