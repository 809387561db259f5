"""Wanda against its definition, in loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from core.engine.anatomy import bind
from core.engine.methods.one_shot import sum_over_tokens
from core.engine.methods.wanda import WandaPruner, lowest_of_rows, wanda_scores
from core.engine.units import Matrix
from core.jobs import methods
from tests import tiny


def reference_removed(weight, inputs, a_row):
    """In each row the `a_row` weights with the smallest |weight| times norm of what they read, ties by index."""
    removed = []
    for row in weight:
        scores = []
        for j, entry in enumerate(row):
            norm = math.sqrt(sum(token[j] ** 2 for token in inputs))
            scores.append(abs(entry) * norm)
        order = sorted(range(len(row)), key=lambda j: (scores[j], j))
        removed.append([j in order[:a_row] for j in range(len(row))])
    return torch.tensor(removed)


def pruner_of(granularity):
    options = methods.Wanda(name="wanda", granularity=granularity)
    return WandaPruner(bind(tiny.llama()), 0.5 if granularity == "unstructured" else None, options)


@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(12, 5), lambda: Conv1D(5, 12)], ids=["linear", "conv1d"])
@pytest.mark.parametrize("a_row", [0, 1, 6, 12])
def test_equals_the_definition(make, a_row):
    torch.manual_seed(a_row)
    module = make()
    module.weight.data = torch.randn_like(module.weight)
    # Inputs of very different norms, so that the weights alone would decide otherwise.
    inputs = torch.randn(3, 7, 12) * torch.logspace(-1, 1, 12)
    weight = Matrix(module).weight
    with torch.no_grad():
        (statistic,) = sum_over_tokens(module, [module], lambda: module(inputs), WandaPruner.statistic)
    removed = pruner_of("unstructured").prune(weight, statistic, a_row * 5)
    expected = reference_removed(weight.tolist(), inputs.flatten(0, 1).tolist(), a_row)
    assert torch.equal(removed, expected)
    if a_row == 6:
        by_magnitude = reference_removed(weight.tolist(), torch.ones(1, 12).tolist(), a_row)
        assert not torch.equal(removed, by_magnitude)


def test_a_pattern_compares_within_its_groups():
    torch.manual_seed(0)
    weight, inputs = torch.randn(5, 12), torch.randn(9, 12) * torch.logspace(-1, 1, 12)
    removed = pruner_of("1:4").prune(weight, WandaPruner.statistic(inputs), 45)
    for start in range(0, 12, 4):
        group = slice(start, start + 4)
        expected = reference_removed(weight[:, group].tolist(), inputs[:, group].tolist(), 3)
        assert torch.equal(removed[:, group], expected)


def test_scores_are_magnitude_times_norm():
    weight = torch.tensor([[-2.0, 3.0], [0.5, 0.0]])
    assert wanda_scores(weight, torch.tensor([10.0, 1.0])).tolist() == [[20.0, 3.0], [5.0, 0.0]]


def test_an_input_that_is_never_there_goes_first():
    scores = wanda_scores(torch.tensor([[100.0, 0.1, 0.2, 0.3]]), torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert lowest_of_rows(scores, 1).tolist() == [[True, False, False, False]]


@given(st.data())
def test_the_lowest_of_rows_equal_the_loop(data):
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    count = data.draw(st.integers(0, rows * columns))
    size = rows * columns
    # Few values, so that there are ties.
    flat = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=size, max_size=size))
    scores = torch.tensor(flat).view(rows, columns)
    removed = lowest_of_rows(scores, count)
    numbers = removed.sum(1).tolist()
    assert sum(numbers) == count
    assert max(numbers) - min(numbers) <= 1
    for row, chosen, number in zip(scores.tolist(), removed.tolist(), numbers, strict=True):
        order = sorted(range(columns), key=lambda j, row=row: (row[j], j))
        assert {j for j in range(columns) if chosen[j]} == set(order[:number])
