"""SparseGPT against the optimal brain surgeon: one weight, one row and one explicit inverse at a time."""

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from core.engine.anatomy import bind
from core.engine.methods.allocation import lowest
from core.engine.methods.sparsegpt import SparseGPTPruner, compensate_, inverse_factor
from core.engine.units import Matrix
from core.errors import NumericalError
from core.jobs import methods
from tests import tiny

ROWS, COLUMNS = 5, 12


def problem(seed=0, rows=ROWS, columns=COLUMNS, tokens=40):
    """Weights [rows, columns] and inputs [tokens, columns] that depend on each other, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mixing
    return weight, inputs


def factor_of(inputs):
    """With so little damping that undamped solutions are comparable."""
    return inverse_factor(inputs.T @ inputs, 1e-13)


def fixed(mask):
    """Choose what a mask says, in groups of one column."""
    return lambda saliency, column: mask[:, column : column + 1]


def loss(pruned, weight, inputs):
    return float((inputs @ (pruned - weight).T).square().sum())


def reference(weight, hessian, choose, width):
    """The algorithm for one weight after the other, with an explicit inverse for each.

    When column c is visited, the columns before it are fixed. Taking w_c away costs w_c^2 / (2 [H^-1]_cc), where H is
    that of the columns from c on; the later weights then move by H_FF^-1 H_Fc w_c.
    """
    weight = weight.copy()
    rows, columns = weight.shape
    removed = np.zeros_like(weight, dtype=bool)
    for c in range(columns):
        if c % width == 0:
            group = range(c, min(c + width, columns))
            saliency = np.zeros((rows, len(group)))
            for place, j in enumerate(group):
                inverse = np.linalg.inv(hessian[j:, j:])
                for row in range(rows):
                    saliency[row, place] = weight[row, j] ** 2 / inverse[0, 0]
            removed[:, group] = choose(saliency, c // width)
        for row in range(rows):
            if removed[row, c]:
                later = slice(c + 1, columns)
                if c + 1 < columns:
                    weight[row, later] += np.linalg.solve(hessian[later, later], hessian[later, c] * weight[row, c])
                weight[row, c] = 0
    return weight, removed


def half_of_group(saliency):
    """Half of all entries, the lowest."""
    order = sorted((value, i, j) for (i, j), value in np.ndenumerate(saliency))
    chosen = np.zeros_like(saliency, dtype=bool)
    for _, i, j in order[: saliency.size // 2]:
        chosen[i, j] = True
    return chosen


def two_of_four(saliency):
    chosen = np.zeros_like(saliency, dtype=bool)
    for i, row in enumerate(saliency):
        for j in sorted(range(4), key=lambda j, row=row: (row[j], j))[:2]:
            chosen[i, j] = True
    return chosen


@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0])
def test_the_factor_is_of_the_damped_inverse(damping):
    _, inputs = problem()
    hessian = inputs.T @ inputs
    upper = inverse_factor(hessian, damping)
    assert torch.equal(upper, upper.triu())
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(COLUMNS, dtype=torch.float64)
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(damped))


def test_rows_of_the_factor_belong_to_the_columns_that_are_left():
    _, inputs = problem()
    hessian = inputs.T @ inputs
    upper = factor_of(inputs)
    for c in range(COLUMNS):
        inverse = torch.linalg.inv(hessian[c:, c:])
        assert float(upper[c, c] ** 2) == pytest.approx(float(inverse[0, 0]), rel=1e-6)
        torch.testing.assert_close(upper[c, c:] / upper[c, c], inverse[0] / inverse[0, 0], rtol=1e-6, atol=1e-8)


def test_one_weight_a_row_in_the_first_column_is_the_optimal_brain_surgeons_update():
    """And that of all least-squares solutions without this weight."""
    weight, inputs = problem()
    inverse = torch.linalg.inv(inputs.T @ inputs)
    expected = weight - weight[:, :1] / inverse[0, 0] * inverse[0]
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[:, 0] = True
    pruned = weight.clone()
    compensate_(pruned, factor_of(inputs), fixed(mask), 1, 4)
    torch.testing.assert_close(pruned, expected, rtol=1e-6, atol=1e-8)
    refit = torch.linalg.lstsq(inputs[:, 1:], inputs @ weight.T).solution.T
    torch.testing.assert_close(pruned[:, 1:], refit, rtol=1e-6, atol=1e-8)
    cost = (weight[:, 0].square() / inverse[0, 0]).sum()
    assert loss(pruned, weight, inputs) == pytest.approx(float(cost), rel=1e-6)


@pytest.mark.parametrize("first", [2, 7, 11])
def test_the_first_columns_gone_the_others_are_refitted(first):
    weight, inputs = problem()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[:, :first] = True
    pruned = weight.clone()
    compensate_(pruned, factor_of(inputs), fixed(mask), 1, 5)
    refit = torch.linalg.lstsq(inputs[:, first:], inputs @ weight.T).solution.T
    torch.testing.assert_close(pruned[:, first:], refit, rtol=1e-6, atol=1e-8)
    assert not pruned[:, :first].any()


def test_the_last_column_has_nothing_to_its_right():
    weight, inputs = problem()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[:, -1] = True
    pruned = weight.clone()
    compensate_(pruned, factor_of(inputs), fixed(mask), 1, 4)
    torch.testing.assert_close(pruned, weight.masked_fill(mask, 0))


@pytest.mark.parametrize("groups_a_block", [1, 2, 3, 100])
@pytest.mark.parametrize(("width", "choose"), [(4, half_of_group), (4, two_of_four), (5, half_of_group)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_one_weight_at_a_time(groups_a_block, width, choose, seed):
    weight, inputs = problem(seed)
    expected, expected_removed = reference(
        weight.numpy(), (inputs.T @ inputs).numpy(), lambda saliency, _: choose(saliency), width
    )
    pruned = weight.clone()
    removed = compensate_(
        pruned,
        factor_of(inputs),
        lambda saliency, _: torch.from_numpy(choose(saliency.numpy())),
        width,
        groups_a_block,
    )
    assert torch.equal(removed, torch.from_numpy(expected_removed))
    torch.testing.assert_close(pruned, torch.from_numpy(expected), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("column", [0, 5, 11])
def test_one_weight_a_row_never_loses_more_than_the_mask_alone(column):
    """Here it is a theorem: the columns to the right are where the loss is least, and where they were is one choice."""
    weight, inputs = problem()
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[:, column] = True
    pruned = weight.clone()
    compensate_(pruned, factor_of(inputs), fixed(mask), 1, 4)
    masked = loss(weight.masked_fill(mask, 0), weight, inputs)
    assert loss(pruned, weight, inputs) <= masked * (1 + 1e-9)
    assert torch.equal(pruned[:, :column], weight[:, :column])


@pytest.mark.parametrize("seed", range(5))
def test_half_of_a_layer_loses_far_less_than_the_mask_alone_and_no_less_than_the_best_refit(seed):
    weight, inputs = problem(seed, rows=32, columns=64, tokens=300)
    pruned = weight.clone()
    removed = compensate_(pruned, factor_of(inputs), lambda s, _: lowest(s.flatten(), s.numel() // 2).view_as(s), 16, 1)
    best = torch.zeros_like(weight)
    for row, gone in enumerate(removed):
        best[row, ~gone] = torch.linalg.lstsq(inputs[:, ~gone], inputs @ weight[row]).solution
    masked = loss(weight.masked_fill(removed, 0), weight, inputs)
    assert loss(best, weight, inputs) <= loss(pruned, weight, inputs) * (1 + 1e-9)
    assert loss(pruned, weight, inputs) < 0.7 * masked


def test_a_single_row_and_a_single_column():
    weight, inputs = problem(rows=1, columns=1)
    pruned = weight.clone()
    removed = compensate_(pruned, factor_of(inputs), lambda s, _: torch.ones_like(s, dtype=torch.bool), 1, 1)
    assert removed.tolist() == [[True]]
    assert pruned.tolist() == [[0.0]]


def pruner_of(granularity="unstructured", block_size=128, damping=0.01):
    options = methods.SparseGPT(name="sparsegpt", granularity=granularity, block_size=block_size, damping=damping)
    return SparseGPTPruner(bind(tiny.llama()), 0.5 if granularity == "unstructured" else None, options)


@pytest.mark.parametrize("block_size", [1, 5, 12, 128])
@pytest.mark.parametrize("count", [0, 1, 29, 30, 59, 60])
def test_the_number_is_exact_whatever_the_block(block_size, count):
    weight, inputs = problem()
    weight = weight.float()
    removed = pruner_of(block_size=block_size).prune(weight, inputs.T @ inputs, count)
    assert int(removed.sum()) == count
    assert torch.equal(weight == 0, removed)


@pytest.mark.parametrize(("granularity", "block_size"), [("unstructured", 128), ("2:4", 6)])
def test_conv1d_is_pruned_like_linear(granularity, block_size):
    weight, inputs = problem()
    linear, convolution = torch.nn.Linear(COLUMNS, ROWS), Conv1D(ROWS, COLUMNS)
    linear.weight.data = weight.float()
    convolution.weight.data = weight.float().T.contiguous()
    for module in (linear, convolution):
        pruner_of(granularity, block_size).prune(Matrix(module).weight, inputs.T @ inputs, 30)
    torch.testing.assert_close(Matrix(convolution).weight, Matrix(linear).weight)
    assert int((linear.weight == 0).sum()) == 30


def test_an_input_that_is_never_there_goes_first_and_moves_nothing():
    weight, inputs = problem()
    inputs[:, 3] = 0
    weight[:, 3] = 100
    pruned = weight.clone()
    removed = pruner_of().prune(pruned, inputs.T @ inputs, ROWS)
    expected = torch.zeros_like(removed)
    expected[:, 3] = True
    assert torch.equal(removed, expected)
    torch.testing.assert_close(pruned, weight.masked_fill(expected, 0))


def test_without_any_input_the_smallest_weights_go():
    weight, _ = problem()
    pruned = weight.clone()
    removed = pruner_of().prune(pruned, torch.zeros(COLUMNS, COLUMNS, dtype=torch.float64), 20)
    assert torch.equal(removed, lowest(weight.abs().flatten(), 20).view_as(weight))
    torch.testing.assert_close(pruned, weight.masked_fill(removed, 0))


def test_fewer_tokens_than_inputs_are_enough_with_damping_and_refused_without():
    weight, inputs = problem(tokens=4)
    hessian = inputs.T @ inputs
    pruned = weight.clone()
    pruner_of(damping=0.01).prune(pruned, hessian, 20)
    assert bool(pruned.isfinite().all())
    with pytest.raises(NumericalError, match="cannot be inverted") as error:
        inverse_factor(hessian, 1e-300)
    assert error.value.param == "/method/damping"
