"""What a sweep costs beside its trainings: 500 trials that train nothing, against Ray Tune alone.

Both sides report three rungs a trial, hand processes on, and write neither snapshots nor Tune's own
logs. Ours also chooses the point, judges every rung, keeps the record, spools, and prints a line at
each event, as `aqr-sweep run` does. `NUM_TRIALS` shortens the runs.
"""

import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from measure import show

sys.path.append(str(Path(__file__).parents[1] / "sweeps"))

import ray
from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console
from spec_samples import small_spec

from launch.progress import Progress
from sweeps import run
from sweeps.listeners import Listener
from sweeps.record import ParamValue, SweepRecord, TrialRecord
from sweeps.run import _TUNE_ENVIRONMENT, _environment, _name_token, run_sweep
from sweeps.tracker import Tracker
from sweeps.training import Report

NUM_TRIALS = int(os.environ.get("NUM_TRIALS", "500"))
NUM_GP_TRIALS = 60  # its model's own time grows with the trials
NUM_TIMED = 16
RUNGS = (0.25, 0.5, 1.0)
MOST_RATIO, MOST_FIXED_S = 1.3, 2.0

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _local_ray() -> Iterator[None]:
    # Ray's processes do not find the modules of the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    _name_token()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    yield
    ray.shutdown()


def score(params: Mapping[str, Any]) -> float:
    """Differences far inside the noise, so that no trial is stopped: all do the same."""
    return 0.5 + 1e-6 * float(params["x"])


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """A training that takes no longer than it is told."""

    pause_s: float = 0.0

    def __call__(
        self,
        params: Mapping[str, ParamValue],
        *,
        report: Report,
        workdir: Path,
        resume_from: Path | None,
    ) -> None:
        for step, fraction in enumerate(RUNGS):
            if self.pause_s:
                time.sleep(self.pause_s)
            report.rung(
                {"val/nds": score(params)},
                fraction=fraction,
                val_share=1.0,
                epoch=fraction,
                step=step,
                checkpoint=None,
            )


class RawClass(tune.Trainable):
    """The leanest trainable there is: one step a rung."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._score, self._rung = score(new_config), 0
        return True

    def step(self) -> dict[str, Any]:
        self._rung += 1
        return {"val/nds": self._score, "done": self._rung == len(RUNGS)}


def raw_function(config: dict[str, Any]) -> None:
    for fraction in RUNGS:
        tune.report({"val/nds": score(config), "fraction": fraction})


def ray_alone(trainable: Any, path: Path, *, slots: int) -> None:
    """Random search with Ray Tune: no scheduler, no record, no logs, no snapshots."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with _environment(_TUNE_ENVIRONMENT):
        analysis = tune.run(
            trainable,
            name="raw",
            storage_path=str(path),
            config={"x": tune.uniform(0, 1), "y": tune.uniform(0, 1)},
            num_samples=NUM_TRIALS,
            search_alg=BasicVariantGenerator(max_concurrent=slots),
            resources_per_trial=tune.PlacementGroupFactory([{"CPU": 1.0}]),
            reuse_actors=True,
            verbose=0,
        )
    assert all(trial.status == "TERMINATED" for trial in analysis.trials)


def ours(
    path: Path,
    *listeners: Listener,
    slots: int,
    num_trials: int = NUM_TRIALS,
    sampler: str = "random",
    train: Nothing | None = None,
) -> SweepRecord:
    """The same through our searcher, stopping, record and display."""
    spec = small_spec(
        path,
        search=f"{{sampler: {sampler}, seed: 3}}",
        stopping="{rule: safe, rungs: [0.25, 0.5, 1.0]}",
        budget=f"{{trials: {num_trials}}}",
        control="false",
        finalists="null",
        resources=f"{{concurrent: {slots}}}",
    )
    with Progress(spec, Console(file=StringIO()), live=False) as progress:
        record = run_sweep(spec, train or Nothing(), listeners=[progress, *listeners])
    assert len(record.searched) == num_trials
    assert all(trial.outcome == "finished" for trial in record.searched)
    assert all(len(trial.rungs) == len(RUNGS) for trial in record.searched)
    return record


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(path: Path, slots: int) -> dict[str, float]:
    """Seconds of the sides in turns, there and back."""
    works: dict[str, Callable[[Path], object]] = {
        "ray_class": lambda place: ray_alone(RawClass, place, slots=slots),
        "ray_function": lambda place: ray_alone(raw_function, place, slots=slots),
        "ours": lambda place: ours(place, slots=slots),
    }
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn, names in enumerate((list(works), list(works)[::-1])):
        for name in names:
            place = path / f"{name}{turn}"
            taken[name].append(timed(lambda: works[name](place)))  # noqa: B023
    print(f"\nload {os.getloadavg()}, each twice: {taken}", file=sys.stderr)
    return {name: statistics.fmean(seconds) for name, seconds in taken.items()}


