"""A whole sweep: start, resume, end.

The study in the sweep's directory is the record. A resume is a new Ray run built from it; Tune's
own snapshots are switched off.
"""

import fcntl
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.error import TuneError
from ray.tune.experiment import Trial

from sweeps.database_url import shown_url
from sweeps.health import parse_rules
from sweeps.listeners import Audience, Listener, SweepContext
from sweeps.placing import bundles_of, misfit, num_trials_fitting
from sweeps.record import Ledger, SweepRecord
from sweeps.retries import Retries, memory_kills_are_deaths
from sweeps.reuse import starting_processes_are_kept
from sweeps.scheduler import RungScheduler
from sweeps.search import StudySearcher
from sweeps.spec import COPY_NAME, SweepSpec, from_dump, load_copy
from sweeps.storage import StorageHeld, check_free
from sweeps.trial import Job, SweepTrainable, TrainFn

LOCK_NAME = "driver.lock"
FORECAST = "forecast"  # attribute of the sweep: what was expected before its first trial
RAY_NAME = "ray"
TICK_S = 1.0
# Trials hand scores over, nothing large; Ray would take a third of the memory.
OBJECT_STORE_BYTES = 128 << 20
SLOTS_AGE_S = 5.0
LOOK_S = 1.0
# Sections of the spec. Where the same sweep stands may be written in different ways.
_MAY_CHANGE = ("budget", "storage")

_TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    # The searcher counts; Tune must not start processes one after the other.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "60",
}


class SweepRefused(RuntimeError):
    """A sweep cannot start or resume as asked; says why and what to do."""


class SweepInterrupted(KeyboardInterrupt):
    """A sweep was interrupted; its study is complete and `resume` continues it."""


def run_sweep(
    spec: SweepSpec,
    train_fn: TrainFn,
    *,
    listeners: Sequence[Listener] = (),
    forecast: Mapping[str, Any] | None = None,
) -> SweepRecord:
    """Run a new sweep to its end.

    Uses the Ray instance of this process if there is one, else the cluster at `RAY_ADDRESS`, else
    one of its own.

    Args:
        spec: The sweep.
        train_fn: Trains one trial.
        listeners: Are told what happens.
        forecast: What is expected of it, kept in the record as it is to be compared with the truth.

    Raises:
        SweepRefused: If the sweep exists, another driver has it, or a trial does not fit.
        TrialsFail: If training after training fails before its first score.
        StorageError: If the study's database cannot be reached, or stays away for too long.
        SweepInterrupted: After Ctrl-C.
    """
    spec.directory.mkdir(parents=True, exist_ok=True)
    with _locked(spec.directory):
        if (spec.directory / COPY_NAME).exists():
            raise SweepRefused(
                f"the sweep {spec.name!r} exists in {spec.directory}: resume it, or name another"
            )
        _check_free(spec, is_new=True)
        return _drive(spec, train_fn, listeners, resumed=False, forecast=forecast)


def resume_sweep(
    spec: SweepSpec, train_fn: TrainFn, *, listeners: Sequence[Listener] = ()
) -> SweepRecord:
    """Continue a sweep from its study; one that has ended gives its record.

    The budget may be another than at the start, the rest of the spec may not.

    Raises:
        SweepRefused: If there is no such sweep, its spec differs, another driver has it, or a trial
            does not fit.
        TrialsFail: If training after training fails before its first score.
        SweepInterrupted: After Ctrl-C.
    """
    if not (spec.directory / COPY_NAME).exists():
        raise SweepRefused(f"no sweep {spec.name!r} in {spec.directory} to resume: run it first")
    with _locked(spec.directory):
        before = load_copy(spec.directory)
        _refuse_changes(before, spec)
        _check_free(spec, is_new=False)
        if before.budget != spec.budget:
            spec.write_copy(spec.directory)
        return _drive(spec, train_fn, listeners, resumed=True)


def _check_free(spec: SweepSpec, *, is_new: bool) -> None:
    """See before anything starts that the study's server answers and nobody else has it."""
    try:
        check_free(spec.storage_url, spec.name, is_new=is_new)
    except StorageHeld as held:
        raise SweepRefused(str(held)) from held


