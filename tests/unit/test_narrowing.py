"""While it trains, a model leaves out the heads and neurons that are gone: the same numbers, from smaller products."""

import pytest
import torch

from core.engine.anatomy import bind
from core.engine.narrowing import narrowing
from core.engine.plan import Masks
from core.families import FAMILIES
from tests import tiny, tiny_families, tiny_tasks
from tests.tiny_families import TRIED, kinds

CASES = [
    (kind, (family.tasks or (TRIED[family.model_type],))[0]) for family in FAMILIES for kind in kinds(family.model_type)
]


def answer(model, batch):
    """A scalar of all outputs, and every parameter's gradient."""
    model.zero_grad()
    outputs = model(**batch)
    value = sum(
        (tensor.float() * torch.linspace(-1, 1, tensor.numel()).view_as(tensor)).sum()
        for tensor in outputs.to_tuple()
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad
    )
    value.backward()
    return value.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "task"), CASES, ids=[f"{kind}-{task}" for kind, task in CASES])
def test_outputs_and_gradients_stay_as_they_are(kind, task):
    model = tiny_families.model(kind, task).eval()
    batch = tiny_tasks.inputs(task)
    anatomy = bind(model)
    masks = Masks(anatomy)
    generator = torch.Generator().manual_seed(0)
    for parts in (anatomy.mlps, anatomy.attentions):
        for index, part in enumerate(parts):
            removed = torch.rand(part.units.count, generator=generator) < (1.0 if index == 1 else 0.7)
            masks.remove(part.units.position, removed.nonzero().flatten())
    value, gradients = answer(model, batch)
    widths = []
    watched = anatomy.mlps[0].output.module
    watched.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[-1]))
    with narrowing(anatomy, masks) as narrow:
        narrow.update()
        narrowed_value, narrowed_gradients = answer(model, batch)
    # An expert may get no token.
    assert widths or anatomy.mixtures
    assert set(widths) <= {int(masks.kept(anatomy.mlps[0].units.position).sum())}
    torch.testing.assert_close(narrowed_value, value, rtol=1e-4, atol=1e-4)
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(narrowed_gradients[name], gradient, rtol=1e-3, atol=1e-5 * scale)
    widths.clear()
    answer(model, batch)
    assert set(widths) <= {anatomy.mlps[0].units.count}


@pytest.mark.parametrize("make", [tiny.bert, tiny.llama, tiny_families.gpt2])
def test_attentions_compute_with_the_heads_that_are_left(make):
    anatomy = bind(make().eval())
    masks, attention = Masks(anatomy), anatomy.attentions[0]
    gone = torch.arange(attention.groups // 2)
    masks.remove(attention.units.position, gone)
    widths = []
    attention.output.module.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[-1]))
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        whole = anatomy.model(ids)[0]
        with narrowing(anatomy, masks) as narrow:
            narrow.update()
            narrowed = anatomy.model(ids)[0]
        again = anatomy.model(ids)[0]
    a_group = attention.queries_per_group * attention.head_dim
    assert widths == [attention.groups * a_group, (attention.groups - len(gone)) * a_group, attention.groups * a_group]
    torch.testing.assert_close(narrowed, whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(again, whole)
