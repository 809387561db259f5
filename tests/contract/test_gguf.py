"""GGUF: what is written computes what the model does, by a reference of our own and, if installed, by llama.cpp."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gguf import GGUFReader
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from client.load import load
from core.engine.anatomy import bind
from core.engine.compact import compact
from core.engine.export.gguf import check_gguf, export_gguf, gguf_difference
from core.engine.export.vocabulary import PRE_TOKENIZERS, read_vocabulary
from core.errors import InvalidInputError, VerificationError
from core.families import FAMILIES
from core.progress import PhaseStarted
from tests import tiny, tiny_families, tiny_tokenizers
from tests.contract.test_families import ragged_plan
from tests.tiny_tokenizers import byte_level, sentence_piece
from tests.whole_jobs import Done, run_job, texts

VOCABULARY = 420
"""More than any of the tokenizers has: the rest is filled up."""

LLAMA_3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES: dict[str, dict[str, Any]] = {
    **{family.model_type: {} for family in FAMILIES if family.gguf is not None},
    "llama, all biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, own output": {"model_type": "llama", "tie_word_embeddings": False},
    "llama, scaled": {"model_type": "llama", "rope_parameters": LLAMA_3 | {"original_max_position_embeddings": 16}},
}
every_case = pytest.mark.parametrize("name", CASES)


def model(name: str, **changes: Any) -> PreTrainedModel:
    options = {"vocab_size": VOCABULARY, "tie_word_embeddings": True, **CASES[name], **changes}
    model_type = options.pop("model_type", name)
    config = AutoConfig.for_model(model_type, **tiny_families.COMMON | tiny_families.SIZES[model_type] | options)
    return tiny.randomised(AutoModelForCausalLM.from_config(config))


def ragged(name: str) -> PreTrainedModel:
    """Layer 0 without heads, layer 1 without neurons, layer 2 with some of each; 2 without some in-rows."""
    dense = model(name)
    compact(bind(dense), ragged_plan(dense))
    return dense


def ids(count: int) -> Tensor:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(0))


class Reference:
    """What llama.cpp computes from a file, written down plainly: one row of tokens, no cache."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
        architecture = reader.get_field("general.architecture").contents()
        prefix = f"{architecture}."
        self.fields = {
            key.removeprefix(prefix): field.contents() for key, field in reader.fields.items() if key.startswith(prefix)
        }
        self.neighbours = architecture == "deci"

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.tensors.get(f"{name}.weight")
        return (
            x
            if weight is None
            else F.rms_norm(x, weight.shape, weight, self.fields["attention.layer_norm_rms_epsilon"])
        )

    def rotate(self, x: Tensor) -> Tensor:
        """[heads, length, D]."""
        half = x.shape[-1] // 2
        frequencies = self.fields["rope.freq_base"] ** -(torch.arange(half) / half)
        frequencies = frequencies / self.tensors.get("rope_freqs.weight", torch.ones(half))
        angles = torch.arange(x.shape[1])[:, None] * frequencies
        turns = torch.polar(torch.ones_like(angles), angles)
        pairs = x.unflatten(-1, (half, 2)) if self.neighbours else x.unflatten(-1, (2, half)).transpose(-1, -2)
        turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turns)
        return (turned if self.neighbours else turned.transpose(-1, -2)).flatten(-2)

    def attention(self, layer: int, x: Tensor) -> Tensor:
        block, length = f"blk.{layer}.attn_", self.fields["attention.key_length"]
        counts = [self.fields[f"attention.head_count{kind}"][layer] for kind in ("", "_kv", "_kv")]
        if f"{block}qkv.weight" in self.tensors:
            parts = self.linear(f"{block}qkv", x).split([count * length for count in counts], dim=-1)
        else:
            parts = [self.linear(f"{block}{part}", x) for part in "qkv"]
        query, key, value = (p.unflatten(-1, (n, length)).transpose(0, 1) for p, n in zip(parts, counts, strict=True))
        query, key = (self.rotate(self.norm(f"{block}{n}_norm", part)) for n, part in (("q", query), ("k", key)))
        found = F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True, enable_gqa=True)
        return self.linear(f"{block}output", found[0].transpose(0, 1).flatten(1))

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        block = f"blk.{layer}.ffn_"
        gate = self.linear(f"{block}gate", x)
        assert gate.shape[-1] == self.fields["feed_forward_length"][layer]
        return self.linear(f"{block}down", F.silu(gate) * self.linear(f"{block}up", x))

    def logits(self, tokens: Tensor) -> Tensor:
        x = self.tensors["token_embd.weight"][tokens]
        for layer in range(self.fields["block_count"]):
            x = x + self.attention(layer, self.norm(f"blk.{layer}.attn_norm", x))
            x = x + self.mlp(layer, self.norm(f"blk.{layer}.ffn_norm", x))
        return self.norm("output_norm", x) @ self.tensors.get("output.weight", self.tensors["token_embd.weight"]).T


