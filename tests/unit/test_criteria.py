"""What the methods think matters least, against loops over single weights and finite differences of the loss."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.engine.anatomy import bind
from core.engine.methods import Schedule, build_pruner
from core.engine.methods.importance import DECAY, ImportanceCriterion
from core.engine.methods.l1 import L1Criterion
from core.engine.methods.magnitude import MagnitudeCriterion
from core.engine.methods.neuroprune.criterion import SALIENCY_DECAY, NeuroPruneCriterion
from core.engine.methods.random import RandomCriterion
from core.engine.plan import Masks, WeightMasks
from core.jobs.methods import NeuroPrune, Smart
from tests import tiny, tiny_families
from tests.pruning import every_storage, loss_of, plant_twins

KEPT_SHARE = 0.7


def some_kept(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < KEPT_SHARE


def belongings(units):
    """For every unit, positions of all its entries: pairs of a parameter and a flat index; counted, not sliced."""
    found = [[] for _ in range(units.count)]
    for part in units.slices:
        shape = part.parameter.shape
        for flat in range(part.parameter.numel()):
            unit, place = divmod(np.unravel_index(flat, shape)[part.stored_dim] - part.layout.start, part.layout.stride)
            if 0 <= unit < units.count and place < part.layout.block:
                found[unit].append((part.parameter, flat))
    return found


def as_multiples_of_the_mean(scores, kept):
    return np.array(scores) / np.mean([s for s, k in zip(scores, kept.tolist(), strict=True) if k])


def entry(tensor, flat):
    return float(tensor.detach().flatten()[flat])


@every_storage
@pytest.mark.parametrize("kind", ["heads", "neurons", "inputs"])
@pytest.mark.parametrize(("criterion", "power"), [(MagnitudeCriterion, 2), (lambda a: L1Criterion(a, 0.1), 1)])
def test_magnitude_of_a_unit_is_the_norm_of_all_that_belongs_to_it(make, kind, criterion, power):
    anatomy = bind(make())
    position = anatomy.positions(kind)[1]
    units, kept = anatomy.units[position], some_kept(anatomy.units[position].count)
    norms = [sum(abs(entry(p, i)) ** power for p, i in owned) ** (1 / power) for owned in belongings(units)]
    found = criterion(anatomy).unit_scores(position, kept)
    np.testing.assert_allclose(found.numpy(), as_multiples_of_the_mean(norms, kept), rtol=1e-5)


@every_storage
@pytest.mark.parametrize("criterion", [MagnitudeCriterion, lambda anatomy: L1Criterion(anatomy, 0.1)])
def test_magnitude_of_a_weight_is_its_absolute_value(make, criterion):
    anatomy = bind(make())
    for position, matrix in enumerate(anatomy.matrices):
        kept = some_kept(matrix.weight.shape)
        expected = as_multiples_of_the_mean([abs(w) for w in matrix.weight.flatten().tolist()], kept.flatten())
        found = criterion(anatomy).weight_scores(position, kept)
        np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-5)


def test_l1_shrinks_every_projection_weight_alike():
    model = tiny.llama()
    anatomy = bind(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    L1Criterion(anatomy, 0.5).shrink(0.1)
    projections = {id(matrix.parameter) for matrix in anatomy.matrices}
    for parameter, old in zip(model.parameters(), before, strict=True):
        amount = 0.05 if id(parameter) in projections else 0.0
        expected = np.sign(old.numpy()) * np.maximum(np.abs(old.numpy()) - amount, 0)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, atol=1e-7)


@every_storage
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_importance_of_a_unit_mixes_magnitude_and_sensitivity(make, share, kind):
    """Two batches: the sensitivity is their decaying average."""
    model = make()
    anatomy = bind(model)
    position = anatomy.positions(kind)[2]
    criterion = ImportanceCriterion(anatomy, share, by_weight=False)
    units, kept = anatomy.units[position], some_kept(anatomy.units[position].count)
    owned = belongings(units)
    sensitivity = np.zeros(units.count)
    for step in range(2):
        model.zero_grad()
        loss_of(model, step).backward()
        criterion.observe()
        now = [sum(abs(entry(p, i) * entry(p.grad, i)) for p, i in entries) for entries in owned]
        sensitivity = DECAY * sensitivity + (1 - DECAY) * np.array(now)
    magnitude = [sum(abs(entry(p, i)) for p, i in entries) for entries in owned]
    expected = (1 - share) * as_multiples_of_the_mean(magnitude, kept)
    expected += share * as_multiples_of_the_mean(sensitivity, kept)
    np.testing.assert_allclose(criterion.unit_scores(position, kept).numpy(), expected, rtol=1e-4)


@every_storage
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_importance_of_a_weight_mixes_magnitude_and_sensitivity(make, share):
    model = make()
    anatomy = bind(model)
    criterion = ImportanceCriterion(anatomy, share, by_weight=True)
    loss_of(model, 0).backward()
    criterion.observe()
    for position, matrix in enumerate(anatomy.matrices):
        kept = some_kept(matrix.weight.shape)
        weights, slopes = matrix.weight.flatten().tolist(), matrix.gradient.flatten().tolist()
        expected = (1 - share) * as_multiples_of_the_mean([abs(w) for w in weights], kept.flatten())
        sensitivity = [abs(w * g) for w, g in zip(weights, slopes, strict=True)]
        expected += share * as_multiples_of_the_mean(sensitivity, kept.flatten())
        np.testing.assert_allclose(criterion.weight_scores(position, kept).flatten(), expected, rtol=1e-3, atol=1e-6)


def scaled_loss(model, units, unit, factor):
    """The loss with all weights that pass a unit on (or, for in-rows, read it) multiplied by `factor`."""
    held = [part.parameter.detach().clone() for part in units.gates]
    with torch.no_grad():
        for part in units.gates:
            part.by_unit(part.parameter.data)[unit] *= factor
        loss = float(loss_of(model, 0))
        for part, old in zip(units.gates, held, strict=True):
            part.parameter.copy_(old)
    return loss


@every_storage
@pytest.mark.parametrize("kind", ["heads", "neurons", "inputs"])
def test_saliency_is_the_squared_slope_of_the_loss_in_a_units_scale(make, kind):
    """A step as large as fp32 needs: Llama's norms compute in it whatever the model's type."""
    model = make().double()
    anatomy = bind(model)
    position = anatomy.positions(kind)[1]
    criterion = NeuroPruneCriterion(anatomy, NeuroPrune(name="neuroprune", redundancy=False, in_rows=0.1))
    loss_of(model, 0).backward()
    criterion.observe()
    units, h = anatomy.units[position], 1e-2
    slopes = [
        (scaled_loss(model, units, unit, 1 + h) - scaled_loss(model, units, unit, 1 - h)) / (2 * h)
        for unit in range(units.count)
    ]
    found = (criterion.saliency[position] / (1 - SALIENCY_DECAY)).sqrt()
    np.testing.assert_allclose(found, np.abs(slopes), rtol=1e-3, atol=5e-5)
    scores = criterion.unit_scores(position, some_kept(units.count))
    np.testing.assert_allclose(scores.numpy(), found.numpy() * math.sqrt(1 - SALIENCY_DECAY), rtol=1e-5)


@every_storage
@pytest.mark.parametrize("kind", ["heads", "neurons", "inputs"])
def test_without_importance_the_poorly_connected_matter_least(make, kind):
    """In-strength times out-strength; an in-row has no output of its own."""
    anatomy = bind(make())
    position = anatomy.positions(kind)[0]
    units, kept = anatomy.units[position], some_kept(anatomy.units[position].count)
    worth = []
    for unit in range(units.count):
        read = sum(float(part.by_unit(part.parameter.detach())[unit].abs().sum()) for part in units.reads)
        written = sum(float(part.by_unit(part.parameter.detach())[unit].abs().sum()) for part in units.writes)
        worth.append(read * (written if units.writes else 1))
    options = NeuroPrune(name="neuroprune", redundancy=False, importance=False)
    found = NeuroPruneCriterion(anatomy, options).unit_scores(position, kept)
    np.testing.assert_allclose(found.numpy(), as_multiples_of_the_mean(worth, kept), rtol=1e-5)


@every_storage
def test_neuroprune_weighs_single_weights_by_what_they_attach_to(make):
    epsilon = 0.1
    anatomy = bind(make())
    criterion = NeuroPruneCriterion(anatomy, NeuroPrune(name="neuroprune", granularity="unstructured", epsilon=epsilon))
    for index, layer in enumerate(anatomy.layers):
        attention, mlp = layer.attentions[0], layer.mlps[0]
        group = [
            sum(abs(float(w)) for matrix in attention.projections for w in matrix.weight[:, i])
            for i in range(attention.inputs.count)
        ]
        reading = [weight for matrix in mlp.inputs for weight in matrix.weight.split(mlp.units.count)]
        writing = mlp.output.weight
        degree = []
        for neuron in range(mlp.units.count):
            shares = [np.mean([abs(float(w)) >= epsilon for w in weight[neuron]]) for weight in reading]
            shares.append(np.mean([abs(float(w)) >= epsilon for w in writing[:, neuron]]))
            degree.append(np.mean(shares))
        nothing, writes = np.ones((1, 1)), np.array(degree)[None]
        reads = np.tile(np.array(degree), len(reading) // len(mlp.inputs))[:, None]
        factors = [np.sqrt(group)[None]] * len(attention.projections) + [nothing] + [reads] * len(mlp.inputs) + [writes]
        for place, (matrix, factor) in enumerate(zip(layer.matrices, factors, strict=True)):
            scores = (np.abs(matrix.weight.numpy()) * factor).flatten()
            kept = some_kept(matrix.weight.shape)
            found = criterion.weight_scores(index * len(layer.matrices) + place, kept)
            expected = as_multiples_of_the_mean(scores, kept.flatten())
            np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-4)


@every_storage
def test_a_redundant_head_goes_first_and_is_merged(make):
    """The least important of all goes only where none is redundant, or where that is not asked for."""
    gone = {}
    for redundancy in (True, False):
        model, ids = make(), torch.arange(4, 24).view(2, 10)
        anatomy = bind(model)
        plant_twins(anatomy, 1, [1, 3])
        sparsity = anatomy.layers[0].attentions[0].units.cost / anatomy.encoder_parameters
        options = NeuroPrune(name="neuroprune", redundancy=redundancy, theta=1e-4, heads_kept=11, alpha=0, beta=0)
        pruner = build_pruner(anatomy, options, sparsity, Schedule(1, 0.0, 0.0), seed=0)
        for position in anatomy.positions("heads"):
            pruner.criterion.saliency[position] = torch.tensor([0.1, 1.0, 1.0, 1.0])
        before = model(ids).logits
        pruner.step(1, 0.0)
        change = float((model(ids).logits - before).detach().abs().max())
        gone[redundancy] = pruner.masks.removed("heads"), pruner.merged, change <= 1e-6
    assert gone[True] == ([0, 1, 0], [(3, 1, 3)], True)
    assert gone[False] == ([1, 0, 0], [], False)


def test_no_head_is_merged_into_one_that_goes_with_it_or_is_gone():
    anatomy = bind(tiny.bert_classifier())
    plant_twins(anatomy, 1, [1, 3])
    criterion = NeuroPruneCriterion(anatomy, NeuroPrune(name="neuroprune", theta=1e-4))
    position, kept = anatomy.positions("heads")[1], torch.ones(4, dtype=torch.bool)
    assert criterion.hand_over(position, torch.tensor([1, 3]), kept) == []
    assert criterion.hand_over(position, torch.tensor([1]), kept) == [(1, 3)]
    assert criterion.hand_over(position, torch.tensor([1]), torch.arange(4) < 3) == []


def test_a_neuron_that_lost_all_connections_does_not_end_in_nan():
    anatomy = bind(tiny.llama())
    for matrix in anatomy.layers[0].matrices:
        matrix.weight.zero_()
    criterion = NeuroPruneCriterion(anatomy, NeuroPrune(name="neuroprune", granularity="unstructured"))
    for position, matrix in enumerate(anatomy.layers[0].matrices):
        assert (criterion.weight_scores(position, some_kept(matrix.weight.shape)) == 0).all()


def test_chance_is_the_same_every_time_and_another_with_another_seed():
    anatomy = bind(tiny.bert())
    one, again, other = (RandomCriterion(anatomy, seed) for seed in (1, 1, 2))
    for position, units in enumerate(anatomy.units):
        kept = torch.ones(units.count, dtype=torch.bool)
        assert torch.equal(one.unit_scores(position, kept), again.unit_scores(position, kept))
        assert torch.equal(one.unit_scores(position, kept), one.unit_scores(position, kept))
        assert not torch.equal(one.unit_scores(position, kept), other.unit_scores(position, kept))


@pytest.mark.parametrize(
    "kind", [("bert", "masked-lm"), ("albert", "masked-lm"), ("t5", "seq2seq"), ("mixtral", "causal-lm")]
)
@pytest.mark.parametrize(
    "observed",
    [
        lambda anatomy: NeuroPruneCriterion(anatomy, NeuroPrune(name="neuroprune", in_rows=0.1)),
        lambda anatomy: ImportanceCriterion(anatomy, 0.5, by_weight=False),
        lambda anatomy: ImportanceCriterion(anatomy, 0.5, by_weight=True),
    ],
)
def test_observing_does_not_leave_the_device(kind, observed):
    """A copy to the CPU makes a GPU wait, at every step; of what is on the meta device there is none to be had."""
    model = tiny_families.model(*kind).to("meta")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    criterion = observed(bind(model))
    criterion.observe()
    (averages,) = criterion.state_dict().values()
    assert {average.device.type for average in averages} == {"meta"}


@pytest.mark.parametrize("kind", [("bert", "masked-lm"), ("t5", "seq2seq")])
def test_what_was_observed_is_taken_up_on_the_device_of_the_weights(kind):
    """A checkpoint may come from a machine without a GPU."""
    state = NeuroPruneCriterion(bind(tiny_families.model(*kind)), NeuroPrune(name="neuroprune")).state_dict()
    criterion = NeuroPruneCriterion(bind(tiny_families.model(*kind).to("meta")), NeuroPrune(name="neuroprune"))
    criterion.load_state_dict(state)
    criterion.observe()
    assert {saliency.device.type for saliency in criterion.saliency} == {"meta"}


def test_removed_weights_are_taken_up_on_the_device_of_the_weights():
    masks = WeightMasks(bind(tiny.bert()))
    masks.remove(1, some_kept(masks.kept[1].shape))
    there = WeightMasks(bind(tiny.bert().to("meta")))
    there.load_state_dict(masks.state_dict())
    assert there.removed == masks.removed > 0
    assert {kept.device.type for kept in there.kept} == {"meta"}


def test_removed_units_are_held_on_the_device_of_the_weights():
    anatomy = bind(tiny.bert().to("meta"))
    masks = Masks(anatomy)
    for units in anatomy.units:
        masks.kept(units.position)[0] = False
    with Devices() as devices:
        masks.hold()
    assert devices.multiplied == {"meta"}


@pytest.mark.parametrize("granularity", ["structured", "unstructured"])
def test_smart_is_taken_up_on_the_device_of_the_weights(granularity):
    options = Smart(name="smart", granularity=granularity)
    pruner = build_pruner(bind(bert_with_gradients()), options, 0.5, Schedule(10, 0.1, 0.4), 0)
    for step in range(1, 4):
        pruner.observe()
        pruner.step(step, 1e-4)
    state = pruner.state_dict()
    assert state["moments"]
    there = build_pruner(bind(tiny.bert().to("meta")), options, 0.5, Schedule(10, 0.1, 0.4), 0)
    there.load_state_dict(state)
    found = there.state_dict()
    moved = [found["scores"], found["moments"]["exp_avg"], found["moments"]["exp_avg_sq"]]
    moved += [found["gates"]["values"], *found["gates"]["raw"], *found["importance"]["sensitivity"]]
    moved += found["removal"].get("kept", [])
    assert {tensor.device.type for tensor in moved} == {"meta"}


class Devices(TorchDispatchMode):
    """Hears of the device of every tensor that something is multiplied by in place."""

    def __init__(self):
        super().__init__()
        self.multiplied = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten.mul_:
            self.multiplied |= {tensor.device.type for tensor in args}
        return function(*args, **(kwargs or {}))


def bert_with_gradients():
    model = tiny.bert()
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    return model
