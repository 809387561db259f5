"""GGUF for llama.cpp, in fp32, with heads and neurons layer by layer.

Most architectures of llama.cpp take all layers to be as wide as the first one. Two that read each layer's widths
compute what families of ours do: `deci` what Llama does, and `openelm` what Qwen3 does, with norms of queries and keys
(llama.cpp, `src/models/deci.cpp` and `openelm.cpp`). A family's row names its own.

What they cannot express, the weights make up for: a layer without heads or neurons gets one of zeros, which adds
nothing, and the columns of hidden dimensions that a layer does not read are zero.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    MODEL_TENSOR,
    MODEL_TENSORS,
    TENSOR_NAMES,
    GGUFReader,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from core.engine.export.modeling_neuroprune import READ_DIMENSIONS
from core.engine.export.vocabulary import read_vocabulary
from core.errors import InvalidInputError, VerificationError
from core.families import FAMILIES, family_of
from core.family import AttentionRow, MlpRow

ACTIVATION = "silu"
"""What both architectures have in their MLPs."""

ROTARY_TYPES = ("default", "linear", "llama3")
"""Those that are nothing but frequencies, the same at any length."""

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What one of llama.cpp's architectures has otherwise than transformers.

    `rotates_neighbours`: the dimensions 2i and 2i + 1 of a head turn together, not i and i + D/2.
    """

    known_as: MODEL_ARCH
    rotates_neighbours: bool

    @property
    def fused(self) -> bool:
        """Whether query, key and value are one projection."""
        return MODEL_TENSOR.ATTN_QKV in MODEL_TENSORS[self.known_as]


ARCHITECTURES = {
    MODEL_ARCH_NAMES[architecture.known_as]: architecture
    for architecture in (
        Architecture(MODEL_ARCH.DECI, rotates_neighbours=True),
        Architecture(MODEL_ARCH.OPENELM, rotates_neighbours=False),
    )
}
"""By the name that a family's row and the file carry."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A model as llama.cpp has it: tensors by name, and what each layer has of each unit."""

    tensors: State
    heads: list[int]
    key_value_heads: list[int]
    neurons: list[int]


def check_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse what cannot be written, before anything is trained.

    Raises:
        InvalidInputError: llama.cpp cannot compute what the model does, or would split text otherwise.
    """
    config, family = model.config, family_of(model.config.model_type)
    if family.gguf is None:
        able = ", ".join(f.title for f in FAMILIES if f.gguf is not None)
        raise _refused(f"llama.cpp has no {family.title} whose layers differ in width; {able} can be exported.")
    if config.hidden_act != ACTIVATION:
        raise _refused(f"its hidden_act is {config.hidden_act!r}, not {ACTIVATION!r}.")
    rotary_type = config.rope_parameters["rope_type"]
    if rotary_type not in ROTARY_TYPES:
        raise _refused(f"its rope_type is {rotary_type!r}, not one of {', '.join(ROTARY_TYPES)}.")
    convert(model)
    read_vocabulary(tokenizer, config.vocab_size)


def export_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write a causal language model that `check_gguf` accepts, and its tokenizer, as one .gguf file in fp32."""
    config, converted = model.config, convert(model)
    head_dim = _head_dim(config)
    writer = GGUFWriter(path, str(family_of(config.model_type).gguf))
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(_context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(converted.heads)
    writer.add_head_count_kv(converted.key_value_heads)
    writer.add_feed_forward_length(converted.neurons)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    read_vocabulary(tokenizer, config.vocab_size).write(writer)
    for name, tensor in converted.tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_difference(model: PreTrainedModel, path: Path) -> float:
    """Largest absolute difference between a file's weights and the model's.

    Raises:
        VerificationError: the file cannot be read, or its tensors are others or of another shape.
    """
    try:
        held = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in GGUFReader(path).tensors}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise VerificationError(f"{path.name} cannot be read: {error}") from error
    expected = convert(model).tensors
    if {name: tensor.shape for name, tensor in held.items()} != {n: t.shape for n, t in expected.items()}:
        raise VerificationError(f"{path.name} does not hold the tensors of the model.")
    return max(float((held[name] - tensor).abs().max()) for name, tensor in expected.items())


