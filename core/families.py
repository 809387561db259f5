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
    forward reads: how many query heads there are, and their total width; `key_value_head_counts`, how many key-value
    heads. Where one is an entry of the config, which layers share, a pruned layer gets its own copy of the config.

    Where `query`, `key` and `value` name the same module, they are fused in it: one after the other or, if
    `interleaved`, head by head, that is, query, key and value of the first head (with grouped-query attention: of the
    first group), then those of the second.

    `further_projections` are projections besides, such as those of relative positions, with rows for each query head; a
    layer has all, some or none of them. `further_inputs` names the arguments of the core's forward, besides the first,
    that any of the projections reads.
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


@dataclass(frozen=True, slots=True)
class MlpRow:
    """MLP of one layer: one `inputs` projection, or two for a gated one (gate, up), and the `output`.

    Gate and up are fused, one after the other, where both name the same module. `activation` is the config's entry
    that says what the (gate's) values pass through.
    """

    inputs: tuple[str, ...]
    output: str
    activation: str = "hidden_act"


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
    """One row: `layers` is the path of the layer list from the base model (without task head).

    `tasks` are those that jobs can name; of some families the engine can prune a model, but no task trains it yet.
    `derived` names tensors of a layer that a model's files may hold and the model computes anew; they are ignored.
    `positions_after_padding` is true where the first token's position follows the padding token's id, so that fewer
    tokens fit than the config has positions. `uniform` is None where no entries of the config give all layers another
    width. `gguf` names the architecture of llama.cpp that computes the same and takes layers of different width;
    without one there is no export to GGUF.
    """

    model_type: str
    title: str
    layers: str
    attention: AttentionRow
    mlp: MlpRow
    tasks: tuple[str, ...]
    derived: tuple[str, ...] = ()
    positions_after_padding: bool = False
    uniform: UniformRow | None = None
    gguf: str | None = None

    @property
    def export_formats(self) -> tuple[str, ...]:
        """What a job may ask for in `export.formats`."""
        everywhere = ("safetensors", "onnx", "executorch")
        return everywhere if self.gguf is None else (*everywhere, "gguf")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @property
    def uniform_kinds(self) -> tuple[str, ...]:
        """What can go where all layers are to have one width, and the stock class is to load them."""
        if self.uniform is None:
            return ()
        return ("neurons",) if self.uniform.heads is None else ("heads", "neurons")


_ENCODER_TASKS = ("sentence-embedding", "sequence-classification", "regression")
_DECODER_TASKS = ("causal-lm", "sequence-classification", "regression")

_FREE_HEADS = UniformRow(
    neurons="intermediate_size",
    heads="num_attention_heads",
    key_value_heads="num_key_value_heads",
    head_dim="head_dim",
)
_DIVIDING_HEADS = replace(_FREE_HEADS, heads_divide="hidden_size")

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
    uniform=UniformRow(neurons="intermediate_size"),
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
    uniform=_DIVIDING_HEADS,
    gguf="deci",
)
_GEMMA_2 = replace(
    _LLAMA,
    model_type="gemma2",
    title="Gemma 2",
    mlp=replace(_LLAMA.mlp, activation="hidden_activation"),
    gguf=None,
)
_VIT = Family(
    model_type="vit",
    title="ViT",
    layers="layers",
    attention=AttentionRow(
        core="attention",
        query="attention.q_proj",
        key="attention.k_proj",
        value="attention.v_proj",
        output="attention.o_proj",
    ),
    mlp=MlpRow(inputs=("mlp.fc1",), output="mlp.fc2"),
    tasks=(),
    uniform=UniformRow(neurons="intermediate_size", heads="num_attention_heads", head_dim="head_dim"),
)

FAMILIES: tuple[Family, ...] = (
    _BERT,
    _ROBERTA,
    replace(_ROBERTA, model_type="xlm-roberta", title="XLM-RoBERTa"),
    replace(_ROBERTA, model_type="camembert", title="CamemBERT"),
    replace(_BERT, model_type="electra", title="ELECTRA"),
    replace(
        _BERT,
        model_type="deberta-v2",
        title="DeBERTa-v2 and v3",
        attention=replace(
            _BERT.attention,
            query="attention.self.query_proj",
            key="attention.self.key_proj",
            value="attention.self.value_proj",
            further_projections=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
            further_inputs=("rel_embeddings",),
        ),
    ),
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
        uniform=UniformRow(neurons="hidden_dim"),
    ),
    _LLAMA,
    replace(_LLAMA, model_type="mistral", title="Mistral", uniform=_FREE_HEADS),
    replace(_LLAMA, model_type="qwen2", title="Qwen2", uniform=_FREE_HEADS),
    replace(_LLAMA, model_type="qwen3", title="Qwen3", uniform=_FREE_HEADS, gguf="openelm"),
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
        uniform=UniformRow(neurons="ffn_dim"),
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
        uniform=UniformRow(neurons="intermediate_size"),
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
        uniform=UniformRow(neurons="n_inner"),
    ),
    Family(
        model_type="gpt2",
        title="GPT-2",
        layers="h",
        attention=AttentionRow(
            core="attn",
            query="attn.c_attn",
            key="attn.c_attn",
            value="attn.c_attn",
            output="attn.c_proj",
            head_counts=("attn.num_heads",),
            widths=("attn.split_size",),
        ),
        mlp=MlpRow(inputs=("mlp.c_fc",), output="mlp.c_proj", activation="activation_function"),
        tasks=_DECODER_TASKS,
        uniform=UniformRow(neurons="n_inner"),
    ),
    Family(
        model_type="gpt_neox",
        title="GPT-NeoX",
        layers="layers",
        attention=AttentionRow(
            core="attention",
            query="attention.query_key_value",
            key="attention.query_key_value",
            value="attention.query_key_value",
            output="attention.dense",
            interleaved=True,
        ),
        mlp=MlpRow(inputs=("mlp.dense_h_to_4h",), output="mlp.dense_4h_to_h"),
        tasks=_DECODER_TASKS,
        uniform=UniformRow(neurons="intermediate_size"),
    ),
    Family(
        model_type="phi3",
        title="Phi-3",
        layers="layers",
        attention=AttentionRow(
            core="self_attn",
            query="self_attn.qkv_proj",
            key="self_attn.qkv_proj",
            value="self_attn.qkv_proj",
            output="self_attn.o_proj",
            head_counts=("self_attn.config.num_attention_heads",),
            key_value_head_counts=("self_attn.num_key_value_heads",),
        ),
        mlp=MlpRow(inputs=("mlp.gate_up_proj", "mlp.gate_up_proj"), output="mlp.down_proj"),
        tasks=_DECODER_TASKS,
        # The model reads `head_dim`, but its config computes from the number of heads how many factors of its rotary
        # embedding there have to be.
        uniform=UniformRow(neurons="intermediate_size"),
    ),
    Family(
        model_type="modernbert",
        title="ModernBERT",
        layers="layers",
        attention=AttentionRow(core="attn", query="attn.Wqkv", key="attn.Wqkv", value="attn.Wqkv", output="attn.Wo"),
        mlp=MlpRow(inputs=("mlp.Wi", "mlp.Wi"), output="mlp.Wo", activation="hidden_activation"),
        tasks=_ENCODER_TASKS,
        uniform=UniformRow(neurons="intermediate_size"),
    ),
    _VIT,
    replace(_VIT, model_type="deit", title="DeiT"),
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
