"""Patience with a study's database: a writer waits while it is locked, restarts or is away.

Then it does again what was cut short. What may have been taken although its answer was lost is
looked for first, so that nothing stands twice.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext

from sweeps.database_url import shown_url
from sweeps.entries import Change, change, enter, number_of, set_study_attrs

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# From the first failure on; then the driver ends, and a resume goes on.
PATIENCE_S = 600.0
MIN_PAUSE_S, MAX_PAUSE_S = 0.2, 5.0
# Classes of PostgreSQL's error codes that pass by themselves: connection, rollback, resources,
# operator intervention; and a standby that has not become the primary yet.
_PASSING_CODES = ("08", "40", "53", "57", "25006")
# What SQLite says of a disk that takes no more: full, broken, or read-only.
_DISK_ERRORS = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY")
_log = logging.getLogger(__name__)


class StorageError(RuntimeError):
    """A study's database that cannot be used; says why and what to do."""


class StorageHeld(StorageError):
    """Another driver has the sweep, or another sweep the name."""


class Passing(Exception):
    """A failure of the database that may pass by itself.

    Attributes:
        at_once: It may have passed already, as a connection that broke while it lay idle.
    """

    def __init__(self, reason: str, *, at_once: bool) -> None:
        super().__init__(reason)
        self.at_once = at_once


def _patient(method: F) -> F:
    """A method of the storage that is repeated until the database has carried it out."""

    @wraps(method)
    def patient(self: "PatientStorage", *args: Any, **options: Any) -> Any:
        return self.patiently(lambda: method(self, *args, **options))

    return cast(F, patient)


