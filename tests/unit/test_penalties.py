"""Equations 1 and 2 against loops, their gradients against finite differences, their proximal steps by definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core.engine.anatomy import bind
from core.engine.methods.neuroprune.criterion import NeuroPruneCriterion
from core.engine.methods.neuroprune.penalties import (
    attach_preferentially_,
    connectivity,
    group_sparsity,
    preferential_attachment,
    shrink_,
    sparsify_groups_,
)
from core.jobs.methods import NeuroPrune
from tests import tiny

EPSILON = 1e-4


def sparse_matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Random, with about half of the entries below the connection threshold and one row without connections."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    weight[torch.rand(rows, columns, generator=generator) < 0.5] *= 1e-6
    weight[0] = 0
    return weight


def reference_preferential_attachment(weight: np.ndarray) -> float:
    total = 0.0
    for row in weight:
        connections = 0
        for entry in row:
            if abs(entry) >= EPSILON:
                connections += 1
        share = max(connections, 1) / len(row)
        for entry in row:
            total += abs(entry) / share
    return total


def reference_group_sparsity(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> float:
    total = 0.0
    for i in range(query.shape[1]):
        norm = 0.0
        for matrix in (query, key, value):
            for j in range(matrix.shape[0]):
                norm += abs(matrix[j, i])
        total += norm**0.5
    return total


@pytest.mark.parametrize("seed", range(5))
def test_equation_1_equals_the_loop(seed):
    weight = sparse_matrix(7, 11, seed)
    assert preferential_attachment(weight, EPSILON).item() == pytest.approx(
        reference_preferential_attachment(weight.numpy()), rel=1e-12
    )


@pytest.mark.parametrize("seed", range(5))
def test_equation_2_equals_the_loop(seed):
    matrices = [sparse_matrix(rows, 9, seed + rows) for rows in (6, 4, 4)]
    assert group_sparsity(matrices).item() == pytest.approx(
        reference_group_sparsity(*(m.numpy() for m in matrices)), rel=1e-12
    )


def test_gradient_of_equation_1_treats_connectivity_as_constant():
    weight = sparse_matrix(5, 8, 1).requires_grad_()
    preferential_attachment(weight, EPSILON).backward()
    expected = torch.sign(weight.detach()) / connectivity(weight, EPSILON)[:, None]
    torch.testing.assert_close(weight.grad, expected)


def test_gradient_of_equation_2_matches_finite_differences():
    generator = torch.Generator().manual_seed(3)
    matrices = [(torch.randn(4, 5, generator=generator, dtype=torch.float64) + 3).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *m: group_sparsity(list(m)), matrices)


def test_a_group_that_is_gone_has_no_gradient():
    weight = torch.zeros(3, 2, requires_grad=True)
    group_sparsity([weight]).backward()
    assert weight.grad is not None
    assert bool((weight.grad == 0).all())


@given(arrays(np.float64, (4, 3), elements=st.floats(-2, 2)), st.floats(0, 1))
def test_shrinking_is_the_soft_threshold(entries, amount):
    weight = torch.tensor(entries)
    shrink_(weight, torch.tensor(amount, dtype=torch.float64))
    expected = np.sign(entries) * np.maximum(np.abs(entries) - amount, 0)
    np.testing.assert_allclose(weight.numpy(), expected, atol=1e-15)


def test_poorly_connected_rows_lose_more():
    weight = torch.full((2, 10), 0.5)
    weight[0, 1:] = 0
    attach_preferentially_(weight, 0.01, EPSILON)
    assert weight[0, 0].item() == pytest.approx(0.5 - 0.01 * 10)
    assert weight[1, 0].item() == pytest.approx(0.5 - 0.01)


def test_sparse_groups_lose_more():
    weight = torch.tensor([[0.04, 1.0], [0.0, 1.0]])
    sparsify_groups_([weight], 0.01)
    assert weight[0, 0].item() == pytest.approx(0.04 - 0.01 / (2 * 0.2))
    assert weight[0, 1].item() == pytest.approx(1 - 0.01 / (2 * 2**0.5))


def test_a_proximal_step_lowers_its_penalty():
    weight = sparse_matrix(6, 6, 2)
    before = preferential_attachment(weight, EPSILON)
    attach_preferentially_(weight, 1e-2, EPSILON)
    assert preferential_attachment(weight, EPSILON) < before


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.0), (0.0, 3.0), (2.0, 3.0)])
def test_mlps_shrink_by_alpha_and_attentions_by_beta_times_the_learning_rate(alpha, beta):
    model, expected, epsilon = tiny.bert(), tiny.bert(), 0.2
    options = NeuroPrune(name="neuroprune", alpha=alpha, beta=beta, epsilon=epsilon)
    NeuroPruneCriterion(bind(model), options).shrink(0.01)
    for layer in expected.encoder.layer:
        for dense in (layer.intermediate.dense, layer.output.dense):
            attach_preferentially_(dense.weight, 0.01 * alpha, epsilon)
        attention = layer.attention.self
        sparsify_groups_([part.weight for part in (attention.query, attention.key, attention.value)], 0.01 * beta)
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, msg=name)