@torch.no_grad()
def convert(model: PreTrainedModel) -> Converted:
    """A model's weights as llama.cpp names, lays out and counts them.

    Raises:
        InvalidInputError: a tensor has no place there.
    """
    config, family = model.config, family_of(model.config.model_type)
    architecture, head_dim = ARCHITECTURES[str(family.gguf)], _head_dim(model.config)
    state: State = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("lm_head.")}
    heads, key_value_heads, neurons = [], [], []
    (stack,) = family.stacks
    (attention,), (mlp,) = stack.attentions, stack.mlps
    for index in range(config.num_hidden_layers):
        layer = f"{model.base_model_prefix}.{stack.layers}.{index}."
        _read_all_dimensions(state, layer, attention, config.hidden_size)
        _fill_attention(state, layer, attention, head_dim)
        _fill_mlp(state, layer, mlp)
        heads.append(len(state[f"{layer}{attention.query}.weight"]) // head_dim)
        key_value_heads.append(len(state[f"{layer}{attention.key}.weight"]) // head_dim)
        neurons.append(len(state[f"{layer}{mlp.inputs[0]}.weight"]))
        if architecture.rotates_neighbours:
            _pair_neighbours(state, layer, attention, head_dim)
        if architecture.fused:
            _fuse(state, layer, attention, TENSOR_NAMES[MODEL_TENSOR.ATTN_QKV].format(bid=index))
    state |= _frequencies(model)
    return Converted(_renamed(state, architecture, config.num_hidden_layers), heads, key_value_heads, neurons)


def _read_all_dimensions(state: State, layer: str, row: AttentionRow, hidden_size: int) -> None:
    """Let an attention that reads some of the hidden dimensions read all, the others times zero."""
    dimensions = state.pop(f"{layer}{row.core}.{READ_DIMENSIONS}", None)
    if dimensions is None:
        return
    for path in (row.query, row.key, row.value):
        some = state[f"{layer}{path}.weight"]
        state[f"{layer}{path}.weight"] = some.new_zeros(len(some), hidden_size).index_copy(1, dimensions, some)


def _fill_attention(state: State, layer: str, row: AttentionRow, head_dim: int) -> None:
    for path in (row.query, row.key, row.value):
        _fill(state, f"{layer}{path}", 0, head_dim)
    _fill(state, f"{layer}{row.output}", 1, head_dim)


def _fill_mlp(state: State, layer: str, row: MlpRow) -> None:
    for path in row.inputs:
        _fill(state, f"{layer}{path}", 0, 1)
    _fill(state, f"{layer}{row.output}", 1, 1)


def _fill(state: State, projection: str, dim: int, count: int) -> None:
    """Give a projection without any outputs (dim 0) or inputs (dim 1) so many of zeros."""
    for name in (f"{projection}.weight", f"{projection}.bias"):
        tensor = state.get(name)
        if tensor is not None and not tensor.numel():
            shape = list(tensor.shape)
            shape[dim] = count
            state[name] = tensor.new_zeros(shape)


def _pair_neighbours(state: State, layer: str, row: AttentionRow, head_dim: int) -> None:
    """Order each head's dimensions 0, D/2, 1, D/2 + 1, …; both sides of the product, so it does not change."""
    for path in (row.query, row.key):
        for name in (f"{layer}{path}.weight", f"{layer}{path}.bias"):
            if name in state:
                rest = state[name].shape[1:]
                halves = state[name].reshape(-1, 2, head_dim // 2, *rest)
                state[name] = halves.transpose(1, 2).reshape(-1, *rest)


def _fuse(state: State, layer: str, row: AttentionRow, name: str) -> None:
    parts = [state.pop(f"{layer}{path}.weight") for path in (row.query, row.key, row.value)]
    state[f"{name}.weight"] = torch.cat(parts)


def _frequencies(model: PreTrainedModel) -> State:
    """What the usual rotary frequencies are divided by, where the model has others."""
    used = model.base_model.get_submodule("rotary_emb").get_buffer("inv_freq").detach()
    base = model.config.rope_parameters["rope_theta"]
    usual = base ** -(torch.arange(len(used), dtype=torch.float32) / len(used))
    factors = usual / used
    same = torch.allclose(factors, torch.ones_like(factors))
    return {} if same else {f"{TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS]}.weight": factors}


def _renamed(state: State, architecture: Architecture, layers: int) -> State:
    names = get_tensor_name_map(architecture.known_as, layers)
    renamed = {}
    for name, tensor in state.items():
        other = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if other is None:
            kind = MODEL_ARCH_NAMES[architecture.known_as]
            raise _refused(f"llama.cpp's architecture {kind!r}, which would run it, has no {name!r}.")
        renamed[other] = tensor
    return renamed


def _head_dim(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _context_length(config: PreTrainedConfig) -> int:
    """As many tokens as llama.cpp and the model answer alike: it knows no window, and within one there is none."""
    positions: int = config.max_position_embeddings
    return min(positions, getattr(config, "sliding_window", None) or positions)


def _refused(reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"The model cannot be exported to GGUF: {reason} Without 'gguf' in export.formats the job does not need it.",
        param="/export/formats",
    )
