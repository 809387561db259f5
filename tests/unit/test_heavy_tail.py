"""Fits of heavy tails: exponents found again, thin tails refused, likelihoods against sums written out."""

from math import erfc, exp, log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import lognorm

from core.engine.heavy_tail import LEAST_TAIL, Comparison, Tail, _lognormal, fit_tail


def drawn(weights: np.ndarray, first: int, count: int, seed: int = 0) -> np.ndarray:
    """Whole numbers from `first` on, with these probabilities up to a factor."""
    generator = np.random.default_rng(seed)
    return generator.choice(np.arange(first, first + len(weights)), count, p=weights / weights.sum())


def power_law(exponent: float, first: int, count: int, seed: int = 0) -> np.ndarray:
    return drawn(np.arange(first, first + 1_000_000, dtype=float) ** -exponent, first, count, seed)


def geometric(rate: float, count: int) -> np.ndarray:
    return drawn(np.exp(-rate * np.arange(4000)), 1, count)


@pytest.mark.parametrize("exponent", [1.8, 2.5, 3.2])
@pytest.mark.parametrize("first", [1, 6])
def test_a_power_law_is_found_again(exponent, first):
    tail = fit_tail(power_law(exponent, first, 8000))
    assert tail.exponent == pytest.approx(exponent, abs=0.15)
    assert tail.x_min <= 3 * first
    assert tail.verdict == "heavy-tailed, power law not excluded"


def test_what_lies_below_the_power_law_is_left_out_of_it():
    body = np.random.default_rng(1).integers(1, 30, 4000)
    tail = fit_tail(np.concatenate([body, power_law(2.5, 30, 4000)]))
    assert 25 <= tail.x_min <= 60
    assert tail.exponent == pytest.approx(2.5, abs=0.2)


@pytest.mark.parametrize(
    ("degrees", "verdict"),
    [
        (geometric(0.01, 8000), "too narrow"),
        (np.random.default_rng(0).binomial(768, 0.998, 8000), "not heavy-tailed"),
        (np.random.default_rng(0).poisson(60, 8000), "not heavy-tailed"),
        (np.random.default_rng(0).integers(0, 769, 8000), "not heavy-tailed"),
    ],
    ids=["geometric", "dense", "poisson", "uniform"],
)
def test_thin_tails_are_not_called_heavy(degrees, verdict):
    assert fit_tail(degrees).verdict == verdict


@pytest.mark.parametrize("count", [0, 1, LEAST_TAIL - 1])
def test_too_few_are_not_fitted(count):
    assert fit_tail(power_law(2.5, 1, count)) is None


def test_equal_degrees_are_not_fitted():
    assert fit_tail(np.full(500, 7)) is None


def test_neurons_without_connections_change_nothing():
    degrees = power_law(2.5, 3, 2000)
    assert fit_tail(np.concatenate([np.zeros(500, dtype=np.int64), degrees])) == fit_tail(degrees)


def test_the_fit_is_the_likeliest_and_its_distance_the_largest_gap():
    """Both against sums over the support, cut where what is left is below 1e-7."""
    degrees = power_law(3.0, 4, 600)
    tail = fit_tail(degrees)
    sample = sorted(int(x) for x in degrees if x >= tail.x_min)
    assert (tail.entries, tail.x_max) == (len(sample), sample[-1])
    support = np.arange(tail.x_min, 200_000, dtype=float)

    def likelihood(exponent: float) -> float:
        normaliser = log((support**-exponent).sum())
        return sum(-exponent * log(x) - normaliser for x in sample)

    assert all(likelihood(tail.exponent) >= likelihood(tail.exponent + d) - 1e-6 for d in (-0.05, -0.01, 0.01, 0.05))
    probabilities = support**-tail.exponent
    cumulated = probabilities.cumsum() / probabilities.sum()
    gaps = [abs(sum(y <= x for y in sample) / len(sample) - cumulated[x - tail.x_min]) for x in set(sample)]
    assert tail.distance == pytest.approx(max(gaps), abs=1e-4)


