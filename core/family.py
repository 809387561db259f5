"""What a family's row says: by their paths, where a transformer keeps its heads and neurons.

A row names modules by their path inside one transformer layer, and entries of the model's config. `core.engine.anatomy`
binds a row to a live model; a pruned bundle carries its own row, so that it can be loaded without the table.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class BiasRow:
    """A bias by head that the first layer's attention makes and hands on to those of the layers after it.

    Pruned, every layer makes the bias of its own heads. `argument` is the name under which it is handed on. `table` is
    the embedding that it is looked up in, one column a head, in the first layer, and `has_table` the attribute that
    says whether an attention has one; both are None where the bias is nothing but zeros.
    """

    argument: str
    table: str | None = None
    has_table: str | None = None


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """One attention of a layer. All paths are relative to the layer; where there is no `core`, it lacks this attention.

    `core` is the module whose forward maps hidden states to what the layer adds (or to what `output` reads, where
    `output` lies outside of it). `head_counts` and `widths` name live attributes, besides the weights, that the
    forward reads: how many query heads there are, and their total width; `key_value_head_counts`, how many key-value
    heads. Where one is an entry of the config, which layers share, a pruned layer gets its own copy of the config.

    Where `query`, `key` and `value` name the same module, they are fused in it: one after the other or, if
    `interleaved`, head by head, that is, query, key and value of the first head (with grouped-query attention: of the
    first group), then those of the second.

    `further_projections` are projections besides, such as those of relative positions, with rows for each query head;
    a layer has all, some or none of them. `further_inputs` names arguments of the core's forward, besides the first,
    that any of the projections reads.

    `heads` and `key_value_heads` are the config's entries that say how many there are. `cross` is true where key and
    value read the output of another stack. `returns` is the length of the tuple that the core's forward returns.
    `norm` is a norm inside of the core, if it adds what it reads and normalises the sum. `residual` names an argument
    of the core's forward that it adds to the output. `by_head` names those, made outside of the layers, that have an
    entry for each dense head: [batch, heads, …] or, with three dimensions, [batch * heads, …, …].
    """

    core: str
    query: str
    key: str
    value: str
    output: str
    head_counts: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    key_value_head_counts: tuple[str, ...] = ()
    interleaved: bool = False
    further_projections: tuple[str, ...] = ()
    further_inputs: tuple[str, ...] = ()
    heads: str = "num_attention_heads"
    key_value_heads: str = "num_key_value_heads"
    cross: bool = False
    returns: int = 2
    norm: str | None = None
    bias: BiasRow | None = None
    by_head: tuple[str, ...] = ()
    residual: str | None = None


@dataclass(frozen=True, slots=True)
class MlpRow:
    """One MLP of a layer: one `inputs` projection, or two for a gated one (gate, up), and the `output`.

    Gate and up are fused, one after the other, where both name the same module. `activation` is the config's entry
    that says what the (gate's) values pass through; `fixed_activation`, what it is where the config does not say.
    Where there is none of `inputs`, the layer lacks this MLP.
    """

    inputs: tuple[str, ...]
    output: str
    activation: str = "hidden_act"
    fixed_activation: str | None = None


@dataclass(frozen=True, slots=True)
class ExpertsRow:
    """A mixture of gated MLPs, of which each token passes through a few.

    `module` holds the weights of all experts as transformers stores them, `gate_up_proj` [experts, 2 * neurons, h] and
    `down_proj` [experts, h, neurons], and says in `num_experts` and `intermediate_dim` how many there are of which
    width. `router` chooses among them: it has a weight [experts, h], and says in `num_experts` and `top_k` of how many
    it takes how many. Where there is no such module, the layer has no experts.
    """

    module: str
    router: str
    activation: str = "hidden_act"


@dataclass(frozen=True, slots=True)
class StackRow:
    """Layers that are alike: `layers` is the path of their list from the base model (without task head).

    In that path `*` stands for every child of a list. `depth` are the config's entries whose product is the number of
    layers. A layer has those of `attentions`, and of `mlps` and `experts`, whose modules are there, at least one of
    either kind.
    """

    layers: str
    attentions: tuple[AttentionRow, ...]
    mlps: tuple[MlpRow, ...]
    experts: ExpertsRow | None = None
    depth: tuple[str, ...] = ("num_hidden_layers",)


def one_stack(layers: str, attention: AttentionRow, mlp: MlpRow) -> tuple[StackRow, ...]:
    """What most families are: one stack, whose layers have one attention and one MLP."""
    return (StackRow(layers, (attention,), (mlp,)),)


@dataclass(frozen=True, slots=True)
class UniformRow:
    """The config's entries from which the stock class builds all of its layers with one width.

    `neurons` is the MLP's width. `heads`, `key_value_heads` (where they are fewer) and `head_dim` are named where the
    config says how wide a head is. Where it follows from the number of heads, removed ones would make those that stay
    wider: only MLPs can be narrower. `heads_divide` names an entry that the number of heads has to divide.
    """

    neurons: str
    heads: str | None = None
    key_value_heads: str | None = None
    head_dim: str | None = None
    heads_divide: str | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One row.

    `tasks` are those that jobs can name; of some families the engine can prune a model, but no task trains it yet.
    `derived` names tensors of a layer that a model's files may hold and the model computes anew; they are ignored.
    `positions_after_padding` is true where the first token's position follows the padding token's id, so that fewer
    tokens fit than the config has positions. `uniform` is None where no entries of the config give all layers another
    width. `gguf` names the architecture of llama.cpp that computes the same and takes layers of different width;
    without one there is no export to GGUF.
    """

    model_type: str
    title: str
    stacks: tuple[StackRow, ...]
    tasks: tuple[str, ...]
    derived: tuple[str, ...] = ()
    positions_after_padding: bool = False
    uniform: UniformRow | None = None
    gguf: str | None = None

    @property
    def export_formats(self) -> tuple[str, ...]:
        """What a job may ask for in `export.formats`."""
        has_cross_attention = any(attention.cross for stack in self.stacks for attention in stack.attentions)
        reads_one_text = not has_cross_attention and "image-classification" not in self.tasks
        # What a router chooses decides how many tokens an expert reads.
        has_experts = any(stack.experts is not None for stack in self.stacks)
        further = {"executorch": reads_one_text and not has_experts, "gguf": self.gguf is not None}
        return ("safetensors", "onnx", *(name for name, is_possible in further.items() if is_possible))

    def with_all_heads(self) -> "Family":
        """The row of models that keep all of their heads: nothing is narrowed to some of them."""

        def whole(attention: AttentionRow) -> AttentionRow:
            return replace(attention, bias=None, by_head=())

        stacks = (replace(stack, attentions=tuple(map(whole, stack.attentions))) for stack in self.stacks)
        return replace(self, stacks=tuple(stacks))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def described(self) -> dict[str, Any]:
        """What users are told of it, as JSON types."""
        return {
            "model_type": self.model_type,
            "title": self.title,
            "tasks": list(self.tasks),
            "uniform": list(self.uniform_kinds),
            "export_formats": list(self.export_formats),
        }

    @property
    def uniform_kinds(self) -> tuple[str, ...]:
        """What can go where all layers are to have one width, and the stock class is to load them."""
        if self.uniform is None:
            return ()
        return ("neurons",) if self.uniform.heads is None else ("heads", "neurons")
