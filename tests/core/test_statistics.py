"""Intervals and tests against scipy and statsmodels, by hand, and by their properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from core.statistics import accuracy_interval, mcnemar_exact, t_quantile, wilson

CONFIDENCES = (0.5, 0.9, 0.95, 0.99, 0.999)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 100_000))
    return draw(st.integers(0, n)), n


class TestWilson:
    def test_by_hand(self):
        # z = 1.959964, z^2 = 3.841459: centre 0.5, half 1.959964 * sqrt(0.025 + 0.0096036) / 1.3841459 = 0.2634069
        assert wilson(5, 10) == pytest.approx((0.2365931, 0.7634069), abs=1e-7)
        assert wilson(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-7)

    @pytest.mark.parametrize("confidence", CONFIDENCES)
    @pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (1, 3), (98, 100), (8_633, 10_000), (10_000, 10_000)])
    def test_against_scipy(self, successes: int, n: int, confidence: float):
        expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert wilson(successes, n, confidence) == pytest.approx(tuple(expected), abs=1e-12)

    @pytest.mark.parametrize("confidence", CONFIDENCES)
    @pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (3, 40), (8_633, 10_000), (26_000, 26_032)])
    def test_against_statsmodels(self, successes: int, n: int, confidence: float):
        expected = proportion_confint(successes, n, 1 - confidence, method="wilson")
        assert wilson(successes, n, confidence) == pytest.approx(expected, abs=1e-12)

    @given(counts(), st.sampled_from(CONFIDENCES))
    def test_lies_in_the_unit_interval_and_holds_the_share(self, count: tuple[int, int], confidence: float):
        low, high = wilson(*count, confidence)
        assert 0 <= low <= count[0] / count[1] <= high <= 1
        assert low < high

    @given(counts(), st.sampled_from(CONFIDENCES))
    def test_failures_mirror_successes(self, count: tuple[int, int], confidence: float):
        low, high = wilson(*count, confidence)
        assert wilson(count[1] - count[0], count[1], confidence) == pytest.approx((1 - high, 1 - low), abs=1e-12)

    @given(counts())
    def test_more_confidence_and_fewer_examples_are_wider(self, count: tuple[int, int]):
        def width(scale: int, confidence: float) -> float:
            low, high = wilson(count[0] * scale, count[1] * scale, confidence)
            return high - low

        assert width(1, 0.9) < width(1, 0.99)
        assert width(4, 0.95) < width(1, 0.95)

    @pytest.mark.parametrize(("successes", "n"), [(0, 0), (0, -1), (3, 2), (-1, 2)])
    def test_counts_that_are_no_share_are_refused(self, successes: int, n: int):
        with pytest.raises(ValueError, match="got"):
            wilson(successes, n)

    @pytest.mark.parametrize("confidence", [0, 1, -0.1, 95, math.nan])
    def test_confidence_is_inside_0_and_1(self, confidence: float):
        with pytest.raises(ValueError, match="confidence must lie inside"):
            wilson(1, 2, confidence)


MANY = 10**14
"""Test images beyond which their number leaves nothing open."""


def interval(values: list[float], images: int = MANY, independent: int | None = None) -> tuple[float, float]:
    total, squares = math.fsum(values), math.fsum(value**2 for value in values)
    return accuracy_interval(len(values), total, squares, images, independent)


class TestAccuracyInterval:
    """Seeds and test images both vary."""

    def test_by_hand(self):
        # mean .2, standard deviation .1, t(2 degrees, 95 %) = 4.302653: half .2484; Wilson of 20/100: .1334 to .2888
        low, high = interval([0.1, 0.2, 0.3], 100)
        assert low == pytest.approx(max(0, 0.2 - math.hypot(0.248414, 0.2 - 0.1333669)), abs=1e-5)
        assert high == pytest.approx(0.2 + math.hypot(0.248414, 0.2888292 - 0.2), abs=1e-5)

    @pytest.mark.parametrize("confidence", CONFIDENCES)
    @pytest.mark.parametrize("degrees", [*range(1, 12), 29, 30, 99, 1000])
    def test_quantile_against_scipy(self, degrees: int, confidence: float):
        assert t_quantile(degrees, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-9)

    def test_quantiles_that_are_known_exactly(self):
        assert t_quantile(1, 0.5) == pytest.approx(1, rel=1e-14)
        assert t_quantile(2, 0.5) == pytest.approx(math.sqrt(2 / 3), rel=1e-14)

    @given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
    def test_of_any_number_of_images_it_is_scipys_t_interval(self, values: list[float]):
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        expected = np.array(stats.t.interval(0.95, len(values) - 1)) * error + np.mean(values)
        assert interval(values) == pytest.approx(tuple(np.clip(expected, 0, 1)), abs=2e-6)  # sums of squares cancel

    @pytest.mark.parametrize("values", [[0.9, 0.92], [0.03, 0.05, 0.02, 0.04, 0.03], [0.1 * k for k in range(10)]])
    def test_against_statsmodels(self, values: list[float]):
        expected = np.clip(DescrStatsW(values).tconfint_mean(0.05), 0, 1)
        assert interval(values) == pytest.approx(tuple(expected), abs=1e-6)

    @given(counts(), st.integers(1, 9))
    def test_equal_seeds_say_what_one_of_them_says(self, count: tuple[int, int], seeds: int):
        share = count[0] / count[1]
        assert interval([share] * seeds, count[1]) == pytest.approx(wilson(*count), abs=1e-6)

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(1, 1000))
    def test_it_lies_in_the_unit_interval_and_holds_the_mean(self, values: list[float], images: int):
        low, high = interval(values, images)
        mean = math.fsum(values) / len(values)
        assert 0 <= low <= mean + 1e-12
        assert mean - 1e-12 <= high <= 1
        assert low < high

    def test_seeds_that_share_their_images_are_no_more_images(self):
        """95 % of intervals hold the expected accuracy; those of the spread over seeds alone by far do not."""
        random, seeds, images, held = np.random.default_rng(1), 5, 100, {"both": 0, "seeds alone": 0}
        for _ in range(400):
            difficulty = random.beta(0.8, 0.4, images)  # expectation 2/3
            values = list((random.random((seeds, images)) < difficulty).mean(axis=1))
            for name, n in (("both", images), ("seeds alone", MANY)):
                low, high = interval(values, n)
                held[name] += low <= 2 / 3 <= high
        assert held["both"] >= 0.93 * 400
        assert held["seeds alone"] < 0.85 * 400

    @pytest.mark.parametrize("models", [2, 3, 5])
    def test_pairs_that_share_models_are_fewer_than_they_seem(self, models: int):
        random, held, pairs = np.random.default_rng(2), {"fewer": 0, "as they seem": 0}, models**2
        for _ in range(400):
            targets, substitutes = random.normal(0, 0.03, (2, models))
            noise = random.normal(0, 0.01, (models, models))
            values = [float(value) for value in (0.5 + targets[:, None] + substitutes + noise).ravel()]
            for name, independent in (("fewer", models), ("as they seem", pairs)):
                low, high = interval(values, MANY, independent)
                held[name] += low <= 0.5 <= high
        assert held["fewer"] >= 0.93 * 400
        assert held["as they seem"] < 0.88 * 400

    def test_one_seed_shows_no_spread(self):
        assert interval([0.93], 100) == pytest.approx(wilson(93, 100))
        assert interval([0.9, 0.96], 100, independent=1) == pytest.approx(wilson(93, 100))

    @pytest.mark.parametrize(("n", "independent"), [(0, None), (2, 0)])
    def test_nothing_has_no_interval(self, n: int, independent: int | None):
        with pytest.raises(ValueError, match="at least one share"):
            accuracy_interval(n, 0, 0, 10, independent)

    def test_no_degrees_of_freedom_are_refused(self):
        with pytest.raises(ValueError, match="at least one degree"):
            t_quantile(0, 0.95)


class TestMcNemar:
    @pytest.mark.parametrize(
        ("b", "c", "p"),
        [(0, 0, 1), (1, 0, 1), (5, 0, 2 / 32), (0, 6, 2 / 64), (4, 4, 1), (2, 5, 2 * (1 + 7 + 21) / 128)],
    )
    def test_by_hand(self, b: int, c: int, p: float):
        assert mcnemar_exact(b, c) == p

    @pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 12), (40, 41), (400, 320), (0, 60)])
    def test_against_statsmodels(self, b: int, c: int):
        expected = mcnemar([[5, b], [c, 9]], exact=True).pvalue
        assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)

    @given(st.integers(0, 400), st.integers(0, 400))
    def test_against_scipy_and_symmetric(self, b: int, c: int):
        expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
        assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)
        assert mcnemar_exact(c, b) == mcnemar_exact(b, c)

    def test_a_whole_test_set_of_disagreements(self):
        assert mcnemar_exact(4_900, 5_100) == pytest.approx(stats.binomtest(4_900, 10_000).pvalue, rel=1e-9)
        assert mcnemar_exact(0, 10_000) == 0  # 2**-9999 is no float

    def test_negative_counts_are_refused(self):
        with pytest.raises(ValueError, match="cannot be negative"):
            mcnemar_exact(-1, 3)
