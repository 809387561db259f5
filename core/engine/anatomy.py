"""Binds a family row to a live model: attentions and MLPs, layer by layer.

Everything downstream speaks in `Units`. Methods that remove single weights see the same blocks as `Matrix`.

Shapes: h hidden size, D head dim, G head groups, Q query heads a group, N neurons.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.engine.experts import separate
from core.engine.export.modeling_neuroprune import has, layers_of
from core.engine.units import Kind, Layout, Matrix, Part, Slice, Units, matrices_of
from core.errors import InvalidModelError
from core.families import family_of
from core.family import AttentionRow, ExpertsRow, Family, MlpRow, StackRow


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention of a layer: q, k, v project h → heads * D, the output projects back.

    `further` are the parts of projections besides, with as many rows a head as the query.

    It has in-rows only where query, key and value are all that reads its input.
    """

    row: AttentionRow
    query: Part
    key: Part
    value: Part
    further: tuple[Part, ...]
    output: Matrix
    head_dim: int
    units: Units
    inputs: Units

    @property
    def parts(self) -> tuple[Part, ...]:
        """Query, key and value, then the further ones."""
        return (self.query, self.key, self.value, *self.further)

    @property
    def projections(self) -> tuple[Matrix, ...]:
        """Query, key and value, or the one matrix in which they are fused; then the further ones."""
        return matrices_of(self.parts)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The projections, then the output."""
        return *self.projections, self.output

    @property
    def readers(self) -> tuple[tuple[Matrix, ...], ...]:
        """The projections, together where they read the same: with cross attention, the query is apart."""
        if not self.row.cross:
            return (self.projections,)
        return matrices_of((self.query,)), matrices_of((self.key, self.value))

    def removed_parameters(self, heads: int, inputs: int) -> int:
        """Parameters that go with so many head groups and in-rows; where they cross, they count once."""
        rows_a_head = sum(part.weight.layout.block for part in self.parts)
        return heads * self.units.cost + inputs * self.inputs.cost - heads * inputs * rows_a_head

    @property
    def groups(self) -> int:
        """Head groups G, that is, key-value heads."""
        return self.units.count

    @property
    def queries_per_group(self) -> int:
        """Query heads Q that share one key-value head."""
        return self.query.weight.layout.block // self.head_dim


@dataclass(frozen=True, slots=True)
class Mlp:
    """One MLP of a layer: one projection h → N, or two whose product counts (gate, up), and the output N → h."""

    row: MlpRow
    factors: tuple[Part, ...]
    output: Matrix
    units: Units

    @property
    def inputs(self) -> tuple[Matrix, ...]:
        """The matrices of `factors`: gate and up may be fused in one."""
        return matrices_of(self.factors)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The inputs (or both in one), then the output."""
        return *self.inputs, self.output


@dataclass(frozen=True, slots=True)
class Mixture:
    """The experts of a layer, each an MLP; the router gives every token to `experts_per_token` of them."""

    row: ExpertsRow
    router: nn.Module
    mlps: tuple[Mlp, ...]
    units: Units
    experts_per_token: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer; among its MLPs, the experts of its mixture come last."""

    module: nn.Module
    attentions: tuple[Attention, ...]
    mlps: tuple[Mlp, ...]
    mixture: Mixture | None

    @property
    def reads_target(self) -> bool:
        """Whether it is a decoder's that reads an encoder's states besides."""
        return any(attention.row.cross for attention in self.attentions)

    @property
    def dense_mlps(self) -> tuple[Mlp, ...]:
        """Those that every token passes through."""
        experts = 0 if self.mixture is None else len(self.mixture.mlps)
        return self.mlps[: len(self.mlps) - experts]

    @property
    def parts(self) -> tuple[Attention | Mlp, ...]:
        """The attentions, then the MLPs."""
        return *self.attentions, *self.mlps

    @property
    def units(self) -> tuple[Units, ...]:
        """All heads, then all neurons, then all in-rows, then all experts."""
        experts = () if self.mixture is None else (self.mixture.units,)
        return *(part.units for part in self.parts), *(attention.inputs for attention in self.attentions), *experts

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Of every attention the projections and the output; of every MLP the inputs and the output."""
        return tuple(matrix for part in self.parts for matrix in part.matrices)


