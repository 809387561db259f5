"""What both one-shot methods promise: exact numbers, padding left out, layer after layer, held afterwards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.engine.anatomy import bind
from core.engine.methods import Schedule, build_pruner
from core.engine.methods.one_shot import reading_target, shares, sum_over_tokens
from core.errors import NumericalError, UnreachableTargetError, VerificationError
from core.jobs import methods
from tests import tiny, tiny_families
from tests.pruning import zero_weights

LENGTHS = (7, 3, 10, 5)


def padded_batch(pad_with=0):
    """Rows of different lengths: ids and mask."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((len(LENGTHS), max(LENGTHS)), pad_with)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.randint(4, tiny.VOCABULARY, (length,), generator=generator)
        mask[row, :length] = 1
    return ids, mask


def calibration(model, ids, mask):
    def run(rows):
        with torch.no_grad():
            model(input_ids=ids[:rows], attention_mask=mask[:rows])

    return run


def one_shot(model, name, sparsity=0.5, **options):
    options = {"name": name, "calibration_rows": len(LENGTHS), **options}
    method = {"wanda": methods.Wanda, "sparsegpt": methods.SparseGPT}[name].model_validate(options)
    return build_pruner(bind(model), method, sparsity, Schedule(1, 0, 0), 0)


@pytest.fixture(params=["wanda", "sparsegpt"])
def name(request):
    return request.param


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=20), st.floats(0, 1))
def test_shares_are_exact_and_proportional(sizes, share):
    total = sum(sizes)
    count = int(share * total)
    parts = shares(count, sizes)
    assert sum(parts) == count
    for part, size in zip(parts, sizes, strict=True):
        assert 0 <= part <= size
        assert abs(part * total - count * size) < total


@pytest.mark.parametrize(
    "make",
    [tiny.bert_classifier, tiny.llama, lambda: tiny_families.model("mixtral", "causal-lm")],
    ids=["bert", "llama", "mixtral"],
)
def test_padding_does_not_count(make):
    """A padded batch gives what its rows give one by one without padding, whatever stands in the padding."""
    model = make()
    modules = [matrix.module for matrix in bind(model).matrices]

    def row_by_row():
        for ids, mask in zip(*padded_batch(), strict=True):
            model(input_ids=ids[None, : mask.sum()])

    with torch.no_grad():
        expected = sum_over_tokens(model, modules, row_by_row, lambda x: x.T @ x)
        for pad_with in (0, 9):
            ids, mask = padded_batch(pad_with)
            run = calibration(model, ids, mask)
            found = sum_over_tokens(model, modules, lambda run=run: run(len(LENGTHS)), lambda x: x.T @ x)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert all(statistic.dtype == torch.float64 for statistic in expected)


