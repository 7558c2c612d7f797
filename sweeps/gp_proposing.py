"""Where the next trial lies, by the sweep's own Gaussian process.

The first trials spread over the space. Each later one lies where its full score is expected to
improve most on the best expected score so far. All rungs of all trials count, also of those that
run; a running trial counts as if it came out as expected, so that trials at once spread.
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from sweeps.acquisition import log_expected_improvement, maximise
from sweeps.belief import Fitter, soundness
from sweeps.evidence import Axes, Evidence, gather
from sweeps.gaussian_process import FULL
from sweeps.parameters import Choices
from sweeps.space import Space
from sweeps.spec import SweepSpec
from sweeps.trials import ParamValue, TrialRecord

Floats = NDArray[np.float64]
Point = Mapping[str, ParamValue]

# Known points take the place of trials that spread over the space, but for so many.
MIN_STARTUP = 3
# The first trials keep away from the ends of the ranges, which lie next to nothing else.
SPREAD = 0.75
BLOCK, MAX_BLOCKS = 64, 64
# A point that is no likelier to end well than this is left alone while there are others.
DOUBT = 0.5
NUM_STARTS = 2
# Worth less than anything else. The same training again has the same seed, and tells nothing.
DOUBTFUL, TRIED = -1e3, -math.inf


class GpProposer:
    """Proposes points by expected improvement.

    Args:
        spec: The sweep.
        space: Its space, without conditional axes.
        trials: The trials so far, known points among them.
        controls: Trainings with AQR off.
    """

    def __init__(
        self,
        spec: SweepSpec,
        space: Space,
        trials: Sequence[TrialRecord],
        controls: Sequence[TrialRecord] = (),
    ) -> None:
        self._spec, self._space, self._axes = spec, space, Axes(space)
        self._trials = {trial.number: trial for trial in trials}
        self._controls = {control.number: control for control in controls}
        # After a resume it must not repeat itself.
        self._rng = np.random.default_rng([spec.seed, len(trials)])
        self._asked: dict[int, Point] = {}
        self._fitter = Fitter()
        self._design = _Design(space, spec.seed)

    def propose(self, number: int) -> dict[str, ParamValue]:
        """The point of the trial of this number, the next one."""
        searched = [trial for trial in self._trials.values() if trial.role == "search"]
        begun = [trial.sampled for trial in searched if trial.outcome is None]
        running = [*begun, *self._asked.values()]
        evidence = gather(self._spec, list(self._trials.values()), list(self._controls.values()))
        place = len(searched) + len(self._asked)
        if place < self._num_startup() or not evidence.scores:
            point = self._first(place, searched, running)
        else:
            point = self._search(evidence, searched, running)
        self.enter(number, point)
        return point

    def enter(self, number: int, params: Point) -> None:
        """Take in a point that was not drawn."""
        self._asked[number] = params

    def observe(self, trial: TrialRecord) -> None:
        """Take in what a trial has scored so far, or how it ended."""
        if trial.role == "control":
            self._controls[trial.number] = trial
        else:
            self._trials[trial.number] = trial
            self._asked.pop(trial.number, None)

    def _num_startup(self) -> int:
        if self._spec.search.startup is not None:
            return self._spec.search.startup
        num_known = sum(trial.role == "known" for trial in self._trials.values())
        return max(MIN_STARTUP, self._spec.startup - num_known)

    def _first(
        self, place: int, searched: Sequence[TrialRecord], running: Sequence[Point]
    ) -> dict[str, ParamValue]:
        """A point of the design that is not known to go wrong, nor tried."""
        sound = soundness(self._axes, searched)
        tried = [*(trial.sampled for trial in searched), *running]
        for point in self._design.after(place):
            likely = sound.probability(self._axes.features([point]))[0] > DOUBT
            if likely and point not in tried:
                return point
        return self._space.draw(self._rng)

    def _search(
        self, evidence: Evidence, searched: Sequence[TrialRecord], running: Sequence[Point]
    ) -> dict[str, ParamValue]:
        process = self._fitter.fit(evidence, self._axes)
        # What runs is expected to finish, so there is nothing to gain twice where it lies.
        finished = [score.point for score in evidence.scores if score.source == FULL]
        compared = [*finished, *running]
        features = self._axes.features(compared) if compared else process.data.points
        best = float(process.predict(features)[0].max())
        if running:
            process = process.believe(self._axes.features(running))
        sound = soundness(self._axes, searched)
        tried = {_key(trial.sampled) for trial in searched} | {_key(point) for point in running}

        def worth(points: Sequence[Point]) -> Floats:
            features = self._axes.features(points)
            mean, deviation = process.predict(features)
            values = log_expected_improvement(mean, deviation, best)
            probability = sound.probability(features)
            values += np.log(probability) + np.where(probability > DOUBT, 0.0, DOUBTFUL)
            return values + np.where([_key(point) in tried for point in points], TRIED, 0.0)

        observed = [score.point for score in evidence.scores if score.is_own] + list(running)
        starts = list({_key(point): point for point in observed}.values())
        if starts:
            mean, _ = process.predict(self._axes.features(starts))
            starts = [starts[i] for i in np.argsort(-mean)[:NUM_STARTS]]
        return maximise(worth, self._space, starts, self._rng)


def _inner(unit: float) -> float:
    """A coordinate nearer to the middle of its range."""
    return 0.5 + SPREAD * (float(unit) - 0.5)


def _key(point: Point) -> tuple[tuple[str, ParamValue], ...]:
    return tuple(sorted(point.items()))


class _Design:
    """Feasible points that spread over the space: a scrambled Sobol sequence."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._source = qmc.Sobol(len(space.axes), rng=np.random.default_rng([seed]))
        self._points: list[dict[str, ParamValue]] = []

    def after(self, place: int) -> "list[dict[str, ParamValue]]":
        """Some points of the sequence, from a place on; none where the space is all but empty."""
        blocks = 0
        while len(self._points) < place + BLOCK // 4 and blocks < MAX_BLOCKS:
            blocks += 1
            for units in cast(Floats, self._source.random(BLOCK)):
                point = {
                    name: axis.at(float(unit) if isinstance(axis, Choices) else _inner(unit))
                    for (name, axis), unit in zip(self._space.axes.items(), units, strict=True)
                }
                if self._space.is_feasible(point):
                    self._points.append(point)
        return self._points[place:]
