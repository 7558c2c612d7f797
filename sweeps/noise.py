"""The noise of one score: declared, or measured on repeats; and what it says about differences.

Few repeats tell a standard deviation badly, and two of them may agree by chance. So a measured
variance is drawn towards a prior one, each weighed by its degrees of freedom, and limits widen by
Student's t for the degrees of freedom that the estimate has.

Source: G. K. Smyth, "Linear models and empirical Bayes methods for assessing differential
expression", Statistical Applications in Genetics and Molecular Biology 3(1), 2004, equation for the
posterior variance; here with a fixed prior. The prior is the noise that the users report for NDS.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, variance
from typing import Literal

from scipy.stats import t as student

PRIOR_DEVIATION = 0.002
PRIOR_FREEDOM = 1.0
# Every limit here is the one of two standard deviations of a normal value: 95.4 % lie inside.
SIGMAS = 2.0
COVERAGE = NormalDist().cdf(SIGMAS) - NormalDist().cdf(-SIGMAS)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What is known about the noise of one score.

    Attributes:
        deviation: Standard deviation of one score.
        degrees_of_freedom: How well it is known; infinite if it was declared.
        source: Assumed: nothing was declared and nothing has been repeated yet.
    """

    deviation: float
    degrees_of_freedom: float = math.inf
    source: Literal["declared", "measured", "assumed"] = "declared"

    @property
    def sigmas(self) -> float:
        """Standard deviations to the limits: 2, or more where the noise is known badly."""
        if math.isinf(self.degrees_of_freedom):
            return SIGMAS
        return float(student.ppf(NormalDist().cdf(SIGMAS), self.degrees_of_freedom))

    def threshold(self, first: int = 1, second: int = 1) -> float:
        """Largest difference that counts as a tie, of means over so many scores each."""
        return self.sigmas * self.deviation * math.sqrt(1 / first + 1 / second)

    def half_width(self, count: int) -> float:
        """From the mean of so many scores to the limits of its interval."""
        return self.sigmas * self.deviation / math.sqrt(count)


def pooled_noise(groups: Iterable[Sequence[float]]) -> Noise | None:
    """Noise from scores of equal trials as they are, one group for each set of parameters.

    Returns:
        None if no group has two scores.
    """
    repeated = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in repeated)
    if freedom == 0:
        return None
    squares = sum(variance(group) * (len(group) - 1) for group in repeated)
    return Noise(
        deviation=math.sqrt(squares / freedom), degrees_of_freedom=freedom, source="measured"
    )


def shrunk_noise(groups: Iterable[Sequence[float]]) -> Noise:
    """The same, drawn towards the prior; the prior itself if no group has two scores."""
    measured = pooled_noise(groups)
    prior = PRIOR_FREEDOM * PRIOR_DEVIATION**2
    if measured is None:
        return Noise(deviation=PRIOR_DEVIATION, degrees_of_freedom=PRIOR_FREEDOM, source="assumed")
    freedom = PRIOR_FREEDOM + measured.degrees_of_freedom
    squares = prior + measured.degrees_of_freedom * measured.deviation**2
    return Noise(
        deviation=math.sqrt(squares / freedom), degrees_of_freedom=freedom, source="measured"
    )


def selection_gain(num_trials: int, noise: float) -> float:
    """By how much the best of equal trials is expected to lie above their mean, from noise alone.

    Blom's approximation of the largest of `num_trials` normal values.
    """
    if num_trials < 2:
        return 0.0
    return noise * NormalDist().inv_cdf((num_trials - 0.375) / (num_trials + 0.25))
