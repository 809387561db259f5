"""Units without connections: which are let go, against trying every unit on its own; the model computes the same."""

import pytest
import torch
from transformers.activations import ACT2FN

from core.engine.anatomy import bind
from core.engine.methods.connections import release_unconnected
from core.engine.plan import Masks
from tests import tiny, tiny_families


def biased_llama():
    """Biases everywhere, as in no published Llama; half of them zero."""
    config = tiny.llama_config()
    config.attention_bias = config.mlp_bias = True
    model = tiny.randomised(tiny.LlamaForCausalLM(config))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data[::2] = 0
    return model


def llama_with_value_bias_only():
    """A bias that nothing can take over."""
    model = biased_llama()
    for layer in model.model.layers:
        layer.self_attn.o_proj.bias = None
        layer.mlp.down_proj.bias = None
    return model


def opt():
    """Its activation has another name in the config, and is another one: zero for every negative bias."""
    return tiny_families.model("opt", "causal-lm")


def bloom():
    """Its config names no activation."""
    return tiny_families.model("bloom", "causal-lm", deviation=0.2)


MODELS = [tiny.bert_classifier, tiny.llama, biased_llama, llama_with_value_bias_only, opt]
MODELS += [bloom, tiny_families.gpt2, tiny_families.gpt_neox, tiny_families.phi3]


def disconnect(anatomy, seed):
    """Take from some units what they read, from some what they write, and from some one of several things they read."""
    generator = torch.Generator().manual_seed(seed)
    for layer in anatomy.layers:
        for units in (layer.attentions[0].units, layer.mlps[0].units):
            for part in units.slices:
                if part.name == "weight":
                    chosen = torch.rand(units.count, generator=generator) < 0.4
                    part.by_unit(part.parameter.data)[chosen] = 0


def is_free(contributions, has_bias):
    """Whether what a unit adds, [inputs, hidden], is nothing, or always the same and a bias can add it."""
    constant = bool((contributions == contributions[0]).all())
    return constant and (has_bias or not contributions.any())


def computed(part, inputs):
    """What a projection's rows give, [inputs, units, block]."""
    values = torch.einsum("ubi,ni->nub", part.weight.values, inputs)
    return values if part.bias is None else values + part.bias.values


def free_heads(attention):
    """By trying: on a single token attention passes on its value."""
    inputs = torch.randn(16, attention.inputs.count, generator=torch.Generator().manual_seed(0))
    values = computed(attention.value, inputs)[:, :, None]
    values = values.expand(-1, -1, attention.queries_per_group, -1).flatten(2)[:, :, None]
    writes = attention.units.writes[0].values
    has_bias = attention.output.bias is not None
    return {g for g in range(attention.groups) if is_free((values[:, g] * writes[g]).sum(-1), has_bias)}


def free_neurons(mlp, activation):
    inputs = torch.randn(16, mlp.inputs[0].weight.shape[1], generator=torch.Generator().manual_seed(0))
    values = activation(computed(mlp.factors[0], inputs).squeeze(2))
    for factor in mlp.factors[1:]:
        values = values * computed(factor, inputs).squeeze(2)
    has_bias = mlp.output.bias is not None
    weight = mlp.output.weight
    return {n for n in range(mlp.units.count) if is_free(values[:, n, None] * weight[:, n], has_bias)}


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_exactly_those_go_that_add_nothing_or_a_constant(make, seed):
    model = make()
    anatomy = bind(model)
    disconnect(anatomy, seed)
    row = anatomy.mlps[0].row
    activation = ACT2FN[row.fixed_activation or getattr(model.config, row.activation)]
    heads = [free_heads(layer.attentions[0]) for layer in anatomy.layers]
    neurons = [free_neurons(layer.mlps[0], activation) for layer in anatomy.layers]
    inputs = torch.arange(4, 24).view(2, 10)
    before = model(inputs).logits
    masks = Masks(anatomy)
    release_unconnected(anatomy, masks)
    for index in range(len(anatomy.layers)):
        kept_heads = masks.kept(anatomy.positions("heads")[index])
        kept_neurons = masks.kept(anatomy.positions("neurons")[index])
        assert set((~kept_heads).nonzero().flatten().tolist()) == heads[index]
        assert set((~kept_neurons).nonzero().flatten().tolist()) == neurons[index]
    assert any(heads)
    assert all(neurons)
    torch.testing.assert_close(model(inputs).logits, before, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_connected_model_loses_nothing():
    model = tiny.llama()
    anatomy = bind(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = Masks(anatomy)
    release_unconnected(anatomy, masks)
    assert masks.removed_parameters() == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_a_second_time_changes_nothing():
    """What a bias took over is not added again."""
    model = tiny.bert_classifier()
    anatomy = bind(model)
    masks = Masks(anatomy)
    disconnect(anatomy, 0)
    release_unconnected(anatomy, masks)
    after_once = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = masks.plan()
    release_unconnected(anatomy, masks)
    assert masks.plan() == plan
    assert all(torch.equal(tensor, after_once[name]) for name, tensor in model.state_dict().items())
