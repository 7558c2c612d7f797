"""Ways to choose and stop trials, each behind the same three calls.

The engine runs as it is, with its record in SQLite; the others run the code of their libraries.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import optuna
from ray.tune.schedulers.async_hyperband import _Bracket
from ray.tune.search.optuna import OptunaSearch
from surrogate import FRACTIONS, NUM_SLOTS, RANGES, VAL_SHARES, Point

from sweeps.listeners import Audience
from sweeps.record import Ledger, RungResult, sqlite_url
from sweeps.search import StudySearcher
from sweeps.spec import SweepSpec, parse_spec
from sweeps.task import TASK_KEY, Ending, to_result

METRIC = "nds"
OURS = "ours: GP on A, safe"
MAX_TRIALS = 400


class Strategy(Protocol):
    """What the simulated cluster asks."""

    def ask(self, trial: str) -> Point:
        """The next point."""
        ...

    def rung(self, trial: str, index: int, value: float) -> bool:
        """Take a score; whether the trial ends here."""
        ...

    def end(self, trial: str, index: int, value: float) -> None:
        """Take the end of a trial: its last rung and the score there."""
        ...

    def best(self) -> str | None:
        """The finished trial that it would name best; None: the one with the highest score."""
        ...


class Random:
    """Uniform points, nothing stopped."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 2))

    def ask(self, trial: str) -> Point:
        """Draw uniformly, by the logarithm where the range says so."""
        units = self._rng.random(len(RANGES))
        return {
            name: low * (high / low) ** unit if log else low + unit * (high - low)
            for unit, (name, (low, high, log)) in zip(units, RANGES.items(), strict=True)
        }

    def rung(self, trial: str, index: int, value: float) -> bool:
        """Never stop."""
        return False

    def end(self, trial: str, index: int, value: float) -> None:
        """Learn nothing."""

    def best(self) -> None:
        """The highest score."""


class OptunaDefaults:
    """Optuna as `create_study(direction="maximize")` gives it, with its default pruner."""

    def __init__(self, seed: int) -> None:
        self._study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=optuna.pruners.MedianPruner(),
        )
        self._trials: dict[str, optuna.Trial] = {}

    def ask(self, trial: str) -> Point:
        """Ask the study."""
        asked = self._trials[trial] = self._study.ask()
        return {
            name: asked.suggest_float(name, low, high, log=log)
            for name, (low, high, log) in RANGES.items()
        }

    def rung(self, trial: str, index: int, value: float) -> bool:
        """Ask the pruner before the end."""
        self._trials[trial].report(value, index)
        return index + 1 < len(FRACTIONS) and self._trials[trial].should_prune()

    def end(self, trial: str, index: int, value: float) -> None:
        """Tell a pruned trial as Optuna wants it."""
        pruned = index + 1 < len(FRACTIONS)
        state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE
        self._study.tell(self._trials[trial], None if pruned else value, state=state)

    def best(self) -> None:
        """The highest score."""


class RayOptunaAsha:
    """Ray's OptunaSearch with Ray's ASHA, one bracket, halving at each rung."""

    def __init__(self, seed: int) -> None:
        def space(trial: optuna.Trial) -> None:
            for name, (low, high, log) in RANGES.items():
                trial.suggest_float(name, low, high, log=log)

        self._search = OptunaSearch(space=cast(Any, space), metric=METRIC, mode="max", seed=seed)
        self._bracket = _Bracket(1, 4, 2, 0)

    def ask(self, trial: str) -> Point:
        """Ask the searcher."""
        return cast(Mapping[str, float], self._search.suggest(trial))

    def rung(self, trial: str, index: int, value: float) -> bool:
        """Tell both, as Tune does; rungs are at 1, 2 and 4 quarters."""
        named = cast(Any, type("Named", (), {"trial_id": trial}))
        time = int(4 * FRACTIONS[index])
        if index + 1 == len(FRACTIONS):
            return False
        self._search.on_trial_result(trial, {METRIC: value, "training_iteration": time})
        return self._bracket.on_result(named, time, value) == "STOP"

    def end(self, trial: str, index: int, value: float) -> None:
        """Tell the last score as the result, as Tune does."""
        time = int(4 * FRACTIONS[index])
        self._search.on_trial_complete(trial, {METRIC: value, "training_iteration": time})

    def best(self) -> None:
        """The highest score."""


