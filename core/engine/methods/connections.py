"""Units that single-weight pruning left without connections: they can leave the weights for free."""

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from core.engine.anatomy import Anatomy, Attention, Mlp
from core.engine.methods.neuroprune.redundancy import hand_over_
from core.engine.plan import Masks
from core.engine.units import Slice


@torch.no_grad()
def release_unconnected(anatomy: Anatomy, masks: Masks) -> None:
    """Remove every head and neuron that does nothing, or the same for every input; what the model computes stays.

    Without outgoing weights a unit has no effect. Without incoming ones it gives a constant, which moves into the
    bias that follows; where there is no such bias, the unit stays.
    """
    for attention in anatomy.attentions:
        _release_heads(attention, masks)
    for mlp in anatomy.mlps:
        free, constants = _free_neurons(mlp, _activation(anatomy, mlp))
        if mlp.output.bias is not None:
            mlp.output.bias.add_(mlp.output.weight[:, free] @ constants[free])
        masks.remove(mlp.units.position, free.cpu().nonzero().flatten())


def _release_heads(attention: Attention, masks: Masks) -> None:
    (output,) = attention.units.writes
    written = _connected(output)
    weight, bias = attention.value.weight, attention.value.bias
    silent = ~_connected(weight)
    if bias is not None and attention.output.bias is None:
        silent &= ~_connected(bias)
    for head in ((~written | silent).cpu() & masks.kept(attention.units.position)).nonzero().flatten().tolist():
        hand_over_(attention, head, None)
        masks.remove(attention.units.position, torch.tensor([head]))


def _activation(anatomy: Anatomy, mlp: Mlp) -> torch.nn.Module:
    name = mlp.row.fixed_activation or getattr(anatomy.model.config, mlp.row.activation)
    module: torch.nn.Module = ACT2FN[name]
    return module


def _free_neurons(mlp: Mlp, activation: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Which neurons can go, bool [N], and what constant each that reads nothing gives, [N]."""
    weight = mlp.output.weight
    nothing = weight.new_zeros(mlp.units.count)
    biases = [nothing if part.bias is None else part.bias.values.flatten() for part in mlp.factors]
    factors = [activation(biases[0]), *biases[1:]]
    blind = torch.stack([~_connected(part.weight) for part in mlp.factors])
    # A product is zero whatever its other factor reads.
    zero = (blind & (torch.stack(factors) == 0)).any(0)
    constants = torch.where(zero, 0, torch.stack(factors).prod(0))
    constant = zero | (blind.all(0) & ((constants == 0) | (mlp.output.bias is not None)))
    return constant | ~weight.any(0), constants


def _connected(part: Slice) -> Tensor:
    """Which units have any entry but zeros, bool [units]."""
    return part.values.flatten(1).any(1)
