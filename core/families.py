"""Where each transformer family keeps its heads and neurons: one frozen row a family, no code."""

from dataclasses import replace

from core.errors import UnknownFamilyError, shown
from core.family import AttentionRow, BiasRow, ExpertsRow, Family, MlpRow, StackRow, UniformRow, one_stack

_ENCODER_TASKS = ("sentence-embedding", "sequence-classification", "regression", "masked-lm")
_DECODER_TASKS = ("causal-lm", "sequence-classification", "regression")
_ENCODER_DECODER_TASKS = ("seq2seq",)

_FREE_HEADS = UniformRow(
    neurons="intermediate_size",
    heads="num_attention_heads",
    key_value_heads="num_key_value_heads",
    head_dim="head_dim",
)
_DIVIDING_HEADS = replace(_FREE_HEADS, heads_divide="hidden_size")

_BERT_ATTENTION = AttentionRow(
    core="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    head_counts=("attention.self.num_attention_heads",),
    widths=("attention.self.all_head_size",),
)
_BERT_MLP = MlpRow(inputs=("intermediate.dense",), output="output.dense")
_BERT = Family(
    model_type="bert",
    title="BERT",
    stacks=one_stack("encoder.layer", _BERT_ATTENTION, _BERT_MLP),
    tasks=_ENCODER_TASKS,
    uniform=UniformRow(neurons="intermediate_size"),
)
_ROBERTA = replace(_BERT, model_type="roberta", title="RoBERTa", positions_after_padding=True)
_LLAMA_ATTENTION = AttentionRow(
    core="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
)
_LLAMA_MLP = MlpRow(inputs=("mlp.gate_proj", "mlp.up_proj"), output="mlp.down_proj")
_LLAMA = Family(
    model_type="llama",
    title="Llama",
    stacks=one_stack("layers", _LLAMA_ATTENTION, _LLAMA_MLP),
    tasks=_DECODER_TASKS,
    derived=("self_attn.rotary_emb.inv_freq",),
    uniform=_DIVIDING_HEADS,
    gguf="deci",
)
_MIXTRAL = Family(
    model_type="mixtral",
    title="Mixtral",
    stacks=(StackRow("layers", (_LLAMA_ATTENTION,), (), ExpertsRow(module="mlp.experts", router="mlp.gate")),),
    tasks=_DECODER_TASKS,
)
_GEMMA_2 = replace(
    _LLAMA,
    model_type="gemma2",
    title="Gemma 2",
    stacks=one_stack("layers", _LLAMA_ATTENTION, replace(_LLAMA_MLP, activation="hidden_activation")),
    gguf=None,
)
_VIT = Family(
    model_type="vit",
    title="ViT",
    stacks=one_stack(
        "layers",
        AttentionRow(
            core="attention",
            query="attention.q_proj",
            key="attention.k_proj",
            value="attention.v_proj",
            output="attention.o_proj",
        ),
        MlpRow(inputs=("mlp.fc1",), output="mlp.fc2"),
    ),
    tasks=("image-classification",),
    uniform=UniformRow(neurons="intermediate_size", heads="num_attention_heads", head_dim="head_dim"),
)


def _t5_attention(path: str, bias: BiasRow, *, cross: bool) -> AttentionRow:
    return AttentionRow(
        core=path,
        query=f"{path}.q",
        key=f"{path}.k",
        value=f"{path}.v",
        output=f"{path}.o",
        head_counts=(f"{path}.n_heads",),
        widths=(f"{path}.inner_dim",),
        cross=cross,
        returns=3,
        bias=bias,
    )


def _t5_mlps(path: str) -> tuple[MlpRow, MlpRow]:
    """The plain one of T5 1.0, and the gated one of T5 1.1."""
    inside = f"{path}.DenseReluDense"
    plain = MlpRow(inputs=(f"{inside}.wi",), output=f"{inside}.wo", activation="dense_act_fn")
    return plain, replace(plain, inputs=(f"{inside}.wi_0", f"{inside}.wi_1"))


_T5_SELF_ATTENTION = _t5_attention(
    "layer.0.SelfAttention",
    BiasRow(
        argument="position_bias",
        table="layer.0.SelfAttention.relative_attention_bias",
        has_table="layer.0.SelfAttention.has_relative_attention_bias",
    ),
    cross=False,
)
_T5_CROSS_ATTENTION = _t5_attention("layer.1.EncDecAttention", BiasRow(argument="position_bias"), cross=True)


def _bart_attention(path: str, heads: str, *, cross: bool = False) -> AttentionRow:
    return AttentionRow(
        core=path,
        query=f"{path}.q_proj",
        key=f"{path}.k_proj",
        value=f"{path}.v_proj",
        output=f"{path}.out_proj",
        head_counts=(f"{path}.num_heads",),
        heads=heads,
        key_value_heads=heads,
        cross=cross,
    )