def _refuse_changes(before: SweepSpec, now: SweepSpec) -> None:
    if changed := _lasting_changes(before.dump(), now):
        raise SweepRefused(
            f"a resume must have the spec of the start ({before.directory / COPY_NAME}), but "
            f"{', '.join(changed)} changed: restore it, or name another sweep (of a sweep that has "
            "begun, only the budget may change)"
        )


def _lasting_changes(before: Mapping[str, Any], now: SweepSpec) -> list[str]:
    """The sections that differ from an earlier spec and may not."""
    new = now.dump()
    return [key for key in before if before[key] != new[key] and key not in _MAY_CHANGE]


def _drive(
    spec: SweepSpec,
    train_fn: TrainFn,
    listeners: Sequence[Listener],
    *,
    resumed: bool,
    forecast: Mapping[str, Any] | None = None,
) -> SweepRecord:
    # Both speak of what is switched off or chosen here on purpose.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    audience = Audience(listeners)
    with (
        _ray_running(),
        _environment(_TUNE_ENVIRONMENT),
        memory_kills_are_deaths(),
        starting_processes_are_kept(),
    ):
        slots = _Slots(spec)
        if not resumed:  # what is refused until here may be run again, with other resources
            spec.write_copy(spec.directory)
        ledger = Ledger(spec.storage_url, spec.name, mode=spec.objective.mode)
        try:
            if resumed:
                _refuse_lost_study(spec, ledger)
            _describe(spec, ledger)
            if forecast is not None:
                ledger.set_attr(FORECAST, dict(forecast))
            searcher = StudySearcher(spec, ledger, audience, slots.count)
            context = SweepContext(
                spec=spec, directory=spec.directory, ledger=ledger, resumed=resumed
            )
            audience.tell(lambda listener: listener.on_start(context))
            interrupted = _tune(spec, train_fn, searcher, audience)
            searcher.save_spent(at_once=True)
            record = ledger.read()
            audience.tell(lambda listener: listener.on_end(record, interrupted=interrupted))
        finally:
            ledger.close()
    if interrupted:
        raise SweepInterrupted(f"the sweep {spec.name!r} was interrupted: resume continues it")
    return record


def _refuse_lost_study(spec: SweepSpec, ledger: Ledger) -> None:
    """An empty study beside trained trials would begin again, on their checkpoints."""
    trained = next((spec.directory / "trials").glob("*/*"), None)
    if trained is not None and not ledger.trials:
        raise SweepRefused(
            f"the study {shown_url(spec.storage_url)} holds no trial of the sweep {spec.name!r}, "
            f"but {trained.parent} was trained: put the study back where it was, or name another "
            "sweep"
        )


def _describe(spec: SweepSpec, ledger: Ledger) -> None:
    attrs = ledger.read().attrs
    # The copy in the directory may have been edited.
    begun = attrs.get("spec")
    if begun is not None and (changed := _lasting_changes(from_dump(begun).dump(), spec)):
        raise SweepRefused(
            f"the study of the sweep {spec.name!r} was begun with another spec, of which "
            f"{', '.join(changed)} changed: restore it, or name this sweep anew"
        )
    wanted = {
        "spec": spec.dump(),
        "metric": spec.objective.key,
        "mode": spec.objective.mode,
        "noise": spec.objective.noise,
    }
    for key, value in wanted.items():
        if key not in attrs or attrs[key] != value:  # a noise of None is told, too
            ledger.set_attr(key, value)