@pytest.mark.parametrize("slots", [2, 1])
def test_a_sweep_against_ray_tune_alone(benchmark, tmp_path, slots):
    seconds: dict[str, float] = {}
    benchmark.pedantic(lambda: seconds.update(compare(tmp_path, slots)), rounds=1)
    ratio = seconds["ours"] / seconds["ray_class"]
    to_function = seconds["ours"] / seconds["ray_function"]
    show(
        benchmark,
        **{"trials": NUM_TRIALS, "slots": slots, "ratio": ratio, "to_function": to_function},
        **{f"{name}_s": taken for name, taken in seconds.items()},
    )
    # Two slots are what this machine gives a sweep, and ours is a function of the user's, too.
    # With one slot the bound is missed: docs/benchmarks.md says by how much, and why.
    assert slots == 1 or to_function <= MOST_RATIO


def test_with_the_tracker_and_with_a_model(benchmark, tmp_path):
    """What the two add that are not part of searcher, stopping and record."""
    at_end: list[float] = []
    begun = time.perf_counter()

    def tracked() -> None:
        with Tracker() as tracker:
            ours(tmp_path / "tracked", tracker, slots=2)
            at_end.append(time.perf_counter() - begun)

    everything_s = timed(tracked)
    gp_s = timed(lambda: ours(tmp_path / "gp", slots=2, num_trials=NUM_GP_TRIALS, sampler="gp"))
    random_s = benchmark.pedantic(
        lambda: timed(lambda: ours(tmp_path / "random", slots=2, num_trials=NUM_GP_TRIALS)),
        rounds=1,
    )
    show(
        benchmark,
        tracked_trials=NUM_TRIALS,
        tracked_s=at_end[0],
        until_all_arrived_s=everything_s,
        gp_trials=NUM_GP_TRIALS,
        gp_s=gp_s,
        random_s=random_s,
    )


class Ends(Listener):
    """When each trial started and ended."""

    def __init__(self) -> None:
        self.starts: dict[str, float] = {}
        self.ends: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def on_trial_start(self, trial: TrialRecord) -> None:
        self.starts[trial.label] = time.perf_counter()

    def on_trial_end(self, trial: TrialRecord) -> None:
        self.ends[trial.label] = time.perf_counter()
        self.seconds[trial.label] = trial.seconds

    def beside_training(self) -> list[float]:
        """From the end before a trial to its own, less its training; of those that had one."""
        costs = []
        for label, start in self.starts.items():
            before = [end for end in self.ends.values() if end <= start]
            if before:
                costs.append(self.ends[label] - max(before) - self.seconds[label])
        return costs


def test_the_fixed_cost_of_a_trial(benchmark, tmp_path, monkeypatch):
    medians: dict[str, float] = {}

    def measure(name: str, slots: int) -> None:
        ends = Ends()
        train = Nothing(pause_s=0.2)
        ours(tmp_path / name, ends, slots=slots, num_trials=NUM_TIMED, train=train)
        costs = ends.beside_training()
        medians[f"{name}_s"], medians[f"{name}_most_s"] = statistics.median(costs), max(costs)

    benchmark.pedantic(lambda: measure("reused_1_slot", 1), rounds=1)
    measure("reused_2_slots", 2)
    tune_run = run.tune.run
    monkeypatch.setattr(
        run.tune,
        "run",
        lambda *args, **options: tune_run(*args, **{**options, "reuse_actors": False}),
    )
    measure("fresh_1_slot", 1)
    show(benchmark, trials=NUM_TIMED, **medians)
    assert medians["reused_1_slot_s"] < MOST_FIXED_S
    assert medians["reused_2_slots_s"] < MOST_FIXED_S
