"""Intervals and tests for shares of correct answers, exact and without scipy."""

from collections.abc import Sequence
from functools import lru_cache
from math import cos, fsum, hypot, isfinite, pi, sin, sqrt, tan
from statistics import NormalDist, fmean, stdev


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of the share successes / n, without continuity correction.

    Wilson 1927: the shares p with |successes / n - p| <= z * sqrt(p (1 - p) / n). A mean over seeds need not be whole.

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


def accuracy_interval(
    n: int, total: float, squares: float, images: int, independent: int | None = None
) -> tuple[float, float]:
    """Return the 95 % interval of a recipe's accuracy from n shares, by their sum and that of their squares.

    The seed varies, and the choice of the test images: each side is the root of the sum of squares of the t interval's
    half and of Wilson's, the latter for `images` of one seed, since seeds share their images and have no more of them
    together. `independent` of the shares are (default: all): pairs of T targets and S substitutes repeat the smaller of
    T and S times, and the t interval is that of so many values. One shows no spread, and has Wilson's interval.

    Raises:
        ValueError: n, images or independent is below 1.
    """
    repetitions = n if independent is None else independent
    if n < 1 or repetitions < 1:
        raise ValueError(f"an interval needs at least one share, got {repetitions} of {n}")
    mean = min(1.0, max(0.0, total / n))
    ends = wilson(mean * images, images)
    if repetitions == 1:
        return ends
    variance = max(0.0, squares - total * total / n) / (n - 1)
    half = t_quantile(repetitions - 1) * sqrt(variance / repetitions)
    low, high = (hypot(half, mean - end) for end in ends)
    return max(0.0, mean - low), min(1.0, mean + high)


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