_SPEC = """
name: benchmark
train: {{config: surrogate.py, load_from: null, epochs: 1}}
objective: {{metric: NDS, mode: max, noise: 0.002}}
space:
  amplification: {{low: 1.0, high: 2.8}}
  residual_weight: {{low: 0.4, high: 0.9}}
  max_weight_clamp:
    derive: (amplification - residual_weight) / (1 - residual_weight)
  gaussian_sigma: {{low: 0.6, high: 2.0}}
  aqr_lr_mult: {{low: 0.1, high: 10, log: true}}
  transformer_lr_mult: {{low: 0.1, high: 10, log: true}}
constraints: [max_weight_clamp >= 1, max_weight_clamp <= 4]
search: {{sampler: {sampler}, seed: {seed}}}
stopping: {{rule: {rule}, rungs: {rungs}, val_shares: {shares}}}
control: false
budget: {{trials: {trials}}}
resources: {{cpus: 1}}
storage: {{path: {path}}}
"""


class Ours:
    """The engine: its searcher, its stopping rule and its record.

    Args:
        seed: Of the search.
        path: Folder for the record.
        sampler: As in a spec.
        rule: As in a spec.
    """

    def __init__(self, seed: int, path: Path, *, sampler: str = "gp", rule: str = "safe") -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._spec = make_spec(seed, path, sampler=sampler, rule=rule)
        self._ledger = Ledger(sqlite_url(path / "study.db"), "benchmark", mode="max")
        self._searcher = StudySearcher(self._spec, self._ledger, Audience([]), lambda: NUM_SLOTS)
        self._results: dict[str, dict[str, Any]] = {}
        self._tune_ids: dict[str, str] = {}

    def ask(self, trial: str) -> Point:
        """Take the searcher's next task."""
        suggested = self._searcher.suggest(trial)
        if not isinstance(suggested, dict):
            raise RuntimeError(f"the searcher must suggest a point, but said {suggested!r}")
        task = json.loads(suggested[TASK_KEY])
        self._tune_ids[task["label"]] = trial
        params = task["params"]
        return {name: float(params[name]) for name in RANGES}

    def rung(self, trial: str, index: int, value: float) -> bool:
        """Have the score written down and judged."""
        rung = RungResult(
            fraction=FRACTIONS[index],
            val_share=VAL_SHARES[index],
            epoch=FRACTIONS[index],
            step=int(1000 * FRACTIONS[index]),
            metrics={"val/nds": value},
            checkpoint=None,
            seconds=3600 * FRACTIONS[index],
        )
        self._results[trial] = to_result(rung)
        return self._searcher.judge(trial, self._results[trial]).stop

    def end(self, trial: str, index: int, value: float) -> None:
        """End as Tune does: stopped trials by their last result, finished ones by their ending."""
        if index + 1 == len(FRACTIONS):
            ending = Ending(outcome="finished", reason="", seconds=3600.0)
            self._results[trial] = to_result(ending)
        self._searcher.on_trial_complete(trial, self._results.pop(trial))

    def best(self) -> str | None:
        """Its finalist, if it had one: by the model where there is one."""
        chosen = self._searcher.best_so_far(1)
        return self._tune_ids[chosen[0].label]


class _Knob:
    low = high = choices = None
    default = 1.0

    def __init__(self, name: str) -> None:
        self.name = name
        self.keys = (name,)


def make_spec(seed: int, path: Path, *, sampler: str, rule: str) -> SweepSpec:
    """The spec of the benchmark's sweep."""
    text = _SPEC.format(
        seed=seed,
        path=path,
        sampler=sampler,
        rule=rule,
        rungs=list(FRACTIONS),
        shares=list(VAL_SHARES),
        trials=MAX_TRIALS,
    )
    knobs = {name: _Knob(name) for name in (*RANGES, "amplification")}
    return parse_spec(
        text, source="benchmark.yaml", knobs=cast(Any, knobs), has_key=lambda key: False
    )


def all_strategies(folder: Path) -> dict[str, Callable[[int], Strategy]]:
    """The compared strategies by name; each maker takes a seed."""
    return {
        "random, no stopping": Random,
        "Optuna's defaults (TPE, median pruner)": OptunaDefaults,
        "Ray's OptunaSearch with ASHA": RayOptunaAsha,
        OURS: lambda seed: Ours(seed, folder / f"safe{seed}"),
        "ours: GP on A, fast": lambda seed: Ours(seed, folder / f"fast{seed}", rule="fast"),
        "ours: GP on A, none": lambda seed: Ours(seed, folder / f"none{seed}", rule="none"),
        "ours: TPE on A, safe": lambda seed: Ours(seed, folder / f"tpe{seed}", sampler="tpe"),
        "ours: CMA-ES on A, safe": lambda seed: Ours(seed, folder / f"es{seed}", sampler="cmaes"),
    }