@dataclass(frozen=True)
class Anatomy:
    """A live model seen through its family row; `layers` are those of all stacks."""

    model: PreTrainedModel
    family: Family
    layers: tuple[Layer, ...]

    @cached_property
    def stack(self) -> nn.ModuleList:
        """The layers' modules."""
        return nn.ModuleList(layer.module for layer in self.layers)

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """Those of all layers."""
        return tuple(attention for layer in self.layers for attention in layer.attentions)

    @cached_property
    def mlps(self) -> tuple[Mlp, ...]:
        """Those of all layers."""
        return tuple(mlp for layer in self.layers for mlp in layer.mlps)

    @cached_property
    def mixtures(self) -> tuple[Mixture, ...]:
        """Those of all layers."""
        return tuple(layer.mixture for layer in self.layers if layer.mixture is not None)

    @cached_property
    def units(self) -> tuple[Units, ...]:
        """All units, layer by layer."""
        return tuple(units for layer in self.layers for units in layer.units)

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """All projections, layer by layer."""
        return tuple(matrix for layer in self.layers for matrix in layer.matrices)

    def positions(self, kind: Kind) -> list[int]:
        """Where in `units` those of one kind are: of every attention heads and in-rows, of every MLP neurons, of every
        mixture experts.
        """
        return [units.position for units in self.units if units.kind == kind]

    @property
    def encoder_parameters(self) -> int:
        """Parameters in the transformer layers of all stacks: no embeddings, no final norm, no task head."""
        return count_parameters(self.stack)

    @property
    def removable_parameters(self) -> int:
        """Parameters that belong to heads, neurons or experts."""
        return sum(units.count * units.cost for units in self.units if units.kind != "inputs")


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def bind(model: PreTrainedModel) -> Anatomy:
    """Find every head, neuron and expert of a model; experts that are stored as one are taken apart, in place.

    Raises:
        UnknownFamilyError: no row for this architecture.
        InvalidModelError: the row does not fit the model (layers or a projection are missing, one is neither an
            `nn.Linear` nor a `Conv1D`, or cannot be divided into heads).
    """
    family = family_of(model.config.model_type)
    layers: list[Layer] = []
    position = 0
    for stack in family.stacks:
        for module in _layers(model, stack):
            layers.append(_layer(module, stack, model.config, len(layers), position))
            position += len(layers[-1].units)
    return Anatomy(model, family, tuple(layers))


def _layers(model: PreTrainedModel, stack: StackRow) -> list[nn.Module]:
    try:
        return layers_of(model.base_model, stack.layers)
    except AttributeError:
        raise InvalidModelError(f"The model has no layers {stack.layers!r}.", param="/model") from None


def _layer(module: nn.Module, stack: StackRow, config: PreTrainedConfig, index: int, position: int) -> Layer:
    """Bind one layer, the first of whose units are at `position` of all."""
    attentions = [row for row in stack.attentions if has(module, row.core)]
    mlps = [row for row in stack.mlps if has(module, row.inputs[0])]
    experts = stack.experts if stack.experts is not None and has(module, stack.experts.module) else None
    if not attentions or not (mlps or experts):
        expected = [row.core for row in stack.attentions] if not attentions else _mlp_paths(stack)
        raise InvalidModelError(f"Layer {index} of the model has no {expected[0]!r}.", param="/model")
    dense = len(mlps)
    if experts is not None:
        mlps += [MlpRow(**paths, activation=experts.activation) for paths in separate(module, experts)]
    neurons = position + len(attentions)
    inputs = neurons + len(mlps)
    bound = tuple(_mlp(module, row, index, neurons + i) for i, row in enumerate(mlps))
    return Layer(
        module,
        tuple(_attention(module, row, config, index, (position + i, inputs + i)) for i, row in enumerate(attentions)),
        bound,
        None if experts is None else _mixture(module, experts, bound[dense:], index, inputs + len(attentions)),
    )


def _mlp_paths(stack: StackRow) -> list[str]:
    """By what the MLPs or experts of a layer are known."""
    paths = [row.inputs[0] for row in stack.mlps]
    return paths if stack.experts is None else [*paths, stack.experts.module]


def _projection(layer: nn.Module, path: str) -> Matrix:
    try:
        module = layer.get_submodule(path)
    except AttributeError:
        raise InvalidModelError(f"The model's layers have no {path!r}.", param="/model") from None
    if not isinstance(module, nn.Linear | Conv1D):
        raise InvalidModelError(
            f"{path!r} is a {type(module).__name__}, neither a Linear layer nor a Conv1D.", param="/model"
        )
    return Matrix(module)


