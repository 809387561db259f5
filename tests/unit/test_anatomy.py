"""How units lie in parameters: against positions counted one by one; fused projections against the same ones apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.engine.anatomy import bind
from core.engine.units import Layout
from tests import tiny, tiny_families
from tests.pruning import every_storage


@given(st.integers(0, 5), st.integers(1, 3), st.integers(0, 4), st.integers(0, 3), st.sampled_from([0, 1]))
def test_a_layout_sees_the_entries_of_each_unit(count, block, ahead, behind, dim):
    for layout, size in (
        (Layout(count, block, ahead, block), ahead + count * block + behind),
        (Layout(count, block, ahead, ahead + block + behind), count * (ahead + block + behind)),
    ):
        along = torch.arange(3 * size).view(3, size)
        matrix = along.T if dim == 0 else along
        positions = [layout.start + unit * layout.stride + place for unit in range(count) for place in range(block)]
        assert layout.index(torch.arange(count)).tolist() == positions
        units = layout.split(matrix, dim)
        assert units.shape == ((count, block, 3) if dim == 0 else (count, 3, block))
        assert units.movedim(2 - dim, 0).flatten(1).tolist() == along[:, positions].tolist()
        units.fill_(-1)
        assert int((matrix == -1).sum()) == len(positions) * 3


def apart(model):
    """A Llama with the weights of a Phi-3, whose fused projections it has one by one."""
    config = tiny.llama_config()
    config.tie_word_embeddings, config.rms_norm_eps = False, model.config.rms_norm_eps
    llama = tiny.LlamaForCausalLM(config).train(False)
    state = model.state_dict()
    for name in list(state):
        if name.endswith("qkv_proj.weight"):
            for part, weight in zip("qkv", state.pop(name).split([64, 32, 32]), strict=True):
                state[name.replace("qkv", part)] = weight
        if name.endswith("gate_up_proj.weight"):
            for part, weight in zip(("gate", "up"), state.pop(name).chunk(2), strict=True):
                state[name.replace("gate_up", part)] = weight
    llama.load_state_dict(state)
    return llama


def test_fused_projections_have_the_units_of_the_same_ones_apart():
    fused = tiny_families.phi3()
    separate = apart(fused)
    ids = torch.arange(4, 24).view(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(fused(ids).logits, separate(ids).logits, rtol=0, atol=1e-5)
    for ours, theirs in zip(bind(fused).units, bind(separate).units, strict=True):
        assert (ours.kind, ours.count, ours.cost) == (theirs.kind, theirs.count, theirs.cost)
        if ours.kind != "inputs":
            for a, b in zip(ours.slices, theirs.slices, strict=True):
                assert torch.equal(a.values, b.values)


@every_storage
def test_no_weight_is_in_two_matrices(make):
    anatomy = bind(make())
    parameters = [matrix.parameter for matrix in anatomy.matrices]
    assert len(set(parameters)) == len(parameters)
    weights = {p for name, p in anatomy.stack.named_parameters() if p.ndim == 2}
    assert set(parameters) == weights


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
def test_what_goes_with_both_a_head_and_an_in_row_counts_once(family):
    anatomy = bind(tiny_families.model(family, "sentence-embedding"))
    attention = anatomy.attentions[0]
    for units, removed in ((attention.units, [1]), (attention.inputs, [0, 7])):
        units.zero_(torch.isin(torch.arange(units.count), torch.tensor(removed)))
    zeros = sum(int((parameter == 0).sum()) for parameter in anatomy.stack.parameters())
    assert attention.removed_parameters(heads=1, inputs=2) == zeros