_BART_MLP = MlpRow(inputs=("fc1",), output="fc2", activation="activation_function")
_BART = Family(
    model_type="bart",
    title="BART",
    stacks=(
        StackRow(
            "encoder.layers",
            (_bart_attention("self_attn", "encoder_attention_heads"),),
            (_BART_MLP,),
            depth=("encoder_layers",),
        ),
        StackRow(
            "decoder.layers",
            (
                _bart_attention("self_attn", "decoder_attention_heads"),
                _bart_attention("encoder_attn", "decoder_attention_heads", cross=True),
            ),
            (_BART_MLP,),
            depth=("decoder_layers",),
        ),
    ),
    tasks=_ENCODER_DECODER_TASKS,
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
        stacks=one_stack(
            "encoder.layer",
            replace(
                _BERT_ATTENTION,
                query="attention.self.query_proj",
                key="attention.self.key_proj",
                value="attention.self.value_proj",
                further_projections=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
                further_inputs=("rel_embeddings",),
            ),
            _BERT_MLP,
        ),
    ),
    Family(
        model_type="distilbert",
        title="DistilBERT",
        stacks=one_stack(
            "transformer.layer",
            AttentionRow(
                core="attention",
                query="attention.q_lin",
                key="attention.k_lin",
                value="attention.v_lin",
                output="attention.out_lin",
            ),
            MlpRow(inputs=("ffn.lin1",), output="ffn.lin2", activation="activation"),
        ),
        tasks=_ENCODER_TASKS,
        uniform=UniformRow(neurons="hidden_dim"),
    ),
    _LLAMA,
    replace(_LLAMA, model_type="mistral", title="Mistral", uniform=_FREE_HEADS),
    replace(_LLAMA, model_type="qwen2", title="Qwen2", uniform=_FREE_HEADS),
    replace(_LLAMA, model_type="qwen3", title="Qwen3", uniform=_FREE_HEADS, gguf="openelm"),
    _MIXTRAL,
    replace(
        _MIXTRAL,
        model_type="qwen3_moe",
        title="Qwen3 MoE",
        # Layers that the config's `mlp_only_layers` and `decoder_sparse_step` name have an MLP instead of experts.
        stacks=(replace(_MIXTRAL.stacks[0], mlps=(_LLAMA_MLP,)),),
    ),
    _GEMMA_2,
    replace(_GEMMA_2, model_type="gemma3_text", title="Gemma 3 (text)"),
    Family(
        model_type="opt",
        title="OPT",
        stacks=one_stack(
            "decoder.layers",
            AttentionRow(
                core="self_attn",
                query="self_attn.q_proj",
                key="self_attn.k_proj",
                value="self_attn.v_proj",
                output="self_attn.out_proj",
                head_counts=("self_attn.num_heads",),
            ),
            MlpRow(inputs=("fc1",), output="fc2", activation="activation_function"),
        ),
        tasks=_DECODER_TASKS,
        uniform=UniformRow(neurons="ffn_dim"),
    ),
    Family(
        model_type="gpt_neo",
        title="GPT-Neo",
        stacks=one_stack(
            "h",
            AttentionRow(
                core="attn.attention",
                query="attn.attention.q_proj",
                key="attn.attention.k_proj",
                value="attn.attention.v_proj",
                output="attn.attention.out_proj",
                head_counts=("attn.attention.num_heads",),
            ),
            MlpRow(inputs=("mlp.c_fc",), output="mlp.c_proj", activation="activation_function"),
        ),
        tasks=_DECODER_TASKS,
        derived=("attn.attention.bias", "attn.attention.masked_bias"),
        uniform=UniformRow(neurons="intermediate_size"),
    ),
    Family(
        model_type="gptj",
        title="GPT-J",
        stacks=one_stack(
            "h",
            AttentionRow(
                core="attn",
                query="attn.q_proj",
                key="attn.k_proj",
                value="attn.v_proj",
                output="attn.out_proj",
                head_counts=("attn.num_attention_heads",),
            ),
            MlpRow(inputs=("mlp.fc_in",), output="mlp.fc_out", activation="activation_function"),
        ),
        tasks=_DECODER_TASKS,
        derived=("attn.bias", "attn.masked_bias"),
        uniform=UniformRow(neurons="n_inner"),
    ),
    Family(
        model_type="gpt2",
        title="GPT-2",
        stacks=one_stack(
            "h",
            AttentionRow(
                core="attn",
                query="attn.c_attn",
                key="attn.c_attn",
                value="attn.c_attn",
                output="attn.c_proj",
                head_counts=("attn.num_heads",),
                widths=("attn.split_size",),
            ),
            MlpRow(inputs=("mlp.c_fc",), output="mlp.c_proj", activation="activation_function"),
        ),
        tasks=_DECODER_TASKS,
        derived=("attn.bias", "attn.masked_bias"),
        uniform=UniformRow(neurons="n_inner"),
    ),
    Family(
        model_type="gpt_neox",
        title="GPT-NeoX",
        stacks=one_stack(
            "layers",
            AttentionRow(
                core="attention",
                query="attention.query_key_value",
                key="attention.query_key_value",
                value="attention.query_key_value",
                output="attention.dense",
                interleaved=True,
            ),
            MlpRow(inputs=("mlp.dense_h_to_4h",), output="mlp.dense_4h_to_h"),
        ),
        tasks=_DECODER_TASKS,
        uniform=UniformRow(neurons="intermediate_size"),
    ),
    Family(
        model_type="bloom",
        title="BLOOM",
        stacks=one_stack(
            "h",
            AttentionRow(
                core="self_attention",
                query="self_attention.query_key_value",
                key="self_attention.query_key_value",
                value="self_attention.query_key_value",
                output="self_attention.dense",
                head_counts=("self_attention.num_heads",),
                interleaved=True,
                by_head=("alibi",),
                residual="residual",
            ),
            MlpRow(inputs=("mlp.dense_h_to_4h",), output="mlp.dense_4h_to_h", fixed_activation="gelu_new"),
        ),
        tasks=_DECODER_TASKS,
    ),
    Family(
        model_type="phi3",
        title="Phi-3",
        stacks=one_stack(
            "layers",
            AttentionRow(
                core="self_attn",
                query="self_attn.qkv_proj",
                key="self_attn.qkv_proj",
                value="self_attn.qkv_proj",
                output="self_attn.o_proj",
                head_counts=("self_attn.config.num_attention_heads",),
                key_value_head_counts=("self_attn.num_key_value_heads",),
            ),
            MlpRow(inputs=("mlp.gate_up_proj", "mlp.gate_up_proj"), output="mlp.down_proj"),
        ),
        tasks=_DECODER_TASKS,
        # The model reads `head_dim`, but its config computes from the number of heads how many factors of its rotary
        # embedding there have to be.
        uniform=UniformRow(neurons="intermediate_size"),
    ),
    Family(
        model_type="modernbert",
        title="ModernBERT",
        stacks=one_stack(
            "layers",
            AttentionRow(core="attn", query="attn.Wqkv", key="attn.Wqkv", value="attn.Wqkv", output="attn.Wo"),
            MlpRow(inputs=("mlp.Wi", "mlp.Wi"), output="mlp.Wo", activation="hidden_activation"),
        ),
        tasks=_ENCODER_TASKS,
        uniform=UniformRow(neurons="intermediate_size"),
    ),
    Family(
        model_type="mpnet",
        title="MPNet",
        stacks=one_stack(
            "encoder.layer",
            AttentionRow(
                core="attention.attn",
                query="attention.attn.q",
                key="attention.attn.k",
                value="attention.attn.v",
                output="attention.attn.o",
                head_counts=("attention.attn.num_attention_heads",),
                widths=("attention.attn.all_head_size",),
                by_head=("position_bias",),
            ),
            _BERT_MLP,
        ),
        tasks=_ENCODER_TASKS,
        positions_after_padding=True,
        uniform=UniformRow(neurons="intermediate_size"),
    ),
    Family(
        model_type="albert",
        title="ALBERT",
        stacks=(
            StackRow(
                "encoder.albert_layer_groups.*.albert_layers",
                (
                    AttentionRow(
                        core="attention",
                        query="attention.query",
                        key="attention.key",
                        value="attention.value",
                        output="attention.dense",
                        norm="attention.LayerNorm",
                    ),
                ),
                (MlpRow(inputs=("ffn",), output="ffn_output"),),
                depth=("num_hidden_groups", "inner_group_num"),
            ),
        ),
        tasks=_ENCODER_TASKS,
        uniform=UniformRow(neurons="intermediate_size"),
    ),
    Family(
        model_type="t5",
        title="T5",
        stacks=(
            StackRow("encoder.block", (_T5_SELF_ATTENTION,), _t5_mlps("layer.1"), depth=("num_layers",)),
            StackRow(
                "decoder.block",
                (_T5_SELF_ATTENTION, _T5_CROSS_ATTENTION),
                _t5_mlps("layer.2"),
                depth=("num_decoder_layers",),
            ),
        ),
        tasks=_ENCODER_DECODER_TASKS,
        uniform=UniformRow(neurons="d_ff"),
    ),
    _BART,
    replace(_BART, model_type="marian", title="Marian"),
    replace(_BART, model_type="whisper", title="Whisper", tasks=()),
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
