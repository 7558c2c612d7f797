"""A stand-in for fine-tuning AQR-CMT, with the structure that the recorded runs have.

What it assumes, all of it assumption but the numbers marked *recorded*:

- Five axes: clamp c in [1, 4], residual weight r in [0.4, 0.9], sigma in [0.6, 2.0], learning-rate
  multipliers of AQR and of the decoder in [0.1, 10]. The score sees c and r through the gain
  A = r + c (1 - r), and weakly through r alone; the best sigma and the best AQR rate move with A.
- The score is best at one place, drawn anew for every seed, falls off smoothly and saturates. It
  is scaled so that random points spread by 0.006 NDS (*recorded*: the runs differ by that much).
- A score carries noise of 0.002 NDS on all scenes (*recorded* as the users' own estimate), and
  sqrt(2) times that on half of them.
- Scores at a quarter and at half of the budget correlate with the end by 0.7 and 0.85, noise
  included: what they deviate by is a smooth function of the axes, for fast learning rates and
  strong gains look better early than they are.
- A trial takes 18.4 GPU-hours (*recorded*: 2.3 h on 8 GPUs); three run at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]
Point = Mapping[str, float]

SPREAD, NOISE = 0.006, 0.002
FRACTIONS, VAL_SHARES = (0.25, 0.5, 1.0), (0.5, 0.5, 1.0)
CORRELATIONS = (0.7, 0.85)
TRIAL_GPU_HOURS, NUM_SLOTS = 18.4, 3
RANGES: Mapping[str, tuple[float, float, bool]] = {
    "max_weight_clamp": (1.0, 4.0, False),
    "residual_weight": (0.4, 0.9, False),
    "gaussian_sigma": (0.6, 2.0, False),
    "aqr_lr_mult": (0.1, 10.0, True),
    "transformer_lr_mult": (0.1, 10.0, True),
}
_NUM_WAVES, _SATURATION = 8, 2.0


@dataclass(frozen=True, kw_only=True)
class _Waves:
    """A smooth random function of the unit cube with mean 0 and standard deviation about 1."""

    frequencies: Floats  # [K, D]
    phases: Floats  # [K]

    def __call__(self, units: Floats) -> Floats:
        """[N, D] -> [N]."""
        angles = units @ self.frequencies.T + self.phases
        return np.cos(angles).sum(axis=1) * np.sqrt(2 / len(self.phases))


class Surrogate:
    """One seed's landscape.

    Args:
        seed: Draws the optimum, the weights of the axes and the early deviations.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng((seed, 0))
        self._seed = seed
        self._gain = rng.uniform(1.05, 1.75)
        self._best = rng.uniform(0.15, 0.85, size=len(RANGES))
        self._weights = rng.dirichlet(np.full(5, 2.0)) * 5
        self._couplings = rng.uniform(-0.4, 0.4, size=2)
        self._early = [
            _Waves(
                frequencies=rng.normal(scale=2.0, size=(_NUM_WAVES, len(RANGES))),
                phases=rng.uniform(0, 2 * np.pi, size=_NUM_WAVES),
            )
            for _ in CORRELATIONS
        ]
        sample = rng.random((20_000, len(RANGES)))
        self._scale = SPREAD / self._raw(sample).std()
        self.optimum = self._maximum(sample)

    def score(self, point: Point) -> float:
        """The NDS without noise at the full budget, relative to a fixed level."""
        return float(self._scale * self._raw(_units(point)[None])[0])

    def observe(self, point: Point, rung: int, draw: int) -> float:
        """A measured NDS.

        Args:
            point: By the names of RANGES.
            rung: Index into FRACTIONS.
            draw: Number of the training; the same one sees the same noise.
        """
        noise = NOISE / np.sqrt(VAL_SHARES[rung])
        value = self.score(point)
        if rung < len(CORRELATIONS):
            total = SPREAD**2 * (1 / CORRELATIONS[rung] ** 2 - 1)
            deviation = np.sqrt(total - noise**2)
            value += deviation * self._early[rung](_units(point)[None])[0]
        rng = np.random.default_rng((self._seed, 1, draw, rung))
        return float(value + noise * rng.standard_normal())

    def regret(self, point: Point) -> float:
        """How far the true score lies below the best there is, NDS."""
        return self.optimum - self.score(point)

    def _raw(self, units: Floats) -> Floats:
        """[N, D] -> [N]."""
        clamp = 1 + 3 * units[:, 0]
        residual = 0.4 + 0.5 * units[:, 1]
        gain = (residual + clamp * (1 - residual) - self._gain) / 0.35
        sigma = (units[:, 2] - self._best[2] - self._couplings[0] * np.tanh(gain)) / 0.5
        aqr_rate = (units[:, 3] - self._best[3] - self._couplings[1] * np.tanh(gain)) / 0.4
        rate = (units[:, 4] - self._best[4]) / 0.4
        share = (units[:, 1] - self._best[1]) / 1.0
        squares = np.stack([gain, share, sigma, aqr_rate, rate], axis=1) ** 2
        return _SATURATION * (np.exp(-(squares @ self._weights) / (2 * _SATURATION * 2)) - 1)

    def _maximum(self, sample: Floats) -> float:
        starts = sample[np.argsort(self._raw(sample))[-5:]]
        found = [
            minimize(lambda x: -self._raw(x[None])[0], start, bounds=[(0, 1)] * len(RANGES))
            for start in starts
        ]
        return float(self._scale * max(-result.fun for result in found))


def _units(point: Point) -> Floats:
    values = []
    for name, (low, high, log) in RANGES.items():
        value = point[name]
        values.append(
            np.log(value / low) / np.log(high / low) if log else (value - low) / (high - low)
        )
    return np.array(values)
