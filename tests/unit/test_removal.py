"""Single weights: exact numbers, against plain sorting and loops; what went stays gone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from core.engine.anatomy import bind
from core.engine.methods.base import Criterion
from core.engine.methods.removal import PatternRemoval, WeightRemoval, lowest_of_each, weights_to_remove
from core.engine.plan import WeightMasks
from core.engine.units import Matrix
from core.errors import NumericalError, UnreachableTargetError
from tests import tiny
from tests.pruning import zero_weights


class RandomScores(Criterion):
    """Other scores at every call, so that nothing stays gone by luck; those of the last call are kept."""

    def __init__(self, anatomy, seed=0):
        super().__init__(anatomy)
        self.generator = torch.Generator().manual_seed(seed)
        self.last = {}

    def unit_scores(self, position, kept):
        raise NotImplementedError

    def weight_scores(self, position, kept):
        # The scale differs by matrix, so that a ranking over all of them takes unequal shares.
        self.last[position] = torch.rand(kept.shape, generator=self.generator) * (1 + position)
        return self.last[position]


def move_all(anatomy):
    """What an optimiser does: every weight becomes something else."""
    for matrix in anatomy.matrices:
        matrix.weight.add_(1.0)


def reference_lowest_of_each(scores, count, of):
    chosen = [[False] * len(row) for row in scores]
    for i, row in enumerate(scores):
        for start in range(0, len(row), of):
            order = sorted(range(start, start + of), key=lambda j: (row[j], j))
            for j in order[:count]:
                chosen[i][j] = True
    return chosen


@given(st.data())
def test_the_lowest_of_each_group_equal_the_loop(data):
    of = data.draw(st.integers(1, 5))
    rows, groups, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)), data.draw(st.integers(0, of))
    size = rows * groups * of
    # Few values, so that there are ties.
    flat = data.draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=size, max_size=size))
    scores = torch.tensor(flat).view(rows, groups * of)
    expected = torch.tensor(reference_lowest_of_each(scores.tolist(), count, of))
    assert torch.equal(lowest_of_each(scores, count, of), expected)
    as_stored_by_conv1d = scores.T.contiguous().T
    assert torch.equal(lowest_of_each(as_stored_by_conv1d, count, of), expected)


def test_masks_count_what_goes_once_and_hold_it():
    anatomy = bind(tiny.llama())
    masks = WeightMasks(anatomy)
    chosen = torch.zeros_like(masks.kept[3], dtype=torch.bool)
    chosen[1, 2:6] = True
    masks.remove(3, chosen)
    assert masks.removed == 4
    chosen[1, 7] = True
    masks.remove(3, chosen)
    assert masks.removed == 5
    move_all(anatomy)
    assert zero_weights(anatomy) == 0
    masks.hold()
    assert torch.equal(anatomy.matrices[3].weight == 0, chosen)
    assert zero_weights(anatomy) == 5


def test_masks_go_on_from_a_state():
    anatomy = bind(tiny.llama())
    masks = WeightMasks(anatomy)
    masks.remove(0, torch.ones_like(masks.kept[0]))
    state = masks.state_dict()
    masks.remove(1, torch.ones_like(masks.kept[1]))
    other = bind(tiny.llama())
    restored = WeightMasks(other)
    restored.load_state_dict(state)
    assert restored.removed == restored.kept[0].numel()
    assert not other.matrices[0].weight.any()
    assert other.matrices[1].weight.all()
    restored.remove(2, torch.ones_like(restored.kept[2]))
    assert bool(state["kept"][2].all())


def test_a_matrix_sees_conv1d_the_right_way_round():
    torch.manual_seed(0)
    module = Conv1D(3, 5)
    inputs = torch.randn(2, 5)
    matrix = Matrix(module)
    assert matrix.weight.shape == (3, 5)
    torch.testing.assert_close(inputs @ matrix.weight.T + module.bias, module(inputs))
    matrix.weight[0] = 0
    assert not module.weight[:, 0].any()
    module(inputs).sum().backward()
    assert matrix.gradient.shape == (3, 5)


@settings(max_examples=30)
@given(st.floats(0, 0.95), st.lists(st.floats(0, 1), max_size=4), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_number_of_weights_is_exact_and_they_stay_gone(sparsity, way, floor):
    anatomy = bind(tiny.bert())
    removal = WeightRemoval(anatomy, sparsity, floor)
    criterion = RandomScores(anatomy)
    gone = [torch.zeros_like(kept) for kept in removal.masks.kept]
    count = int(sparsity * anatomy.encoder_parameters + 0.5)
    for reached in [*sorted(way), 1.0]:
        removal.advance(reached, criterion)
        move_all(anatomy)
        removal.hold()
        assert zero_weights(anatomy) == pytest.approx(reached * count, abs=1)
        for before, kept in zip(gone, removal.masks.kept, strict=True):
            assert not (before & kept).any()
        gone = [~kept for kept in removal.masks.kept]
    assert zero_weights(anatomy) == removal.masks.removed == count
    assert removal.sparsity == removal.final_sparsity == count / anatomy.encoder_parameters


def test_without_a_floor_the_lowest_of_all_go():
    anatomy = bind(tiny.bert())
    removal = WeightRemoval(anatomy, 0.4, floor=0.0)
    criterion = RandomScores(anatomy)
    removal.advance(1.0, criterion)
    ranked = sorted(
        (score, position, index)
        for position, scores in criterion.last.items()
        for index, score in enumerate(scores.flatten().tolist())
    )
    expected = {(position, index) for _, position, index in ranked[: removal.count]}
    removed = {
        (position, index)
        for position, kept in enumerate(removal.masks.kept)
        for index in (~kept).flatten().nonzero().flatten().tolist()
    }
    assert removed == expected


@pytest.mark.parametrize("floor", [0.5, 1.0])
def test_every_matrix_keeps_its_floor(floor):
    anatomy = bind(tiny.bert())
    removal = WeightRemoval(anatomy, 0.7, floor)
    removal.advance(1.0, RandomScores(anatomy))
    weights = sum(kept.numel() for kept in removal.masks.kept)
    even = 1 - removal.count / weights
    kept_shares = [float(kept.float().mean()) for kept in removal.masks.kept]
    assert min(kept_shares) >= floor * even - 1 / 1024
    # The scores are so unequal that the floor decides about the lowest.
    assert min(kept_shares) == pytest.approx(floor * even, abs=2 / 1024)


def test_more_than_all_weights_cannot_go():
    anatomy = bind(tiny.bert())
    weights = sum(matrix.weight.numel() for matrix in anatomy.matrices)
    assert weights_to_remove(anatomy, weights / anatomy.encoder_parameters) == weights
    with pytest.raises(UnreachableTargetError, match=r"with all weights of the projections gone it would be 0\.9"):
        WeightRemoval(anatomy, 0.999, 0.5)


def test_scores_that_are_not_finite_are_refused():
    anatomy = bind(tiny.bert())

    class Broken(RandomScores):
        def weight_scores(self, position, kept):
            return torch.full(kept.shape, float("nan"))

    with pytest.raises(NumericalError):
        WeightRemoval(anatomy, 0.5, 0.5).advance(1.0, Broken(anatomy))


@pytest.mark.parametrize(("stay", "of"), [(2, 4), (1, 4), (1, 2), (4, 8)])
def test_a_pattern_holds_in_every_group_and_grows_by_one(stay, of):
    anatomy = bind(tiny.llama())
    removal = PatternRemoval(anatomy, stay, of)
    criterion = RandomScores(anatomy)
    gone = [torch.zeros_like(kept) for kept in removal.masks.kept]
    for step in range(of - stay + 1):
        removal.advance(step / (of - stay), criterion)
        move_all(anatomy)
        removal.hold()
        for before, matrix, kept in zip(gone, anatomy.matrices, removal.masks.kept, strict=True):
            groups = (matrix.weight == 0).reshape(-1, of).sum(1)
            assert set(groups.tolist()) == {step}
            assert not (before & kept).any()
        gone = [~kept for kept in removal.masks.kept]
    weights = sum(matrix.weight.numel() for matrix in anatomy.matrices)
    expected = weights * (of - stay) / of / anatomy.encoder_parameters
    assert removal.sparsity == removal.final_sparsity == pytest.approx(expected)


def test_a_pattern_that_does_not_divide_is_refused():
    with pytest.raises(UnreachableTargetError, match="pattern of 5 cannot be laid over a projection with 32 inputs"):
        PatternRemoval(bind(tiny.llama()), 2, 5)


@pytest.mark.parametrize("make", [lambda a: WeightRemoval(a, 0.5, 0.5), lambda a: PatternRemoval(a, 2, 4)])
def test_removals_go_on_from_a_state(make):
    anatomy, other = bind(tiny.llama()), bind(tiny.llama())
    removal, restored = make(anatomy), make(other)
    removal.advance(0.5, RandomScores(anatomy))
    restored.load_state_dict(removal.state_dict())
    assert restored.sparsity == removal.sparsity > 0
    removal.advance(1.0, RandomScores(anatomy, seed=1))
    restored.advance(1.0, RandomScores(other, seed=1))
    for one, two in zip(anatomy.matrices, other.matrices, strict=True):
        assert torch.equal(one.weight, two.weight)
