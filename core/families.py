"""Where each transformer family keeps its heads and neurons: one frozen row a family, no code.

A row names modules by their path inside one transformer layer. `core.engine.anatomy` binds a row to a live model;
a pruned bundle carries its own row, so that it can be loaded without this table.
"""

from dataclasses import asdict, dataclass
from typing import Any

from core.errors import UnknownFamilyError, shown


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """Attention of one layer. All paths are relative to the layer.

    `core` is the module whose forward maps hidden states to what the layer adds (or to what `output` reads, where
    `output` lies outside of it). `head_counts` and `widths` name live attributes, besides the weights, that the
    forward reads: how many query heads there are, and their total width.
    """

    core: str
    query: str
    key: str
    value: str
    output: str
    head_counts: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MlpRow:
    """MLP of one layer: one `inputs` projection, or two for a gated one (gate, up), and the `output`."""

    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class Family:
    """One row: `layers` is the path of the layer list from the base model (without task head)."""

    model_type: str
    title: str
    layers: str
    attention: AttentionRow
    mlp: MlpRow
    tasks: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


FAMILIES: tuple[Family, ...] = (
    Family(
        model_type="bert",
        title="BERT",
        layers="encoder.layer",
        attention=AttentionRow(
            core="attention.self",
            query="attention.self.query",
            key="attention.self.key",
            value="attention.self.value",
            output="attention.output.dense",
            head_counts=("attention.self.num_attention_heads",),
            widths=("attention.self.all_head_size",),
        ),
        mlp=MlpRow(inputs=("intermediate.dense",), output="output.dense"),
        tasks=("sentence-embedding", "sequence-classification", "regression"),
    ),
    Family(
        model_type="llama",
        title="Llama",
        layers="layers",
        attention=AttentionRow(
            core="self_attn",
            query="self_attn.q_proj",
            key="self_attn.k_proj",
            value="self_attn.v_proj",
            output="self_attn.o_proj",
        ),
        mlp=MlpRow(inputs=("mlp.gate_proj", "mlp.up_proj"), output="mlp.down_proj"),
        tasks=("causal-lm", "sequence-classification", "regression"),
    ),
)


def family_of(model_type: str) -> Family:
    """The row of an architecture by its config's `model_type`.

    Raises:
        UnknownFamilyError: no row; the message lists the known ones.
    """
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(f.model_type for f in FAMILIES)
    raise UnknownFamilyError(
        f"The architecture {shown(model_type)} is not supported; known are: {known}. "
        "docs/add-a-family.md shows how to add a row.",
        param="/model",
    )