def _divide(
    layer: nn.Module, paths: tuple[str, ...], blocks: tuple[int, ...], problem: str, *, interleaved: bool = False
) -> tuple[Part, ...]:
    """The rows of each projection that belong to each unit, `blocks` a unit.

    Args:
        layer: One transformer layer.
        paths: One for each projection; one that comes more than once is that of a module in which they are fused.
        blocks: Rows a unit of each projection.
        problem: What to say, with a place for the widths, where the rows are not as many.
        interleaved: Fused projections come unit by unit, not one after the other.

    Raises:
        InvalidModelError: there are not as many units in each projection.
    """
    sizes: Counter[str] = Counter()
    for path, block in zip(paths, blocks, strict=True):
        sizes[path] += block
    matrices = {path: _projection(layer, path) for path in sizes}
    widths = tuple(len(matrix.weight) for matrix in matrices.values())
    count = widths[0] // sizes[paths[0]] if min(blocks) > 0 else 0
    if widths != tuple(count * size for size in sizes.values()):
        raise InvalidModelError(problem.format(widths), param="/model")
    parts, ahead = [], Counter[str]()
    for path, block in zip(paths, blocks, strict=True):
        start = ahead[path] if interleaved else count * ahead[path]
        layout = Layout(count, block, start, stride=sizes[path] if interleaved else block)
        module = matrices[path].module
        bias = None if module.bias is None else Slice(module, "bias", 0, layout)
        parts.append(Part(Slice(module, "weight", 0, layout), bias))
        ahead[path] += block
    return tuple(parts)


def _attention(
    layer: nn.Module, row: AttentionRow, config: PreTrainedConfig, index: int, positions: tuple[int, int]
) -> Attention:
    """Bind one attention, whose heads and in-rows are at these positions of all units."""
    heads = getattr(config, row.heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    queries = heads // (getattr(config, row.key_value_heads, None) or heads)
    further = tuple(path for path in row.further_projections if has(layer, path))
    blocks = (queries * head_dim, head_dim, head_dim, *(queries * head_dim for _ in further))
    problem = (
        f"Layer {index}: query, key and value projections of widths {{}} cannot be divided into heads of {head_dim}."
    )
    parts = _divide(layer, (row.query, row.key, row.value, *further), blocks, problem, interleaved=row.interleaved)
    query, key, value, *others = parts
    output = _projection(layer, row.output)
    groups = query.weight.layout.count
    reads = tuple(part for projection in parts for part in projection.slices)
    written = Slice(output.module, "weight", 1, Layout(groups, blocks[0], 0, blocks[0]))
    units = Units(positions[0], index, "heads", groups, reads, (written,))
    inputs = _inputs(positions[1], index, parts, offered=not row.cross and row.norm is None)
    return Attention(row, query, key, value, tuple(others), output, head_dim, units, inputs)


def _inputs(position: int, index: int, parts: tuple[Part, ...], *, offered: bool) -> Units:
    """The in-rows of an attention: the columns of its projections; none where something else reads its input, too."""
    matrices = matrices_of(parts)
    count = matrices[0].weight.shape[1]
    if not offered:
        return Units(position, index, "inputs", 0, (), ())
    columns = tuple(Slice(matrix.module, "weight", 1, Layout(count, 1, 0, 1)) for matrix in matrices)
    return Units(position, index, "inputs", count, columns, ())


def _mlp(layer: nn.Module, row: MlpRow, index: int, position: int) -> Mlp:
    """Bind one MLP, whose neurons are at this position of all units."""
    problem = f"Layer {index}: the MLP's input projections have the widths {{}}; they must be alike."
    factors = _divide(layer, row.inputs, (1,) * len(row.inputs), problem)
    output = _projection(layer, row.output)
    neurons = factors[0].weight.layout.count
    reads = tuple(part for factor in factors for part in factor.slices)
    written = Slice(output.module, "weight", 1, Layout(neurons, 1, 0, 1))
    return Mlp(row, factors, output, Units(position, index, "neurons", neurons, reads, (written,)))


def _mixture(layer: nn.Module, row: ExpertsRow, mlps: tuple[Mlp, ...], index: int, position: int) -> Mixture:
    """Bind a layer's experts, whose place is at this position of all units."""
    router = layer.get_submodule(row.router)
    rows = Slice(router, "weight", 0, Layout(len(mlps), 1, 0, 1))
    units = Units(position, index, "experts", len(mlps), (rows,), (), members=tuple(mlp.units for mlp in mlps))
    return Mixture(row, router, mlps, units, cast(int, router.top_k))