@pytest.mark.parametrize("longest", [10, 6], ids=["alike", "differ"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_padding_of_sources_and_of_targets_does_not_count(kind, longest):
    """The decoder's projections read what it writes, those of keys and values of its cross attention the source."""
    model = tiny_families.model(kind, "seq2seq")
    start, padding = model.config.decoder_start_token_id, model.config.pad_token_id
    (sources, source_mask), lengths = padded_batch(padding), (1, longest, 4, 3)
    targets = torch.full((len(lengths), longest), padding)
    for row, length in enumerate(lengths):
        targets[row, :length] = torch.tensor([start, *range(5, 4 + length)])
    layers = bind(model).layers
    matrices = [matrix for layer in layers for matrix in layer.matrices]
    modules = [matrix.module for matrix in matrices]
    of_target = set().union(*(reading_target(layer) for layer in layers))
    assert 0 < len(of_target) < len(modules)

    def row_by_row():
        for ids, mask, written, length in zip(sources, source_mask, targets, lengths, strict=True):
            model(input_ids=ids[None, : mask.sum()], decoder_input_ids=written[None, :length])

    def together():
        model(input_ids=sources, attention_mask=source_mask, decoder_input_ids=targets)

    with torch.no_grad():
        one, all_at_once = (
            sum_over_tokens(model, modules, run, lambda x: x.T @ x, of_target) for run in (row_by_row, together)
        )
        counts = sum_over_tokens(model, modules, together, lambda x: x.new_tensor(len(x)), of_target)
    torch.testing.assert_close(all_at_once, one, rtol=1e-4, atol=1e-4)
    assert {int(count) for module, count in zip(modules, counts, strict=True) if module in of_target} == {sum(lengths)}


def test_what_a_projection_reads_besides_the_tokens_counts():
    """DeBERTa projects its embeddings of distances like the hidden states: the norms of both are in the statistic."""
    model = tiny_families.model("deberta-v2/shared", "sentence-embedding")
    attention = bind(model).attentions[0]
    modules = [attention.query.weight.module, attention.value.weight.module]
    distances = model.encoder.get_rel_embedding()

    query, value = sum_over_tokens(
        model, modules, lambda: calibration(model, *padded_batch())(len(LENGTHS)), lambda x: x.square().sum(0)
    )
    torch.testing.assert_close(query - value, distances.square().sum(0).double(), rtol=1e-4, atol=1e-4)


def test_batches_add_up():
    module = torch.nn.Linear(3, 2)
    one, two = torch.randn(2, 4, 3), torch.randn(5, 3)

    def run():
        module(one)
        module(two)

    (found,) = sum_over_tokens(module, [module], run, lambda x: x.square().sum(0))
    expected = [sum(float(token[i]) ** 2 for token in [*one.flatten(0, 1), *two]) for i in range(3)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_no_hook_outlives_an_error(name):
    model = tiny.llama()

    def run(rows):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        one_shot(model, name).calibrate(run)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("make", [tiny.bert_classifier, tiny.llama])
@pytest.mark.parametrize("sparsity", [0.0, 0.1234, 0.5, 0.777])
def test_the_number_of_zeros_is_exact(name, make, sparsity):
    model = make()
    pruner = one_shot(model, name, sparsity)
    pruner.calibrate(calibration(model, *padded_batch()))
    count = int(sparsity * pruner.anatomy.encoder_parameters + 0.5)
    assert zero_weights(pruner.anatomy) == count
    assert pruner.sparsity == count / pruner.anatomy.encoder_parameters
    for matrix, kept in zip(pruner.anatomy.matrices, pruner.weight_masks.kept, strict=True):
        assert torch.equal(matrix.weight != 0, kept)
        weights = sum(kept.numel() for kept in pruner.weight_masks.kept)
        assert int((~kept).sum()) == pytest.approx(count * kept.numel() / weights, abs=1)


def test_all_weights_of_the_projections_can_go(name):
    model = tiny.llama()
    anatomy = bind(model)
    weights = sum(matrix.weight.numel() for matrix in anatomy.matrices)
    pruner = one_shot(model, name, weights / anatomy.encoder_parameters)
    pruner.calibrate(calibration(model, *padded_batch()))
    pruner.finish()
    assert zero_weights(anatomy) == weights


@pytest.mark.parametrize(("stay", "of"), [(2, 4), (1, 4), (4, 8), (1, 2)])
@pytest.mark.parametrize("block_size", [1, 6, 128])
def test_a_pattern_holds_in_every_group(name, stay, of, block_size):
    model = tiny.llama()
    options = {"block_size": block_size} if name == "sparsegpt" else {}
    pruner = one_shot(model, name, None, granularity=f"{stay}:{of}", **options)
    pruner.calibrate(calibration(model, *padded_batch()))
    for matrix in pruner.anatomy.matrices:
        assert set((matrix.weight == 0).reshape(-1, of).sum(1).tolist()) == {of - stay}
    pruner.finish()


def test_what_cannot_be_met_is_refused_before_anything_is_read(name):
    with pytest.raises(UnreachableTargetError, match="cannot be laid over"):
        one_shot(tiny.llama(), name, None, granularity="2:5")
    with pytest.raises(UnreachableTargetError, match=r"A sparsity of 0\.9990"):
        one_shot(tiny.llama(), name, 0.999)


def test_an_earlier_layer_is_pruned_before_a_later_one_is_looked_at(name):
    """Each layer's statistics are those of a model whose earlier layers are as they are in the end."""
    model = tiny.bert_classifier()
    pruner = one_shot(model, name, 0.6)
    run = calibration(model, *padded_batch())
    seen = []

    def remember(weight, statistic, count):
        seen.append(statistic)
        return type(pruner).prune(pruner, weight, statistic, count)

    pruner.prune = remember
    pruner.calibrate(run)
    half_pruned = tiny.bert_classifier()
    anatomy, position = bind(half_pruned), 0
    for layer in anatomy.layers:
        modules = [matrix.module for matrix in layer.matrices]
        run = calibration(half_pruned, *padded_batch())
        expected = sum_over_tokens(half_pruned, modules, lambda run=run: run(len(LENGTHS)), pruner.statistic)
        for matrix, statistic in zip(layer.matrices, expected, strict=True):
            torch.testing.assert_close(seen[position], statistic.double(), rtol=1e-5, atol=1e-6)
            matrix.weight.copy_(pruner.anatomy.matrices[position].weight)
            position += 1
    assert position == len(seen)


def test_only_the_rows_asked_for_are_read(name):
    model = tiny.llama()
    asked = []
    run = calibration(model, *padded_batch())

    def listen(rows):
        asked.append(rows)
        run(rows)

    one_shot(model, name, calibration_rows=2).calibrate(listen)
    assert set(asked) == {2}


def test_training_afterwards_leaves_the_zeros(name):
    model = tiny.llama()
    pruner = one_shot(model, name)
    pruner.calibrate(calibration(model, *padded_batch()))
    before = zero_weights(pruner.anatomy)
    for matrix in pruner.anatomy.matrices:
        matrix.weight.add_(1.0)
    assert zero_weights(pruner.anatomy) == 0
    pruner.step(1, 1e-3)
    assert zero_weights(pruner.anatomy) == before
    pruner.finish()


def test_a_state_is_enough_to_go_on(name):
    model = tiny.llama()
    pruner = one_shot(model, name)
    pruner.calibrate(calibration(model, *padded_batch()))
    restored = one_shot(tiny.llama(), name)
    restored.load_state_dict(pruner.state_dict())
    assert restored.sparsity == pruner.sparsity
    for each in (pruner, restored):
        each.step(1, 1e-3)
        each.finish()
    for one, two in zip(pruner.anatomy.matrices, restored.anatomy.matrices, strict=True):
        assert torch.equal(one.weight == 0, two.weight == 0)


def test_a_number_that_is_not_met_is_not_delivered(name):
    model = tiny.llama()
    pruner = one_shot(model, name)
    with pytest.raises(VerificationError, match="0 weights went instead of"):
        pruner.finish()


def test_units_left_without_connections_leave(name):
    """With nearly all weights gone some are; the model computes the same without them."""
    model = tiny.bert_classifier()
    pruner = one_shot(model, name, 0.93)
    run_ids, mask = padded_batch()
    pruner.calibrate(calibration(model, run_ids, mask))
    with torch.no_grad():
        before = model(input_ids=run_ids, attention_mask=mask).logits
        pruner.finish()
        after = model(input_ids=run_ids, attention_mask=mask).logits
    assert pruner.masks.removed_parameters() > 0
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "layer"),
    [("embeddings.LayerNorm", 0), ("encoder.layer.1.attention.self.query", 1), ("encoder.layer.2.output.dense", 2)],
)
def test_values_that_are_not_finite_are_named(name, part, layer):
    model = tiny.bert_classifier()
    model.bert.get_submodule(part).weight.data[3] = float("nan")
    with pytest.raises(NumericalError, match=f"layer {layer} are not finite"):
        one_shot(model, name).calibrate(calibration(model, *padded_batch()))


def test_a_matrix_of_zeros_is_pruned_like_any_other(name):
    model = tiny.llama()
    model.model.layers[1].mlp.up_proj.weight.data.zero_()
    pruner = one_shot(model, name)
    pruner.calibrate(calibration(model, *padded_batch()))
    assert pruner.weight_masks.removed == sum(pruner.counts)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    pruner.finish()
