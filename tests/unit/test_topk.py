"""The soft top-k: exact budgets for any scores, gradients against finite differences and automatic differentiation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core.engine.methods.topk import score_gradient, soft_top_k
from core.errors import NumericalError

SCORES = arrays(np.float64, st.integers(1, 12), elements=st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0]))
TEMPERATURES = st.sampled_from([1e-12, 1e-3, 0.1, 1.0, 100.0])


def reference_gates(scores: np.ndarray, budget: float, temperature: float, costs: np.ndarray) -> list[float]:
    """Plain bisection over t; for score-to-temperature ratios that fp64 can hold."""
    low, high = -1e3, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        gates = [1 / (1 + math.exp(-(m / temperature + middle))) for m in scores]
        if sum(c * f for c, f in zip(costs, gates, strict=True)) < budget:
            low = middle
        else:
            high = middle
    return gates


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.97])
def test_gates_equal_plain_bisection(seed, temperature, share):
    generator = np.random.default_rng(seed)
    scores, costs = generator.normal(size=15), generator.uniform(1, 100, size=15)
    budget = share * costs.sum()
    gates = soft_top_k(torch.tensor(scores), budget, temperature, torch.tensor(costs))
    np.testing.assert_allclose(gates, reference_gates(scores, budget, temperature, costs), rtol=1e-9, atol=1e-12)


@given(SCORES, st.floats(0, 1), TEMPERATURES)
def test_so_many_are_kept_whatever_the_scores(scores, share, temperature):
    budget = share * len(scores)
    gates = soft_top_k(torch.tensor(scores), budget, temperature)
    assert gates.sum().item() == pytest.approx(budget, abs=1e-9)
    assert bool(((gates >= 0) & (gates <= 1)).all())


@given(SCORES, st.data(), st.floats(0, 1), TEMPERATURES)
def test_so_much_is_kept_whatever_the_costs(scores, data, share, temperature):
    costs = torch.tensor(data.draw(arrays(np.float64, len(scores), elements=st.floats(1, 1e5))))
    budget = share * float(costs.sum())
    gates = soft_top_k(torch.tensor(scores), budget, temperature, costs)
    assert float((costs * gates).sum()) == pytest.approx(budget, abs=1e-9 * float(costs.sum()))


@given(SCORES, st.floats(0, 1), TEMPERATURES)
@example(np.array([0.0, 0, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1]), 0.28125, 1e-12)  # torch.sigmoid rounds the last otherwise
@example(np.array([0.0, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1]), 0.28125, 1e-12)
def test_the_higher_score_never_has_the_narrower_gate(scores, share, temperature):
    gates = soft_top_k(torch.tensor(scores), share * len(scores), temperature)
    order = np.argsort(scores)
    assert bool((gates[order].diff() >= 0).all())
    for score in set(scores):
        assert len(set(gates[scores == score].tolist())) == 1


@pytest.mark.parametrize("kept", range(6))
def test_cold_gates_are_the_plain_top_k(kept):
    scores = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.2])
    expected = torch.zeros(5, dtype=torch.float64)
    expected[scores.argsort(descending=True)[:kept]] = 1
    torch.testing.assert_close(soft_top_k(scores, kept, 1e-9), expected, rtol=0, atol=1e-9)


def test_differences_that_overflow_decide_all_the_same():
    scores = torch.tensor([3e38, -3e38, 0.0, 3e38])
    assert soft_top_k(scores, 2, 1e-300).tolist() == pytest.approx([1, 0, 0, 1], abs=1e-12)
    assert soft_top_k(scores, 1, 1e-300).tolist() == pytest.approx([0.5, 0, 0, 0.5], abs=1e-12)
    assert soft_top_k(scores, 2.5, 1e-300).tolist() == pytest.approx([1, 0, 0.5, 1], abs=1e-12)


def test_equal_scores_share_the_budget():
    assert soft_top_k(torch.full((8,), 1e30), 3, 1e-30).tolist() == pytest.approx([3 / 8] * 8, abs=1e-12)


def test_all_and_none_are_plain_ones_and_zeros():
    scores, costs = torch.randn(5), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert soft_top_k(scores, 0, 1.0, costs).tolist() == [0.0] * 5
    assert soft_top_k(scores, 15, 1.0, costs).tolist() == [1.0] * 5
    assert soft_top_k(scores, -1e-9, 1.0).tolist() == [0.0] * 5
    assert soft_top_k(scores, 5 + 1e-9, 1.0).tolist() == [1.0] * 5


def test_the_temperature_scales_the_scores():
    scores = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(soft_top_k(scores, 7, 0.25), soft_top_k(4 * scores + 3, 7, 1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(NumericalError, match="not finite"):
        soft_top_k(torch.tensor([0.0, bad, 1.0]), 1, 1.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("by_cost", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_gradient_matches_finite_differences(seed, by_cost, temperature):
    generator = torch.Generator().manual_seed(seed)
    scores, slopes = (torch.randn(9, generator=generator, dtype=torch.float64) for _ in range(2))
    costs = 1 + 9 * torch.rand(9, generator=generator, dtype=torch.float64) if by_cost else None
    budget = 3.6 if costs is None else 0.4 * float(costs.sum())

    def loss(scores: torch.Tensor) -> float:
        return float((slopes * soft_top_k(scores, budget, temperature, costs)).sum())

    gradient = score_gradient(soft_top_k(scores, budget, temperature, costs), slopes, temperature, costs)
    for i, step in enumerate(1e-5 * torch.eye(9, dtype=torch.float64)):
        difference = (loss(scores + step) - loss(scores - step)) / 2e-5
        assert gradient[i].item() == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_gradient_equals_the_formula():
    generator = np.random.default_rng(4)
    gates, slopes, costs, temperature = generator.random(6), generator.normal(size=6), generator.uniform(1, 9, 6), 0.7
    spread = sum(f * (1 - f) * u for f, u in zip(gates, slopes, strict=True))
    scale = sum(c * f * (1 - f) for f, c in zip(gates, costs, strict=True))
    expected = [
        f * (1 - f) / temperature * (u - c * spread / scale) for f, u, c in zip(gates, slopes, costs, strict=True)
    ]
    gradient = score_gradient(*(torch.tensor(part) for part in (gates, slopes)), temperature, torch.tensor(costs))
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


@given(SCORES, st.data())
def test_slopes_in_proportion_to_costs_move_nothing(scores, data):
    """The budget is held: what is the same for every parameter cannot be gained by exchanging units."""
    costs = torch.tensor(data.draw(arrays(np.float64, len(scores), elements=st.floats(1, 100))))
    gates = soft_top_k(torch.tensor(scores), 0.5 * float(costs.sum()), 1.0, costs)
    gradient = score_gradient(gates, 2.5 * costs, 1.0, costs)
    assert float(gradient.abs().max()) <= 1e-9


def test_decided_gates_have_no_gradient():
    gradient = score_gradient(torch.tensor([0.0, 1.0, 1.0]).double(), torch.tensor([3.0, -1.0, 2.0]), 1e-6)
    assert gradient.tolist() == [0.0, 0.0, 0.0]
