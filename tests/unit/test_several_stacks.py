"""Models with an encoder and a decoder, cross attention, and layers that are used several times."""

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5EncoderModel

from core.engine.anatomy import bind, count_parameters
from core.engine.loading import check_architecture
from core.engine.methods.budget import Budget
from core.engine.report.plot import plot_structure
from core.engine.report.structure import describe_structure
from core.engine.units import Matrix
from core.errors import InvalidModelError, UnreachableTargetError
from tests import tiny, tiny_families
from tests.pruning import Case, adamw, check_target, take_step, train


def t5():
    """The same head is another column of a bias that all layers of a stack share."""
    return tiny_families.model("t5/gated", "seq2seq", deviation=0.2)


def bart():
    return tiny_families.model("bart", "seq2seq", deviation=0.2)


def albert():
    """Three layers that are used twice each."""
    return tiny_families.model("albert", "sequence-classification", deviation=0.2)


every_model = pytest.mark.parametrize("make", [t5, bart, albert], ids=["t5", "bart", "albert"])
METHODS = [
    Case("neuroprune", "structured"),
    Case("neuroprune", "unstructured"),
    Case("smart", "structured"),
    Case("wanda", "2:4"),
]


@every_model
@pytest.mark.parametrize("case", METHODS, ids=lambda case: f"{case.name}-{case.granularity}")
def test_methods_meet_their_target_over_all_stacks(case, make):
    pruner = case.pruner(make(), 0.5)
    train(pruner)
    check_target(case, pruner, 0.5)


def test_every_attention_keeps_its_share():
    case = Case("neuroprune", "structured")
    pruner = case.pruner(bart(), 0.5, layer_floor=1.0)
    train(pruner)
    gone = pruner.masks.removed("heads")
    assert len(gone) == 9
    assert 0 < max(gone) <= min(gone) + 1


@pytest.mark.parametrize("make", [t5, bart], ids=["t5", "bart"])
def test_a_decoder_layer_has_two_attentions_and_cross_attention_no_in_rows(make):
    anatomy = bind(make())
    assert [len(layer.attentions) for layer in anatomy.layers] == [1, 1, 1, 2, 2, 2]
    assert [units.position for units in anatomy.units] == list(range(len(anatomy.units)))
    own, cross = anatomy.layers[3].attentions
    assert (own.inputs.count, cross.inputs.count) == (32, 0)
    query, key, value = (Matrix(part.weight.module) for part in (cross.query, cross.key, cross.value))
    assert cross.readers == ((query,), (key, value))
    assert own.readers == (own.projections,)
    layers = [layer.module for layer in anatomy.layers]
    assert anatomy.encoder_parameters == sum(map(count_parameters, layers))


def test_a_layer_that_is_used_twice_counts_once():
    model, calls = albert(), []
    assert len(bind(model).layers) == 3
    bind(model).layers[0].module.register_forward_hook(lambda *_: calls.append(1))
    model(torch.arange(4, 14)[None])
    assert len(calls) == 2
    assert bind(model).encoder_parameters == count_parameters(model.albert.encoder.albert_layer_groups)


def test_the_report_shows_every_attention(tmp_path):
    case = Case("neuroprune", "structured")
    pruner = case.pruner(bart(), 0.5)
    train(pruner)
    layers = describe_structure(pruner.anatomy, pruner)
    assert [layer["module"] for layer in layers[2:4]] == ["encoder.layers.2", "decoder.layers.0"]
    assert [attention["cross"] for attention in layers[3]["attentions"]] == [False, True]
    kept = [len(attention["heads"]["kept_indices"]) for layer in layers for attention in layer["attentions"]]
    assert kept == [4 - count for count in pruner.masks.removed("heads")]
    plot_structure(layers, tmp_path / "structure.png")


def test_equal_heads_of_cross_attention_are_merged_after_an_epoch():
    case = Case("neuroprune", "structured")
    pruner = case.pruner(bart(), 0.0, mode="faithful", theta=1e-4)
    cross = pruner.anatomy.layers[4].attentions[1]
    for part in cross.units.reads:
        part.values[2] = part.values[1]
    pruner.end_epoch()
    assert pruner.merged == [(cross.units.position, 1, 2)]
    take_step(pruner, adamw(pruner.anatomy.model), 1)
    assert not cross.units.writes[0].values[1].any()


@every_model
def test_in_rows_are_refused_where_not_every_attention_has_some(make):
    with pytest.raises(UnreachableTargetError, match="attentions whose input dimensions cannot be removed") as caught:
        Budget.of(bind(make()), 0.5, in_rows=0.25)
    assert caught.value.param == "/method/in_rows"


def test_heads_of_two_sizes_are_refused():
    sizes = {"encoder_attention_heads": 4, "decoder_attention_heads": 8, "d_model": 32, "vocab_size": 9}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    anatomy = bind(BartForConditionalGeneration(BartConfig(**sizes, **layers)))
    assert [attention.head_dim for attention in anatomy.attentions] == [8, 4, 4]
    with pytest.raises(InvalidModelError, match="attention heads differ in size, from 524 to 1048 parameters"):
        Budget.of(anatomy, 0.5)


def test_a_model_without_one_of_its_familys_stacks_is_refused():
    with pytest.raises(InvalidModelError, match=r"has no layers 'decoder\.block'"):
        bind(T5EncoderModel(t5().config))


@pytest.mark.parametrize(
    ("gone", "message"), [("attention", "no 'attention'"), ("ffn", "no 'ffn'"), ("ffn_output", "no 'ffn_output'")]
)
def test_a_layer_without_attention_or_mlp_is_refused(gone, message):
    model = albert()
    layer = model.albert.encoder.albert_layer_groups[1].albert_layers[0]
    delattr(layer, gone)
    with pytest.raises(InvalidModelError, match=message):
        bind(model)


def test_a_family_without_a_task_is_refused_by_name(tmp_path):
    folder = tiny.save(tiny_families.model("whisper", "speech-to-text"), tmp_path / "model")
    with pytest.raises(InvalidModelError, match=r"This family has no task yet: Whisper\. "):
        check_architecture(folder, "causal-lm")
