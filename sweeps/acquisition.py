"""Where a score is worth the most: expected improvement, and its maximum within the constraints.

Source: D. R. Jones, M. Schonlau and W. J. Welch, "Efficient global optimization of expensive
black-box functions", Journal of Global Optimization 13, 1998, equation 15; its logarithm far from
the best: S. Ament et al., "Unexpected improvements to expected improvement for Bayesian
optimization", NeurIPS 2023.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, ndtr

from sweeps.parameters import Choices
from sweeps.space import Space
from sweeps.trials import ParamValue

Floats = NDArray[np.float64]
Point = Mapping[str, ParamValue]
Worth = Callable[[Sequence[Point]], Floats]

NUM_RANDOM = 384
NUM_KEPT = 6
NUM_MOVES = 24
# Widths of the moves around the best candidates, in units of an axis, one round each.
WIDTHS = (0.15, 0.08, 0.04, 0.02, 0.01)
FAR = -5.0


def log_expected_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """The logarithm of the mean of max(0, f - best), f normal. [M]."""
    away = (mean - best) / deviation
    near = np.maximum(away, FAR)
    density = np.exp(-(near**2) / 2) / math.sqrt(2 * math.pi)
    improvement = np.log(density + near * ndtr(near))
    # Further below, the sum cancels: 1 - |z| times Mills' ratio, of which 1 / z^2 stays.
    far = np.minimum(away, FAR)
    mills = math.sqrt(math.pi / 2) * erfcx(-far / math.sqrt(2))
    tail = -(far**2) / 2 - math.log(math.sqrt(2 * math.pi)) + np.log1p(far * mills)
    return cast(Floats, np.where(away > FAR, improvement, tail) + np.log(deviation))


def maximise(
    worth: Worth, space: Space, starts: Sequence[Point], rng: np.random.Generator
) -> dict[str, ParamValue]:
    """The feasible point of the highest worth that was found.

    Random points first, then narrower and narrower moves around the best of them and around the
    starts. Whatever breaks a constraint is not looked at.

    Args:
        worth: Of some points. [M]
        space: Has no conditional axes.
        starts: Promising points, such as the best so far.
        rng: Draws points and moves.
    """
    pool = [space.draw(rng) for _ in range(NUM_RANDOM)]
    for start in starts:
        for width in WIDTHS:
            moves = (moved(space, start, width, rng) for _ in range(NUM_MOVES))
            pool.extend(move for move in moves if space.is_feasible(move))
    values = worth(pool)
    best = _best(pool, values)
    for width in WIDTHS:
        drawn = (moved(space, point, width, rng) for point, _ in best for _ in range(NUM_MOVES))
        moves = [move for move in drawn if space.is_feasible(move)]
        if moves:
            known = [point for point, _ in best]
            values = np.concatenate([[value for _, value in best], worth(moves)])
            best = _best([*known, *moves], values)
    return dict(best[0][0])


def moved(
    space: Space, point: Point, width: float, rng: np.random.Generator
) -> dict[str, ParamValue]:
    """A point near another: some axes moved, by about the width."""
    names = list(space.axes)
    chosen = rng.random(len(names)) < max(0.5, 1 / len(names))
    chosen[rng.integers(len(names))] = True
    result = dict(point)
    for name, is_chosen in zip(names, chosen, strict=True):
        if not is_chosen:
            continue
        axis = space.axes[name]
        if isinstance(axis, Choices):
            result[name] = axis.at(rng.random())
            continue
        unit = axis.unit(point[name]) + width * rng.standard_normal()
        result[name] = axis.at(min(max(unit, 0.0), 1.0))
    return result


def _best(points: Sequence[Point], values: Floats) -> list[tuple[Point, float]]:
    order = np.argsort(-values, kind="stable")[:NUM_KEPT]
    return [(points[i], float(values[i])) for i in order]