def _tune(spec: SweepSpec, train_fn: TrainFn, searcher: StudySearcher, audience: Audience) -> bool:
    """Let Tune run the trials; True if the user interrupted it."""
    silence = spec.resources.silence_minutes
    job = Job(
        train_fn=train_fn,
        trials_dir=spec.directory / "trials",
        fidelities=spec.stopping.fidelities,
        metric=spec.objective.key,
        num_threads=spec.resources.cpus // max(1, spec.resources.gpus),
        health=parse_rules(spec.health),
        epochs=spec.train.epochs,
        silence_s=None if silence is None else 60 * silence,
    )
    retries = Retries(
        job.trials_dir, note_death=searcher.note_death, note_restart=searcher.note_restart
    )
    try:
        tune.run(
            type("SweepTrial", (SweepTrainable,), {"job": job}),
            name=RAY_NAME,
            storage_path=str(spec.directory),
            num_samples=-1,
            search_alg=searcher,
            scheduler=RungScheduler(searcher.judge, retries.take_death),
            resources_per_trial=_gang_of(spec),
            reuse_actors=True,
            max_failures=spec.resources.retries,
            raise_on_failed_trial=False,
            callbacks=[_Clock(searcher, audience, retries)],
            trial_name_creator=_ray_name,
            trial_dirname_creator=_ray_name,
            verbose=0,
        )
    except KeyboardInterrupt:
        return True
    except TuneError:
        # Tune wraps what our side raised into a text.
        if searcher.failure is not None:
            raise searcher.failure from searcher.failure.__cause__
        raise
    return False


def _gang_of(spec: SweepSpec) -> PlacementGroupFactory:
    """The places of one trial, had whole or not at all: one for each of its processes.

    The trainable of a gang takes none of its own; it stands beside rank 0.
    """
    bundles = bundles_of(spec.resources)
    lead = [{}] if len(bundles) > 1 else []
    return PlacementGroupFactory([*lead, *bundles], strategy="PACK")


def _ray_name(trial: Trial) -> str:
    return trial.trial_id


class _Clock(tune.Callback):
    """Passes on what Tune tells callbacks alone."""

    def __init__(self, searcher: StudySearcher, audience: Audience, retries: Retries) -> None:
        self._searcher, self._audience, self._retries = searcher, audience, retries
        self._next_tick = 0.0

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._searcher.note_start(trial.trial_id)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if (now := time.monotonic()) >= self._next_tick:
            self._next_tick = now + TICK_S
            self._searcher.save_spent()
            self._audience.tell(lambda listener: listener.on_tick())
            self._searcher.catch_up()

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._retries.prepare(trial)


class _Slots:
    """How many trials may run at once, on a cluster that may grow.

    Raises:
        SweepRefused: If not even one fits.
    """

    def __init__(self, spec: SweepSpec) -> None:
        self._resources = spec.resources
        self._read_at = -SLOTS_AGE_S
        self._fitting = 0
        nodes = self._read()
        if self._fitting == 0:
            raise SweepRefused(
                f"{misfit(self._resources, nodes)}: lower `resources`, or use another cluster"
            )

    def count(self) -> int:
        """The number now."""
        if time.monotonic() - self._read_at > SLOTS_AGE_S:
            self._read()
        wish = self._resources.concurrent
        return self._fitting if wish is None else min(wish, max(1, self._fitting))

    def _read(self) -> list[dict[str, float]]:
        self._read_at = time.monotonic()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._fitting = num_trials_fitting(self._resources, nodes)
        return nodes


@contextmanager
def _ray_running() -> Iterator[None]:
    """See that Ray runs, and end it if it is ours."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        _start_local_ray()
    try:
        yield
    finally:
        ray.shutdown()


def _start_local_ray() -> None:
    _name_token()
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=OBJECT_STORE_BYTES,
    )


def _name_token() -> None:
    """Give this process its own cluster token, unless the user has one.

    Without it Ray writes a token into the home directory, which every later cluster then demands.
    Ray keeps the first token for the life of a process, hence so do we.
    """
    own = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not own and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Ray warns that it switches tokens on.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the sweep for this driver; the kernel lets go of it however the driver ends."""
    with (directory / LOCK_NAME).open("a+") as file:
        deadline = time.monotonic() + LOOK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() < deadline:  # somebody may only be looking who has it
                    time.sleep(0.02)
                    continue
                file.seek(0)
                raise SweepRefused(
                    f"another driver has the sweep in {directory} ({file.read().strip()}): "
                    "wait for it, or stop it"
                ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
