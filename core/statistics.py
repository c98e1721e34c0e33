"""Intervals and tests for shares of correct answers, exact and without scipy."""

from collections.abc import Sequence
from functools import lru_cache
from math import cos, fsum, isfinite, pi, sin, sqrt, tan
from statistics import NormalDist, fmean, stdev


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of the share successes / n, without continuity correction.

    Wilson 1927: the shares p with |successes / n - p| <= z * sqrt(p (1 - p) / n).

    Raises:
        ValueError: n is below 1, successes is not in 0..n, or confidence is not inside (0, 1).
    """
    _check_confidence(confidence)
    if n < 1:
        raise ValueError(f"a share needs n of at least 1, got {n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..{n}, got {successes}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def prediction_interval(
    values: Sequence[float], confidence: float = 0.95, variance: float = 0.0
) -> tuple[float, float] | None:
    """Return the interval in which one further run falls, from one value per seed; None for fewer than two.

    Student's t with the seeds' own spread: mean +- t * sqrt(s**2 (1 + 1/k) + variance). `variance` is what the further
    run has on top, such as that of having been evaluated on other images.

    Raises:
        ValueError: a value is NaN or infinite, variance is negative, or confidence is not inside (0, 1).
    """
    _check_confidence(confidence)
    if not all(isfinite(value) for value in values) or variance < 0:
        raise ValueError("a prediction needs finite values and a variance of at least 0")
    k = len(values)
    if k < 2:
        return None
    half = t_quantile(k - 1, confidence) * sqrt(stdev(values) ** 2 * (1 + 1 / k) + variance)
    return fmean(values) - half, fmean(values) + half


def moments_interval(n: int, total: float, squares: float) -> tuple[float, float]:
    """Return Student's 95 % t interval of the mean of n values, one per seed, by their sum and that of their squares.

    Raises:
        ValueError: there are fewer than two values.
    """
    if n < 2:
        raise ValueError(f"an interval of a mean needs at least two values, got {n}")
    mean = total / n
    half = t_quantile(n - 1) * sqrt(max(0.0, squares - total * mean) / (n - 1) / n)
    return mean - half, mean + half


@lru_cache(maxsize=4096)
def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """Return the t with P(|T| <= t) = confidence for Student's T of a whole number of degrees of freedom.

    Bisects the closed form of Abramowitz and Stegun 26.7.3 and 26.7.4 in the angle atan(t / sqrt(degrees)).

    Raises:
        ValueError: degrees is below 1, or confidence is not inside (0, 1).
    """
    _check_confidence(confidence)
    if degrees < 1:
        raise ValueError(f"Student's t needs at least one degree of freedom, got {degrees}")
    low, high = 0.0, pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _t_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return sqrt(degrees) * tan(high)


def _t_probability(angle: float, degrees: int) -> float:
    """Return P(|T| <= sqrt(degrees) * tan(angle))."""
    odd = degrees % 2
    term = cos(angle) if odd else 1.0
    terms: list[float] = []
    for k in range(1 + odd, degrees, 2):
        terms.append(term)
        term *= cos(angle) ** 2 * k / (k + 1)
    series = sin(angle) * fsum(terms)
    return (angle + series) * 2 / pi if odd else series


def mcnemar_exact(b: int, c: int) -> float:
    """Return the two-sided exact p-value that two models err equally often, from the discordant pairs alone.

    `b` examples only the first model gets right, `c` only the second: twice the smaller binomial tail at 1/2, at
    most 1 (McNemar 1947; the exact test of statsmodels and R). Whole numbers to the last division, so no rounding.

    Raises:
        ValueError: b or c is negative.
    """
    if b < 0 or c < 0:
        raise ValueError(f"numbers of discordant pairs cannot be negative, got {b} and {c}")
    n, ways, tail = b + c, 1, 0
    for k in range(min(b, c) + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie inside (0, 1), got {confidence}")
