"""Mixtures of experts: taken apart to be pruned, and put together again for the stock class.

transformers stores all experts of a layer as one tensor, so that they can be multiplied at once. Pruned ones differ in
width, so each is an MLP of its own as long as a model is bound, and where it is delivered ragged.

An expert that is gone is not routed to: the router chooses among the others as if there had never been more.
"""

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from core.engine.export.modeling_neuroprune import Experts, expert_paths
from core.family import ExpertsRow

_HOOK = "among_kept"
"""The router's attribute that holds the handle of its hook."""


@torch.no_grad()
def separate(layer: nn.Module, row: ExpertsRow) -> list[dict[str, Any]]:
    """Give every expert of a layer its own projections, in place, and say where they are; the outputs stay."""
    experts: Any = layer.get_submodule(row.module)
    if not isinstance(experts, Experts):
        stored, experts = experts, Experts(experts, [1] * experts.num_experts)
        for expert, gate_up, down in zip(experts.experts, stored.gate_up_proj, stored.down_proj, strict=True):
            _set_weight(expert.gate_up, gate_up.clone())
            _set_weight(expert.down, down.clone())
        # Its kind is needed to put the experts together again, its weights are not.
        stored.gate_up_proj = stored.down_proj = None
        experts.stock = (stored,)
        layer.set_submodule(row.module, experts)
    return [expert_paths(row.module, index) for index in range(len(experts))]


@torch.no_grad()
def join(layer: nn.Module, row: ExpertsRow) -> None:
    """Undo `separate`: all experts of a layer, which have one width, as one tensor in a module of transformers."""
    experts: Any = layer.get_submodule(row.module)
    if not isinstance(experts, Experts):
        return
    (stock,) = cast(tuple[Any], experts.stock)
    gate_up, down = zip(*((expert.gate_up.weight, expert.down.weight) for expert in experts.experts), strict=True)
    stock.gate_up_proj, stock.down_proj = nn.Parameter(torch.stack(gate_up)), nn.Parameter(torch.stack(down))
    stock.num_experts, _, stock.intermediate_dim = stock.down_proj.shape
    layer.set_submodule(row.module, stock)


def drop(layer: nn.Module, row: ExpertsRow, kept: Iterable[int]) -> None:
    """Take experts out of a layer; its router, whose weights are not touched, chooses among all that it has again."""
    experts: Any = layer.get_submodule(row.module)
    for index in sorted(set(range(len(experts))) - set(kept), reverse=True):
        del experts[index]
    hook = layer.get_submodule(row.router).__dict__.pop(_HOOK, None)
    if hook is not None:
        hook.remove()


def leave_out_removed(router: nn.Module) -> None:
    """From now on let a router choose among the experts that have weights in it; a removed one's are zero."""
    if not hasattr(router, _HOOK):
        setattr(router, _HOOK, router.register_forward_hook(_choose_among_kept))


def _choose_among_kept(router: Any, args: tuple[Tensor, ...], _: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What the router answers without the weights of those that are gone, in terms of all experts.

    Returns:
        Logits of the kept experts [tokens, kept]; weights and indices of the chosen ones, both [tokens, top_k].
    """
    kept = router.weight.detach().any(1).nonzero().flatten()
    narrower = copy.copy(router)
    narrower._parameters = {"weight": router.weight[kept]}
    narrower.top_k = min(router.top_k, len(kept))
    logits, weights, chosen = type(router).forward(narrower, *args)
    return logits, weights, kept[chosen]


def _set_weight(module: nn.Linear, weight: Tensor) -> None:
    module.weight = nn.Parameter(weight)
    module.out_features, module.in_features = weight.shape