def test_the_exponential_is_compared_by_vuongs_test():
    """The formulas of the source's appendix C, entry by entry."""
    degrees = power_law(2.8, 5, 500)
    tail = fit_tail(degrees)
    sample = [int(x) for x in degrees if x >= tail.x_min]
    normaliser = (np.arange(tail.x_min, 500_000, dtype=float) ** -tail.exponent).sum()
    rate = log(1 + 1 / (sum(sample) / len(sample) - tail.x_min))
    ours = [-tail.exponent * log(x) - log(normaliser) for x in sample]
    other = [log(1 - exp(-rate)) - rate * (x - tail.x_min) for x in sample]
    differences = [a - b for a, b in zip(ours, other, strict=True)]
    mean = sum(differences) / len(sample)
    variance = sum((d - mean) ** 2 for d in differences) / len(sample)
    assert tail.exponential.log_likelihood_ratio == pytest.approx(sum(differences), rel=1e-3)
    expected = erfc(abs(sum(differences)) / sqrt(2 * len(sample) * variance))
    assert tail.exponential.p_value == pytest.approx(expected, rel=1e-2)


def test_the_lognormal_is_the_likeliest_of_a_grid():
    sample = np.exp(np.random.default_rng(0).normal(3.0, 0.8, 3000)).round()
    values, counts = np.unique(sample[sample >= 10], return_counts=True)

    def log_density(center: float, width: float) -> np.ndarray:
        def below(x: np.ndarray | float) -> np.ndarray:
            return lognorm.cdf(x, width, scale=exp(center))

        return np.log((below(values + 0.5) - below(values - 0.5)) / (1 - below(9.5)))

    best = (counts * _lognormal(values, counts)).sum()
    grid = [(c, w) for c in np.linspace(2.5, 3.5, 21) for w in np.linspace(0.5, 1.1, 25)]
    nearest = max(grid, key=lambda point: (counts * log_density(*point)).sum())
    assert nearest == pytest.approx((3.0, 0.8), abs=0.15)
    assert best >= (counts * log_density(*nearest)).sum()
    np.testing.assert_allclose(_lognormal(values, counts), log_density(*nearest), atol=0.15)


@pytest.mark.parametrize(
    ("x_max", "exponential", "lognormal", "words"),
    [
        (99, (9, 0.01), (-5, 0.01), "too narrow"),
        (99, (9, 0.5), (-5, 0.01), "too narrow"),
        (99, (-9, 0.01), (-5, 0.01), "not heavy-tailed"),
        (100, (-9, 0.01), (5, 0.01), "not heavy-tailed"),
        (100, (9, 0.5), (-5, 0.01), "undecided"),
        (100, (9, 0.01), (-5, 0.01), "heavy-tailed, lognormal"),
        (100, (9, 0.01), (-5, 0.5), "heavy-tailed, power law not excluded"),
    ],
)
def test_verdicts(x_max, exponential, lognormal, words):
    tail = Tail(2.5, 10, x_max, 80, 0.01, Comparison(*exponential), Comparison(*lognormal))
    assert tail.verdict == words


@st.composite
def degrees_with_a_tail(draw):
    """Some of any size, and enough that thin out."""
    some = draw(st.lists(st.integers(0, 4000), max_size=100))
    exponent, seed = draw(st.floats(1.5, 4.0)), draw(st.integers(0, 2**32 - 1))
    tail = power_law(exponent, draw(st.integers(1, 9)), draw(st.integers(2 * LEAST_TAIL, 300)), seed)
    return [*some, *tail.tolist()]


@settings(max_examples=60)
@given(degrees_with_a_tail())
def test_any_degrees_with_a_tail_get_a_sound_fit(degrees):
    tail = fit_tail(np.array(degrees, dtype=np.int64))
    assert tail is not None
    assert tail.entries == sum(x >= tail.x_min for x in degrees) >= LEAST_TAIL
    assert tail.x_max == max(degrees) > tail.x_min
    assert 0 <= tail.distance <= 1
    assert all(0 <= c.p_value <= 1 for c in (tail.exponential, tail.lognormal))


@given(st.lists(st.integers(0, 4000), max_size=LEAST_TAIL - 1))
def test_a_few_degrees_have_no_tail(degrees):
    assert fit_tail(np.array(degrees, dtype=np.int64)) is None