@every_case
def test_a_ragged_file_with_emptied_layers_computes_what_the_model_does(name, tmp_path):
    pruned, path = ragged(name), tmp_path / "model.gguf"
    export_gguf(pruned, byte_level("ByteLevel"), path)
    assert gguf_difference(pruned, path) == 0
    reference = Reference(path)
    assert reference.fields["attention.head_count"] == [1, 4, 6]
    assert reference.fields["attention.head_count_kv"] == [1, 2, 3]
    assert reference.fields["feed_forward_length"] == [46, 1, 32]
    tokens = ids(reference.fields["context_length"])
    with torch.no_grad():
        assert torch.allclose(reference.logits(tokens), pruned(tokens[None]).logits[0], atol=1e-5)


@every_case
def test_llama_cpp_agrees(name, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    pruned, path, tokenizer = ragged(name), tmp_path / "model.gguf", sentence_piece()
    export_gguf(pruned, tokenizer, path)
    fp32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    engine = llama_cpp.Llama(str(path), logits_all=True, verbose=False, n_threads=1, flash_attn=False, **fp32)
    tokens = ids(min(48, Reference(path).fields["context_length"]))
    engine.eval(tokens.tolist())
    with torch.no_grad():
        expected = pruned(tokens[None]).logits[0]
    found = torch.tensor(engine.scores[: len(tokens)])
    assert torch.allclose(found, expected, atol=1e-4)
    engine.close()


KNOWN = {name: (cuts, ignore_merges) for (cuts, ignore_merges), name in PRE_TOKENIZERS.items()}


@pytest.mark.parametrize("name", [*KNOWN, "sentencepiece"])
def test_llama_cpp_splits_text_alike(name, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    cuts, ignore_merges = KNOWN.get(name, ((), False))
    tokenizer = tiny_tokenizers.byte_level(*cuts, ignore_merges=ignore_merges) if cuts else sentence_piece()
    export_gguf(model("llama"), tokenizer, tmp_path / "model.gguf")
    engine = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    for text in tiny_tokenizers.ODDITIES:
        assert engine.tokenize(text.encode()) == tokenizer(text)["input_ids"]
    engine.close()


def test_tokens_merges_and_special_tokens_are_written(tmp_path):
    export_gguf(model("llama"), byte_level("ByteLevel"), tmp_path / "model.gguf")
    fields = {
        key.removeprefix("tokenizer.ggml."): field.contents()
        for key, field in GGUFReader(tmp_path / "model.gguf").fields.items()
    }
    tokenizer = byte_level("ByteLevel")
    assert fields["tokens"][: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert fields["tokens"][len(tokenizer)] == f"[PAD{len(tokenizer)}]"
    assert fields["token_type"] == [3, 3] + [1] * (len(tokenizer) - 2) + [5] * (VOCABULARY - len(tokenizer))
    assert len(fields["merges"]) == len(tokenizer) - 2 - 256
    assert (fields["model"], fields["pre"], fields["eos_token_id"]) == ("gpt2", "gpt-2", 1)
    assert not fields["add_bos_token"]


def test_a_sentence_piece_is_scored_by_its_first_merge():
    vocabulary = read_vocabulary(sentence_piece(), VOCABULARY)
    merged = json.loads(sentence_piece().backend_tokenizer.to_str())["model"]["merges"]
    scores = dict(zip(vocabulary.tokens, vocabulary.splitter.scores, strict=True))
    assert [scores["".join(pair)] for pair in merged[:3]] == [0, -1, -2]
    assert vocabulary.adds_first
    assert not vocabulary.adds_last
    assert vocabulary.splitter.adds_space


@pytest.mark.parametrize(
    ("template", "written"),
    [("{{ a }}", "{{ a }}"), ({"tool_use": "{{ b }}", "default": "{{ a }}"}, "{{ a }}"), (None, None)],
)
def test_the_usual_chat_template_is_written(template, written):
    tokenizer = sentence_piece()
    tokenizer.chat_template = template
    assert read_vocabulary(tokenizer, VOCABULARY).chat_template == written


def test_qwen_cuts_text_as_the_table_says():
    assert read_vocabulary(byte_level(PRETOKENIZE_REGEX), VOCABULARY).splitter.pre_tokenizer == "qwen2"


def altered(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> PreTrainedTokenizerFast:
    """A tokenizer with parts replaced, such as `normalizer`."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    for name, part in changes.items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def without_byte_fallback() -> PreTrainedTokenizerFast:
    definition = json.loads(sentence_piece().backend_tokenizer.to_str())
    definition["model"]["byte_fallback"] = False
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(definition)))


REFUSED = [
    (lambda: tiny.tokenizer(), "its model is WordLevel"),
    (without_byte_fallback, "lacks byte_fallback"),
    (lambda: byte_level(r"\w+"), "another way than gpt-2, llama-bpe, qwen2, smollm"),
    (lambda: byte_level("ByteLevel", ignore_merges=True), "another way than"),
    (lambda: altered(byte_level("ByteLevel"), pre_tokenizer=pre_tokenizers.ByteLevel()), "another way than"),
    (lambda: altered(byte_level("ByteLevel"), normalizer=normalizers.Lowercase()), r"changes text .*\(Lowercase\)"),
    (lambda: altered(sentence_piece(), normalizer=normalizers.NFKC()), r"changes text .*\(NFKC\)"),
    (lambda: altered(sentence_piece(), pre_tokenizer=pre_tokenizers.Whitespace()), "cuts text by Whitespace"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused(make, message):
    with pytest.raises(InvalidInputError, match=message) as caught:
        check_gguf(model("llama"), make())
    assert caught.value.param == "/export/formats"


def test_a_tokenizer_larger_than_the_model_is_refused():
    with pytest.raises(InvalidInputError, match="it has 400 tokens, the model 399"):
        read_vocabulary(sentence_piece(), 399)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_families.model("opt", "causal-lm"), "no OPT whose layers differ in width; Llama, .*Qwen3 can"),
        (lambda: model("llama", hidden_act="gelu"), "its hidden_act is 'gelu', not 'silu'"),
        (lambda: model("llama", rope_parameters=LLAMA_3 | {"rope_type": "yarn"}), "its rope_type is 'yarn'"),
        (lambda: model("qwen3", tie_word_embeddings=False), r"'openelm', .* has no 'lm_head\.weight'"),
        (lambda: model("qwen3", attention_bias=True), r"has no '\S+\.bias'"),
    ],
)
def test_a_model_that_llama_cpp_has_not_is_refused(make, message):
    with pytest.raises(InvalidInputError, match=message):
        check_gguf(make(), byte_level("ByteLevel"))


def test_a_mistral_is_as_long_as_its_window(tmp_path):
    export_gguf(model("mistral"), byte_level("ByteLevel"), tmp_path / "model.gguf")
    assert Reference(tmp_path / "model.gguf").fields["context_length"] == tiny_families.WINDOW


def test_another_file_is_found_out(tmp_path):
    path, written = tmp_path / "model.gguf", model("llama")
    export_gguf(written, byte_level("ByteLevel"), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\0\x80\x3f")
    assert gguf_difference(written, path) > 0
    path.write_bytes(whole[:-4])
    with pytest.raises(VerificationError, match=r"model\.gguf cannot be read"):
        gguf_difference(written, path)
    path.write_bytes(whole)
    other = ragged("llama")
    with pytest.raises(VerificationError, match=r"model\.gguf does not hold the tensors"):
        gguf_difference(other, path)


def start(
    tokenizer: PreTrainedTokenizerFast, folder: Path, heard: list[Any], dtype: torch.dtype = torch.float32
) -> Done:
    """A whole job with GGUF, of a model that is saved in `dtype`."""
    model("llama").to(dtype).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    parts = {"target": {"sparsity": 0.3}, "export": {"formats": ["gguf"]}}
    return run_job(folder, folder / "model", texts(40), {"name": "causal-lm"}, heard=heard, **parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_job_delivers_gguf(tmp_path, dtype):
    done = start(sentence_piece(), tmp_path, [], dtype)
    assert {parameter.dtype for parameter in load(done.bundle).parameters()} == {dtype}
    assert done.report["verification"]["largest_absolute_difference"]["gguf"] == 0
    assert gguf_difference(load(done.bundle, torch.float32), done.bundle / "model.gguf") == 0


def test_a_job_whose_tokenizer_cannot_be_written_fails_before_it_trains(tmp_path):
    heard: list[Any] = []
    with pytest.raises(InvalidInputError, match="its model is WordLevel"):
        start(tiny.tokenizer(), tmp_path, heard)
    assert [message.phase for message in heard if isinstance(message, PhaseStarted)] == ["loading"]