class PatientStorage(RDBStorage):
    """A storage that waits for its database, for its one writer.

    Every call is done once, whole, or raises StorageError after the database was away for
    `PATIENCE_S`. A caller that groups writes of its own does so inside `patiently`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._shown = shown_url(url)
        self._away_since: float | None = None
        self._has_told = False
        super().__init__(url, **options)
        event.listen(self.engine, "handle_error", _explain)

    def patiently(self, act: Callable[[], T]) -> T:
        """Do something until the database has done it; what is done must bear repetition.

        Raises:
            StorageError: If the database stays away.
        """
        pause_s: float | None = None
        while True:
            try:
                result = act()
            except Passing as error:
                if pause_s is None:
                    pause_s = 0.0 if error.at_once else MIN_PAUSE_S
                self._wait(str(error), pause_s)
                pause_s = min(max(2 * pause_s, MIN_PAUSE_S), MAX_PAUSE_S)
            else:
                self._welcome()
                return result

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Enter a trial; one that was taken although its answer was lost stands already."""
        template, tries = template_trial, 0

        def act() -> int:
            nonlocal tries
            tries += 1
            there = None if tries == 1 or template is None else self._like(study_id, template)
            if there is not None:
                return there
            if template is None:
                return RDBStorage.create_new_trial(self, study_id)
            return enter(self.engine, study_id, template)

        return self.patiently(act)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """End a trial; one that has ended cannot be ended again."""
        tries = 0

        def act() -> bool:
            nonlocal tries
            tries += 1
            if tries > 1 and RDBStorage.get_trial(self, trial_id).state == state:
                return True
            return RDBStorage.set_trial_state_values(self, trial_id, state, values)

        return self.patiently(act)

    def change_trial(self, trial_id: int, what: Change) -> None:
        """Write what belongs together to a running trial, at once."""
        tries = 0

        def act() -> None:
            nonlocal tries
            tries += 1
            change(self.engine, trial_id, what, again=tries > 1)

        self.patiently(act)

    def set_study_user_attrs(self, study_id: int, attrs: Mapping[str, Any]) -> None:
        """Set attributes of a study, all or none."""
        self.patiently(lambda: set_study_attrs(self.engine, study_id, attrs))

    def number_of(self, trial_id: int) -> int:
        """A trial's number within its study."""
        return self.patiently(lambda: number_of(self.engine, trial_id))

    def _like(self, study_id: int, template: FrozenTrial) -> int | None:
        """The trial that came from a template, told by the microsecond in which that was made."""
        for trial in RDBStorage.get_all_trials(self, study_id, deepcopy=False):
            same_moment = trial.datetime_start == template.datetime_start
            if same_moment and trial.user_attrs == template.user_attrs:
                return trial._trial_id
        return None

    # These say what shall stand, or read: repeating them changes nothing.
    create_new_study = _patient(RDBStorage.create_new_study)
    get_study_id_from_name = _patient(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _patient(RDBStorage.get_study_name_from_id)
    get_study_directions = _patient(RDBStorage.get_study_directions)
    get_study_user_attrs = _patient(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _patient(RDBStorage.get_study_system_attrs)
    set_study_user_attr = _patient(RDBStorage.set_study_user_attr)
    set_study_system_attr = _patient(RDBStorage.set_study_system_attr)
    get_all_trials = _patient(RDBStorage.get_all_trials)
    get_trial = _patient(RDBStorage.get_trial)
    get_trial_id_from_study_id_trial_number = _patient(
        RDBStorage.get_trial_id_from_study_id_trial_number
    )
    set_trial_user_attr = _patient(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _patient(RDBStorage.set_trial_system_attr)
    set_trial_intermediate_value = _patient(RDBStorage.set_trial_intermediate_value)

    def _wait(self, reason: str, pause_s: float) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
        away_s = now - self._away_since
        if away_s >= PATIENCE_S:
            raise StorageError(
                f"the study's database {self._shown} has not answered for {away_s:.0f} s ({reason})"
                ": nothing that was acknowledged is lost, and a resume goes on when it is back"
            )
        if pause_s > 0 and not self._has_told:
            self._has_told = True
            _log.warning(
                "the study's database %s does not answer (%s): waiting, at most %.0f s",
                *(self._shown, reason, PATIENCE_S),
            )
        time.sleep(pause_s)

    def _welcome(self) -> None:
        if self._away_since is None:
            return
        away_s = time.monotonic() - self._away_since
        self._away_since = None
        if self._has_told:
            self._has_told = False
            _log.warning("the study's database %s is back after %.0f s", self._shown, away_s)


def _explain(context: ExceptionContext) -> None:
    """Tell what passes from what a user must mend; Optuna repeats neither on its own account."""
    error = context.original_exception
    if context.is_pre_ping or not isinstance(error, context.dialect.loaded_dbapi.Error):
        return  # Ctrl-C breaks a connection, too
    code = getattr(error, "sqlstate", None) or ""
    # A file that cannot be opened is not there; a server that cannot be reached may come back.
    is_file = context.dialect.name == "sqlite"
    is_away = not is_file and (context.is_disconnect or context.connection is None)
    if is_away or code.startswith(_PASSING_CODES) or is_locked(error):
        raise Passing(brief(error), at_once=context.is_disconnect) from error
    if getattr(error, "sqlite_errorname", "").startswith(_DISK_ERRORS):
        raise StorageError(_refused(context, error)) from error


def _refused(context: ExceptionContext, error: BaseException) -> str:
    engine = context.engine
    file = engine.url.database if engine is not None else None
    folder = Path(file or ".").absolute().parent
    try:
        left = f"{shutil.disk_usage(folder).free / 1e6:.0f} MB are left there"
    except OSError as unknown:
        left = f"nor can its disk be asked what is left: {unknown.strerror}"
    return (
        f"the study {file} could not be written ({brief(error)}; {left}): nothing that was"
        " acknowledged is lost; make room there, or make it writable, and go on with a resume"
    )


def is_locked(error: BaseException | None) -> bool:
    """Whether another process holds a SQLite file."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def brief(error: BaseException | None) -> str:
    """What a database said, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines) if lines[0].endswith(":") else lines[0]
