"""Binds a family row to a live model: views of attention heads and MLP neurons, whatever the architecture.

Everything downstream speaks in `Units`. A unit is the smallest thing that can be removed from its block without
changing what the others compute: an MLP neuron, a head group, or an in-row, that is, an input dimension of the
attention. A head group is one key-value head with the query heads that read it; without grouped-query attention that is
simply one head. Methods that remove single weights see the same blocks as `Matrix`.

Shapes: h hidden size, D head dim, G head groups, Q query heads a group, N neurons.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.errors import InvalidModelError
from core.families import Family, family_of

Kind = Literal["heads", "neurons", "inputs"]
KINDS: tuple[Kind, ...] = ("heads", "neurons", "inputs")


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of one parameter that belongs to units: `block` consecutive entries a unit along `dim`."""

    module: nn.Linear
    name: Literal["weight", "bias"]
    dim: int
    block: int

    @property
    def parameter(self) -> nn.Parameter:
        """The live parameter; looked up anew because training may replace it."""
        return cast(nn.Parameter, getattr(self.module, self.name))

    def by_unit(self, tensor: Tensor) -> Tensor:
        """View `tensor`, shaped like the parameter, as [units, block, …]; writes go through."""
        shape = tensor.shape
        split = tensor.view(*shape[: self.dim], shape[self.dim] // self.block, self.block, *shape[self.dim + 1 :])
        return split.movedim(self.dim, 0)

    def index(self, units: Tensor) -> Tensor:
        """Positions along `dim` that belong to `units`, [len(units) * block]."""
        return (units[:, None] * self.block + torch.arange(self.block, device=units.device)).flatten()


@dataclass(frozen=True, slots=True)
class Units:
    """All units of one kind in one layer.

    `reads` are the slices that compute a unit's value, `writes` those that pass it on to the layer's output; in-rows
    have none of the latter.
    """

    layer: int
    kind: Kind
    count: int
    reads: tuple[Slice, ...]
    writes: tuple[Slice, ...]

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Every parameter that goes when a unit goes."""
        return (*self.reads, *self.writes)

    @property
    def gates(self) -> tuple[Slice, ...]:
        """The weights whose common factor is the unit's: scaled by f, the unit counts f times."""
        return self.writes or self.reads

    @property
    def cost(self) -> int:
        """Parameters of one unit, with all units of other kinds there."""
        return sum(s.parameter.numel() for s in self.slices) // self.count if self.count else 0

    @torch.no_grad()
    def zero_(self, removed: Tensor) -> None:
        """Set everything that belongs to the units marked in `removed` (bool, [count]) to zero, in place."""
        for part in self.slices:
            part.by_unit(part.parameter.data)[removed.to(part.parameter.device)] = 0

    @torch.no_grad()
    def hold_(self, kept: Tensor) -> None:
        """Keep at zero, in place, what `zero_` made zero; `kept` is bool [count].

        A product is several times faster than an assignment at indices, and this is done after every step.
        """
        for part in self.slices:
            by_unit = part.by_unit(part.parameter.data)
            factor = kept.to(by_unit.device, by_unit.dtype)
            by_unit.mul_(factor.view(-1, *[1] * (by_unit.dim() - 1)))


@dataclass(frozen=True, slots=True)
class Matrix:
    """A projection's weights as single connections: [out, in], whatever way round the module stores them."""

    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """Live view [out, in] without gradient; writes go through."""
        return self._oriented(self.parameter.data)

    @property
    def gradient(self) -> Tensor | None:
        """View [out, in] of the gradient, if there is one."""
        return None if self.parameter.grad is None else self._oriented(self.parameter.grad)

    @property
    def parameter(self) -> nn.Parameter:
        """The live parameter, as stored."""
        return cast(nn.Parameter, self.module.weight)

    def _oriented(self, stored: Tensor) -> Tensor:
        return stored.T if isinstance(self.module, Conv1D) else stored


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one layer: q, k, v project h → heads * D, the output projects back."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    head_dim: int
    units: Units
    inputs: Units

    @property
    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """Query, key and value."""
        return self.query, self.key, self.value

    def removed_parameters(self, heads: int, inputs: int) -> int:
        """Parameters that go with so many head groups and in-rows; where they cross, they count once."""
        rows_a_head = sum(s.block for s in self.units.reads if s.name == "weight")
        return heads * self.units.cost + inputs * self.inputs.cost - heads * inputs * rows_a_head

    @property
    def groups(self) -> int:
        """Head groups G, that is, key-value heads."""
        return self.units.count

    @property
    def queries_per_group(self) -> int:
        """Query heads Q that share one key-value head."""
        return self.query.out_features // self.key.out_features if self.key.out_features else 1


@dataclass(frozen=True, slots=True)
class Mlp:
    """MLP of one layer: one input projection h → N, or two (gate, up), and the output N → h."""

    inputs: tuple[nn.Linear, ...]
    output: nn.Linear
    units: Units


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer."""

    attention: Attention
    mlp: Mlp

    @property
    def units(self) -> tuple[Units, Units, Units]:
        """In the order of `KINDS`."""
        return self.attention.units, self.mlp.units, self.attention.inputs

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Query, key, value, attention output, MLP inputs, MLP output."""
        attention, mlp = self.attention, self.mlp
        return tuple(Matrix(m) for m in (*attention.projections, attention.output, *mlp.inputs, mlp.output))


@dataclass(frozen=True)
class Anatomy:
    """A live model seen through its family row."""

    model: PreTrainedModel
    family: Family
    layers: tuple[Layer, ...]

    @property
    def stack(self) -> nn.Module:
        """The module whose children are the transformer layers."""
        return self.model.base_model.get_submodule(self.family.layers)

    @cached_property
    def units(self) -> tuple[Units, ...]:
        """All units: each layer's heads, then its neurons, then its in-rows."""
        return tuple(units for layer in self.layers for units in layer.units)

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """All projections, layer by layer."""
        return tuple(matrix for layer in self.layers for matrix in layer.matrices)

    @staticmethod
    def position(layer: int, kind: Kind) -> int:
        """Where in `units` a layer's units of one kind are."""
        return layer * len(KINDS) + KINDS.index(kind)

    def positions(self, kind: Kind) -> list[int]:
        """Where in `units` those of one kind are, by layer."""
        return [self.position(layer, kind) for layer in range(len(self.layers))]

    @property
    def encoder_parameters(self) -> int:
        """Parameters in the transformer layers: no embeddings, no final norm, no task head."""
        return count_parameters(self.stack)

    @property
    def removable_parameters(self) -> int:
        """Parameters that belong to heads or neurons."""
        return sum(u.count * u.cost for layer in self.layers for u in (layer.attention.units, layer.mlp.units))


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def bind(model: PreTrainedModel) -> Anatomy:
    """Find every head and neuron of a model.

    Raises:
        UnknownFamilyError: no row for this architecture.
        InvalidModelError: the row does not fit the model (a projection is missing, is not an `nn.Linear`, or cannot be
            divided into heads).
    """
    family = family_of(model.config.model_type)
    stack = model.base_model.get_submodule(family.layers)
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = tuple(
        Layer(_attention(layer, family, index, head_dim), _mlp(layer, family, index))
        for index, layer in enumerate(stack.children())
    )
    return Anatomy(model, family, layers)


def _linear(layer: nn.Module, path: str) -> nn.Linear:
    try:
        module = layer.get_submodule(path)
    except AttributeError:
        raise InvalidModelError(f"The model's layers have no {path!r}.", param="/model") from None
    if not isinstance(module, nn.Linear):
        raise InvalidModelError(f"{path!r} is a {type(module).__name__}, not a Linear layer.", param="/model")
    return module


def _slices(module: nn.Linear, dim: int, block: int) -> tuple[Slice, ...]:
    weight = Slice(module, "weight", dim, block)
    return (weight,) if module.bias is None or dim == 1 else (weight, Slice(module, "bias", 0, block))


def _attention(layer: nn.Module, family: Family, index: int, head_dim: int) -> Attention:
    row = family.attention
    query, key, value, output = (_linear(layer, path) for path in (row.query, row.key, row.value, row.output))
    widths = (query.out_features, key.out_features, value.out_features)
    if head_dim < 1 or any(width % head_dim for width in widths) or widths[0] % max(1, widths[1]):
        raise InvalidModelError(
            f"Layer {index}: query, key and value projections of widths {widths} cannot be divided into heads of "
            f"{head_dim}.",
            param="/model",
        )
    groups = key.out_features // head_dim
    query_block = query.out_features // groups if groups else head_dim
    reads = (*_slices(query, 0, query_block), *_slices(key, 0, head_dim), *_slices(value, 0, head_dim))
    units = Units(index, "heads", groups, reads, (Slice(output, "weight", 1, query_block),))
    columns = tuple(Slice(module, "weight", 1, 1) for module in (query, key, value))
    inputs = Units(index, "inputs", query.in_features, columns, ())
    return Attention(query, key, value, output, head_dim, units, inputs)


def _mlp(layer: nn.Module, family: Family, index: int) -> Mlp:
    inputs = tuple(_linear(layer, path) for path in family.mlp.inputs)
    output = _linear(layer, family.mlp.output)
    reads = tuple(part for module in inputs for part in _slices(module, 0, 1))
    return Mlp(inputs, output, Units(index, "neurons", output.in_features, reads, (Slice(output, "weight", 1, 1),)))
