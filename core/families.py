"""Where each transformer family keeps its heads and neurons: one frozen row a family, no code.

A row names modules by their path inside one transformer layer. `core.engine.anatomy` binds a row to a live model;
a pruned bundle carries its own row, so that it can be loaded without this table.
"""

from dataclasses import asdict, dataclass, replace
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
    """MLP of one layer: one `inputs` projection, or two for a gated one (gate, up), and the `output`.

    `activation` is what the model's config calls the function between them.
    """

    inputs: tuple[str, ...]
    output: str
    activation: str = "hidden_act"


@dataclass(frozen=True, slots=True)
class Family:
    """One row: `layers` is the path of the layer list from the base model (without task head).

    `derived` names tensors of a layer that a model's files may hold and the model computes anew; they are ignored.
    `positions_after_padding` is true where the first token's position follows the padding token's id, so that fewer
    tokens fit than the config has positions. `gguf` names the architecture of llama.cpp that computes the same and
    takes layers of different width; without one there is no export to GGUF.
    """

    model_type: str
    title: str
    layers: str
    attention: AttentionRow
    mlp: MlpRow
    tasks: tuple[str, ...]
    derived: tuple[str, ...] = ()
    positions_after_padding: bool = False
    gguf: str | None = None

    @property
    def export_formats(self) -> tuple[str, ...]:
        """What a job may ask for in `export.formats`."""
        everywhere = ("safetensors", "onnx", "executorch")
        return everywhere if self.gguf is None else (*everywhere, "gguf")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


_ENCODER_TASKS = ("sentence-embedding", "sequence-classification", "regression")
_DECODER_TASKS = ("causal-lm", "sequence-classification", "regression")

_BERT = Family(
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
    tasks=_ENCODER_TASKS,
)
_ROBERTA = replace(_BERT, model_type="roberta", title="RoBERTa", positions_after_padding=True)
_LLAMA = Family(
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
    tasks=_DECODER_TASKS,
    derived=("self_attn.rotary_emb.inv_freq",),
    gguf="deci",
)
_GEMMA_2 = replace(
    _LLAMA,
    model_type="gemma2",
    title="Gemma 2",
    mlp=replace(_LLAMA.mlp, activation="hidden_activation"),
    gguf=None,
)

FAMILIES: tuple[Family, ...] = (
    _BERT,
    _ROBERTA,
    replace(_ROBERTA, model_type="xlm-roberta", title="XLM-RoBERTa"),
    replace(_ROBERTA, model_type="camembert", title="CamemBERT"),
    replace(_BERT, model_type="electra", title="ELECTRA"),
    Family(
        model_type="distilbert",
        title="DistilBERT",
        layers="transformer.layer",
        attention=AttentionRow(
            core="attention",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            output="attention.out_lin",
        ),
        mlp=MlpRow(inputs=("ffn.lin1",), output="ffn.lin2", activation="activation"),
        tasks=_ENCODER_TASKS,
    ),
    _LLAMA,
    replace(_LLAMA, model_type="mistral", title="Mistral"),
    replace(_LLAMA, model_type="qwen2", title="Qwen2"),
    replace(_LLAMA, model_type="qwen3", title="Qwen3", gguf="openelm"),
    _GEMMA_2,
    replace(_GEMMA_2, model_type="gemma3_text", title="Gemma 3 (text)"),
    Family(
        model_type="opt",
        title="OPT",
        layers="decoder.layers",
        attention=AttentionRow(
            core="self_attn",
            query="self_attn.q_proj",
            key="self_attn.k_proj",
            value="self_attn.v_proj",
            output="self_attn.out_proj",
            head_counts=("self_attn.num_heads",),
        ),
        mlp=MlpRow(inputs=("fc1",), output="fc2", activation="activation_function"),
        tasks=_DECODER_TASKS,
    ),
    Family(
        model_type="gpt_neo",
        title="GPT-Neo",
        layers="h",
        attention=AttentionRow(
            core="attn.attention",
            query="attn.attention.q_proj",
            key="attn.attention.k_proj",
            value="attn.attention.v_proj",
            output="attn.attention.out_proj",
            head_counts=("attn.attention.num_heads",),
        ),
        mlp=MlpRow(inputs=("mlp.c_fc",), output="mlp.c_proj", activation="activation_function"),
        tasks=_DECODER_TASKS,
        derived=("attn.attention.bias", "attn.attention.masked_bias"),
    ),
    Family(
        model_type="gptj",
        title="GPT-J",
        layers="h",
        attention=AttentionRow(
            core="attn",
            query="attn.q_proj",
            key="attn.k_proj",
            value="attn.v_proj",
            output="attn.out_proj",
            head_counts=("attn.num_attention_heads",),
        ),
        mlp=MlpRow(inputs=("mlp.fc_in",), output="mlp.fc_out", activation="activation_function"),
        tasks=_DECODER_TASKS,
        derived=("attn.bias", "attn.masked_bias"),
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
