"""Units that single-weight pruning left without connections: they can leave the weights for free."""

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from core.engine.anatomy import Anatomy, Attention, Mlp
from core.engine.methods.neuroprune.redundancy import hand_over_
from core.engine.plan import Masks


@torch.no_grad()
def release_unconnected(anatomy: Anatomy, masks: Masks) -> None:
    """Remove every head and neuron that does nothing, or the same for every input; what the model computes stays.

    Without outgoing weights a unit has no effect. Without incoming ones it gives a constant, which moves into the
    bias that follows; where there is no such bias, the unit stays.
    """
    activation = ACT2FN[anatomy.model.config.hidden_act]
    for index, layer in enumerate(anatomy.layers):
        position = anatomy.position(index, "heads")
        _release_heads(layer.attention, masks, position)
        position = anatomy.position(index, "neurons")
        kept = masks.kept(position)
        free, constants = _free_neurons(layer.mlp, activation)
        free = free.cpu() & kept
        if layer.mlp.output.bias is not None:
            moved = free.to(constants.device)
            layer.mlp.output.bias.data += layer.mlp.output.weight.data[:, moved] @ constants[moved]
        masks.remove(position, free.nonzero().flatten())


def _release_heads(attention: Attention, masks: Masks, position: int) -> None:
    written = attention.units.writes[0].by_unit(attention.output.weight.data).flatten(1).any(1)
    value = attention.value
    rows = value.weight.data.view(attention.groups, -1).any(1)
    biased = value.bias is not None and value.bias.data.view(attention.groups, -1).any(1)
    silent = ~rows & (~biased if attention.output.bias is None else True)
    for head in ((~written | silent).cpu() & masks.kept(position)).nonzero().flatten().tolist():
        hand_over_(attention, head, None)
        masks.remove(position, torch.tensor([head]))


def _free_neurons(mlp: Mlp, activation: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Which neurons can go, bool [N], and what constant each of them gives, [N]."""
    weight = mlp.output.weight.data
    biases = [m.bias.data if m.bias is not None else weight.new_zeros(mlp.units.count) for m in mlp.inputs]
    factors = [activation(biases[0]), *biases[1:]]
    blind = torch.stack([~module.weight.data.any(1) for module in mlp.inputs])
    # A product is zero whatever its other factor reads.
    zero = (blind & (torch.stack(factors) == 0)).any(0)
    constants = torch.where(zero, 0, torch.stack(factors).prod(0))
    constant = zero | (blind.all(0) & ((constants == 0) | (mlp.output.bias is not None)))
    unread = ~weight.any(0)
    return constant | unread, torch.where(unread, 0, constants)
