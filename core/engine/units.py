"""Views of a model's weights, whatever their storage: what belongs to a unit, and projections as [out, in].

A unit is something that can be removed from its block without changing what the others compute: an MLP neuron, a head
group, an expert, or an in-row, that is, an input dimension of the attention. A head group is one key-value head with
the query heads that read it; without grouped-query attention that is simply one head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Kind = Literal["heads", "experts", "neurons", "inputs"]
KINDS: tuple[Kind, ...] = ("heads", "experts", "neurons", "inputs")
"""In the order in which they go: the neurons of an expert go with it."""

Projection = nn.Linear | Conv1D


def _oriented(module: nn.Module, stored: Tensor) -> Tensor:
    """A weight as [out, in], whichever way round its module stores it; a bias as it is."""
    return stored.T if isinstance(module, Conv1D) and stored.ndim == 2 else stored


@dataclass(frozen=True, slots=True)
class Layout:
    """Where along a dimension units lie: unit u has the `block` entries from `start + u * stride` on."""

    count: int
    block: int
    start: int
    stride: int

    def split(self, tensor: Tensor, dim: int) -> Tensor:
        """View with the units in front and their entries at `dim` + 1; writes go through."""
        region = tensor.movedim(dim, 0)[self.start : self.start + self.count * self.stride]
        # An empty dimension has no windows.
        if self.count:
            units = region.unfold(0, self.block, self.stride).movedim(-1, 1)
        else:
            units = region.reshape(0, self.block, *region.shape[1:])
        return units.movedim(1, dim + 1)

    def index(self, units: Tensor) -> Tensor:
        """Positions along the dimension that belong to `units`, [len(units) * block]."""
        entries = torch.arange(self.block, device=units.device)
        return (self.start + units[:, None] * self.stride + entries).flatten()


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of one parameter that belongs to units: along `dim` of [out, in], or of a bias [out]."""

    module: nn.Module
    name: Literal["weight", "bias"]
    dim: int
    layout: Layout

    @property
    def parameter(self) -> nn.Parameter:
        """The live parameter, as stored; looked up anew because training may replace it."""
        return cast(nn.Parameter, getattr(self.module, self.name))

    @property
    def stored_dim(self) -> int:
        """`dim` of the parameter as stored."""
        return 1 - self.dim if isinstance(self.module, Conv1D) and self.name == "weight" else self.dim

    @property
    def values(self) -> Tensor:
        """Live view of the parameter by unit, without gradient; writes go through."""
        return self.by_unit(self.parameter.data)

    @property
    def slopes(self) -> Tensor:
        """Values times their gradients, by unit: how the loss changes with each entry's factor; zeros without any."""
        parameter = self.parameter
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        return self.by_unit(parameter.data * gradient)

    @property
    def cost(self) -> int:
        """Entries of one unit."""
        sizes = _oriented(self.module, self.parameter.data).shape
        return self.layout.block * prod(size for dim, size in enumerate(sizes) if dim != self.dim)

    def by_unit(self, tensor: Tensor) -> Tensor:
        """View `tensor`, shaped like the parameter, as [units, block, in] or [units, out, block]; writes go through.

        A bias becomes [units, block].
        """
        return self.layout.split(_oriented(self.module, tensor), self.dim)


@dataclass(frozen=True, slots=True)
class Part:
    """The rows that a projection, or one of those fused in a single module, has for each unit."""

    weight: Slice
    bias: Slice | None

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The weight, and the bias if there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Units:
    """All units of one kind in one attention, MLP or mixture of experts.

    `position` is their place in `Anatomy.units`, `layer` the layer's among those of all stacks. `reads` are the slices
    that compute a unit's value, `writes` those that pass it on to the layer's output; in-rows have none of the latter.
    `members` are other units that go with each of these: with an expert, for which only the router's row is a slice of
    its own, all of its neurons.
    """

    position: int
    layer: int
    kind: Kind
    count: int
    reads: tuple[Slice, ...]
    writes: tuple[Slice, ...]
    members: tuple["Units", ...] = ()

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Every parameter that goes when a unit goes, but for its members'."""
        return (*self.reads, *self.writes)

    @property
    def gates(self) -> tuple[Slice, ...]:
        """The weights whose common factor is the unit's: scaled by f, the unit counts f times.

        An expert's factor is that of its members' outputs, and none of its own.
        """
        return self.writes or (() if self.members else self.reads)

    @property
    def cost(self) -> int:
        """Parameters of one unit, with all units of other kinds there, and without its members'."""
        return sum(s.cost for s in self.slices) if self.count else 0

    @property
    def device(self) -> torch.device:
        """Where their weights are; the CPU if there are none."""
        return next((part.parameter.device for part in self.slices), torch.device("cpu"))

    def total(self, slices: Callable[["Units"], tuple[Slice, ...]], measure: Callable[[Slice], Tensor]) -> Tensor:
        """Sum over all that belongs to each unit, its members included, fp32 [count] on `device`.

        Args:
            slices: Those of these and of their members that count.
            measure: What counts of a slice, by unit: [units, …].
        """
        sums = torch.zeros(self.count, device=self.device)
        for part in slices(self):
            sums += measure(part).flatten(1).sum(1)
        if self.members:
            sums += torch.stack([member.total(slices, measure).sum() for member in self.members])
        return sums

    @torch.no_grad()
    def zero_(self, removed: Tensor) -> None:
        """Set everything that belongs to the units marked in `removed` (bool, [count]) to zero, in place."""
        for part in self.slices:
            part.values[removed.to(part.parameter.device)] = 0

    @torch.no_grad()
    def hold_(self, kept: Tensor) -> None:
        """Keep at zero, in place, what `zero_` made zero; `kept` is bool [count].

        A product is several times faster than an assignment at indices, and this is done after every step.
        """
        factor = kept.to(self.device, self.slices[0].parameter.dtype)
        for part in self.slices:
            by_unit = part.values
            by_unit.mul_(factor.view(-1, *[1] * (by_unit.dim() - 1)))


@dataclass(frozen=True, slots=True)
class Matrix:
    """The weights that one module holds, of a projection or of several fused ones, as single connections [out, in]."""

    module: Projection

    @property
    def weight(self) -> Tensor:
        """Live view [out, in] without gradient; writes go through."""
        return _oriented(self.module, self.parameter.data)

    @property
    def differentiable(self) -> Tensor:
        """Live view [out, in] through which gradients flow."""
        return _oriented(self.module, self.parameter)

    @property
    def gradient(self) -> Tensor | None:
        """View [out, in] of the gradient, if there is one."""
        return None if self.parameter.grad is None else _oriented(self.module, self.parameter.grad)

    @property
    def bias(self) -> Tensor | None:
        """Live bias [out] without gradient, if there is one."""
        return None if self.module.bias is None else self.module.bias.data

    @property
    def parameter(self) -> nn.Parameter:
        """The live parameter, as stored."""
        return cast(nn.Parameter, self.module.weight)


def matrices_of(parts: tuple[Part, ...]) -> tuple[Matrix, ...]:
    """The matrices of several parts, fused ones once."""
    return tuple(dict.fromkeys(Matrix(cast(Projection, part.weight.module)) for part in parts))
