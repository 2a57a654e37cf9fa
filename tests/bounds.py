"""Statistics of tests: how far right code may stray, derived from a stated rate of false alarm.

Every assertion fails right code with a probability of at most `false_alarm`. A test that makes k assertions divides
its rate by k.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import binom, chi2, norm

FALSE_ALARM = 1e-6  # chance that one assertion fails although the code is right


def assert_binomial(successes: int, *, n: int, p: float, false_alarm: float = FALSE_ALARM) -> None:
    """`successes` in `n` independent trials of probability `p`: fails when it is in neither half of the tails."""
    low, high = binom.ppf(false_alarm / 2, n, p), binom.isf(false_alarm / 2, n, p)
    assert low <= successes <= high, f"{successes} of {n}; expected {low:.0f} to {high:.0f}"


def hoeffding_band(width: float, n: int, false_alarm: float = FALSE_ALARM) -> float:
    """The mean of n independent values in an interval of `width` strays further than this that rarely."""
    return width * math.sqrt(math.log(2 / false_alarm) / (2 * n))


def dkw_band(n: int, false_alarm: float = FALSE_ALARM) -> float:
    """The empirical distribution function of n values strays further than this that rarely.

    Dvoretzky, Kiefer and Wolfowitz (1956) with the constant of Massart (1990).
    """
    return math.sqrt(math.log(2 / false_alarm) / (2 * n))


def assert_distribution(
    values: Sequence[float] | np.ndarray, cdf: Callable[[np.ndarray], np.ndarray], *, false_alarm: float = FALSE_ALARM
) -> None:
    """Independent `values` follow the continuous distribution function `cdf` (Kolmogorov and Smirnov's distance)."""
    expected = cdf(np.sort(np.asarray(values, dtype=np.float64).ravel()))
    n = len(expected)
    steps = np.arange(n + 1) / n
    distance = max((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    assert distance <= dkw_band(n, false_alarm), f"distance {distance:.2e}; expected {dkw_band(n, false_alarm):.2e}"


def assert_normal_moments(
    values: Sequence[float] | np.ndarray, *, mean: float = 0.0, std: float = 1.0, false_alarm: float = FALSE_ALARM
) -> None:
    """Mean and variance of independent normal `values`, by their exact laws (normal and chi-squared)."""
    standardised = (np.asarray(values, dtype=np.float64).ravel() - mean) / std
    n, rate = len(standardised), false_alarm / 2
    band = norm.isf(rate / 2) / math.sqrt(n)
    assert abs(standardised.mean()) <= band, f"mean {standardised.mean():.2e} std; expected within {band:.2e}"
    low, high = chi2.ppf(rate / 2, n - 1) / (n - 1), chi2.isf(rate / 2, n - 1) / (n - 1)
    variance = standardised.var(ddof=1)
    assert low <= variance <= high, f"variance {variance:.4f}; expected {low:.4f} to {high:.4f}"
