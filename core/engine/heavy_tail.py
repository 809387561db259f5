"""Whether degrees have a heavy tail: the method of Clauset, Shalizi & Newman 2009 (https://arxiv.org/abs/0706.1062).

A discrete power law is fitted by maximum likelihood above an x_min chosen by the Kolmogorov-Smirnov distance, and
compared on the same tail with an exponential and a lognormal by Vuong's likelihood ratio test. A heavy tail is, by
definition, one that falls off more slowly than any exponential.
"""

from dataclasses import dataclass
from math import erfc, log, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_ndtr, zeta

LEAST_TAIL = 50
"""Entries that a tail must have; the source finds estimates from fewer unreliable."""
LEAST_SPAN = 10
"""How many times its smallest entry a tail's largest must be: over less than a decade any curve looks straight."""
SIGNIFICANCE = 0.1
"""The source's: above this p the data do not tell two distributions apart."""
CANDIDATES = 100
"""Values of x_min that are tried at most, spread evenly over those that occur."""
EXPONENTS = (1.01, 20.0)

Array = NDArray[np.float64]
Verdict = Literal[
    "too few",
    "not heavy-tailed",
    "too narrow",
    "undecided",
    "heavy-tailed, power law not excluded",
    "heavy-tailed, lognormal",
]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Vuong's test: a positive ratio favours the power law, and below `SIGNIFICANCE` it is to be believed."""

    log_likelihood_ratio: float
    p_value: float

    @property
    def sign(self) -> int:
        """1 where the power law is better, -1 where the other is, 0 where the data do not tell."""
        return int(np.sign(self.log_likelihood_ratio)) if self.p_value < SIGNIFICANCE else 0


@dataclass(frozen=True, slots=True)
class Tail:
    """A fitted power law: p(x) proportional to x ** -exponent for whole x from `x_min` on."""

    exponent: float
    x_min: int
    x_max: int
    entries: int
    """How many degrees are in the tail."""
    distance: float
    """Kolmogorov-Smirnov, 0 … 1."""
    exponential: Comparison
    lognormal: Comparison

    @property
    def verdict(self) -> Verdict:
        """In words. A power law that is not excluded is not shown either: the test only compares."""
        if self.exponential.sign < 0:
            return "not heavy-tailed"
        if self.x_max < LEAST_SPAN * self.x_min:
            return "too narrow"
        if self.exponential.sign == 0:
            return "undecided"
        return "heavy-tailed, lognormal" if self.lognormal.sign < 0 else "heavy-tailed, power law not excluded"


def fit_tail(degrees: NDArray[np.int64]) -> Tail | None:
    """Fit the tail of whole numbers [entries]; those below 1 are left out.

    Returns:
        None where there are fewer than `LEAST_TAIL`, or all are equal.
    """
    values, counts = np.unique(degrees[degrees > 0], return_counts=True)
    above = counts[::-1].cumsum()[::-1]
    starts = np.flatnonzero((above >= LEAST_TAIL) & (values < values.max(initial=0)))
    if not len(starts):
        return None
    starts = np.unique(starts[np.linspace(0, len(starts) - 1, CANDIDATES).astype(int)])
    fits = [(*_power_law(values[start:], counts[start:]), start) for start in starts]
    distance, exponent, start = min(fits)
    x, n = values[start:].astype(float), counts[start:]
    power_law = -exponent * np.log(x) - log(zeta(exponent, x[0]))
    return Tail(
        exponent,
        int(x[0]),
        int(x[-1]),
        int(n.sum()),
        distance,
        _compare(power_law, _exponential(x, n), n),
        _compare(power_law, _lognormal(x, n), n),
    )


def _power_law(values: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance and exponent of the best discrete power law from `values[0]` on."""
    x_min, total = values[0], counts.sum()
    mean_log = (counts * np.log(values)).sum() / total
    best = minimize_scalar(lambda a: a * mean_log + log(zeta(a, x_min)), bounds=EXPONENTS, method="bounded").x
    model = 1 - zeta(best, values + 1) / zeta(best, x_min)
    return float(np.abs(counts.cumsum() / total - model).max()), float(best)


def _exponential(x: Array, counts: NDArray[np.int64]) -> Array:
    """Log-likelihood of each value under the best discrete exponential from x[0] on (a geometric distribution)."""
    rate = log(1 + 1 / ((counts * x).sum() / counts.sum() - x[0]))
    density: Array = log(1 - np.exp(-rate)) - rate * (x - x[0])
    return density


def _lognormal(x: Array, counts: NDArray[np.int64]) -> Array:
    """Log-likelihood of each value under the best lognormal from x[0] on, rounded to whole numbers."""
    logs = np.log(x)
    mean = float((counts * logs).sum() / counts.sum())
    deviation = sqrt(float((counts * (logs - mean) ** 2).sum() / counts.sum()))

    def density(parameters: Array) -> Array:
        center, width = parameters[0], np.exp(parameters[1])
        # Upper tails, in logarithms: far out a difference of distribution functions is zero in floating point.
        lower = log_ndtr((center - np.log(x - 0.5)) / width)
        upper = log_ndtr((center - np.log(x + 0.5)) / width)
        found: Array = lower + np.log(-np.expm1(np.minimum(upper - lower, -1e-300))) - lower[0]
        return found

    best = minimize(
        lambda parameters: -(counts * density(parameters)).sum(),
        (mean, log(max(deviation, 0.02))),
        method="Nelder-Mead",
        bounds=((mean - 50, mean + 5), (log(0.01), log(20))),
    )
    return density(best.x)


def _compare(ours: Array, other: Array, counts: NDArray[np.int64]) -> Comparison:
    """Vuong's test of two log-likelihoods a value, each value occurring `counts` times."""
    total, differences = counts.sum(), ours - other
    ratio = float((counts * differences).sum())
    variance = float((counts * (differences - ratio / total) ** 2).sum() / total)
    p_value = erfc(abs(ratio) / sqrt(2 * total * variance)) if variance > 0 else 1.0
    return Comparison(ratio, p_value)
