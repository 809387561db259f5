"""A tokenizer as GGUF files hold it: llama.cpp splits text by itself, so both must split alike.

llama.cpp knows two kinds that models of the Llama type use: byte-pair encoding of bytes, where the pattern that cuts
text into words has a name in llama.cpp (`src/llama-vocab.cpp`), and SentencePiece's, where the pair goes first whose
merge has the highest score.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from core.errors import InvalidInputError

SPACE = "▁"
"""What SentencePiece writes for a space."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AROUND_DIGITS = (
    _CONTRACTIONS + r"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERN_OF_GPT_2 = "ByteLevel"
_SINGLE_DIGITS = "Digits"

PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    ((_PATTERN_OF_GPT_2,), False): "gpt-2",
    ((_SINGLE_DIGITS, _PATTERN_OF_GPT_2), False): "smollm",
    ((_WORDS_AROUND_DIGITS.format(r"\p{N}"),), False): "qwen2",
    ((_WORDS_AROUND_DIGITS.format(r"\p{N}{1,3}"),), True): "llama-bpe",
}
"""llama.cpp's name by what cuts text into words, one after the other, and whether whole words skip the merges."""


@dataclass(frozen=True, slots=True)
class Splitter:
    """How text becomes tokens; either `scores`, by token, or `merges` say which pairs join, and which first."""

    model: str
    pre_tokenizer: str
    adds_space: bool = False
    scores: list[float] | None = None
    merges: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id, and what surrounds them."""

    tokens: list[str]
    types: list[TokenType]
    splitter: Splitter
    special_ids: dict[str, int]
    adds_first: bool
    adds_last: bool
    chat_template: str | None

    def write(self, writer: GGUFWriter) -> None:
        """Add everything to a GGUF file that is being written."""
        writer.add_tokenizer_model(self.splitter.model)
        writer.add_tokenizer_pre(self.splitter.pre_tokenizer)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.splitter.scores is not None:
            writer.add_token_scores(self.splitter.scores)
        if self.splitter.merges is not None:
            writer.add_token_merges(self.splitter.merges)
        writer.add_add_space_prefix(self.splitter.adds_space)
        writer.add_add_bos_token(self.adds_first)
        writer.add_add_eos_token(self.adds_last)
        for name, token in self.special_ids.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """The vocabulary of a tokenizer, filled up with unused tokens to the model's `size`.

    Raises:
        InvalidInputError: llama.cpp would split text in another way.
    """
    if len(tokenizer) > size:
        raise _refused(f"it has {len(tokenizer)} tokens, the model {size}")
    tokens, types = _tokens(tokenizer, size)
    framed = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return Vocabulary(
        tokens,
        types,
        _splitter(tokenizer, tokens),
        _special_ids(tokenizer),
        adds_first=framed[:1] == [tokenizer.bos_token_id] and framed[:1] != plain[:1],
        adds_last=framed[-1:] == [tokenizer.eos_token_id] and framed[-1:] != plain[-1:],
        chat_template=_chat_template(tokenizer),
    )


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Of several, the one that is used where none is named."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _splitter(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> Splitter:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused("it has no tokenizer.json, and none can be made of its files")
    definition = json.loads(backend.to_str())
    model, steps = definition["model"], list(_steps(definition["pre_tokenizer"]))
    if model["type"] != "BPE":
        raise _refused(f"its model is {model['type']}; byte-pair encoding is needed")
    if any(step["type"] == "ByteLevel" for step in steps):
        # Nearly all text is NFC already, and llama.cpp takes it to be.
        _check_normalizers(definition["normalizer"], {"NFC"})
        name = _pre_tokenizer(steps, bool(model["ignore_merges"]))
        return Splitter("gpt2", name, merges=[" ".join(pair) for pair in model["merges"]])
    # llama.cpp writes the sign for spaces by itself.
    _check_normalizers(definition["normalizer"], {"Prepend", "Replace"})
    if any(step["type"] != "Metaspace" for step in steps):
        raise _refused(f"it cuts text by {steps[0]['type']}, which llama.cpp does not know")
    if not model["byte_fallback"]:
        raise _refused("it lacks byte_fallback, without which llama.cpp breaks off at a character that has no token")
    adds_space = tokenizer.tokenize("a")[0].startswith(SPACE)
    return Splitter("llama", "default", adds_space, scores=_scores(tokens, model["merges"]))


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """The earlier the first merge to a token, the higher; those that nothing merges to have the lowest."""
    rank: dict[str, int] = {}
    for position, (left, right) in enumerate(merges):
        rank.setdefault(left + right, position)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _refused(reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"The model's tokenizer cannot be exported to GGUF: {reason}. "
        "Without 'gguf' in export.formats the job does not need it.",
        param="/export/formats",
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[TokenType]]:
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [TokenType.UNUSED] * size
    added = tokenizer.added_tokens_decoder
    for token, i in tokenizer.get_vocab().items():
        tokens[i] = token
        if i in added:
            types[i] = TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED
        elif len(token) == len("<0x00>") and token.startswith("<0x"):
            types[i] = TokenType.BYTE
        else:
            types[i] = TokenType.NORMAL
    return tokens, types


def _steps(pre_tokenizer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if pre_tokenizer is None:
        return
    if pre_tokenizer["type"] == "Sequence":
        for step in pre_tokenizer["pretokenizers"]:
            yield from _steps(step)
    else:
        yield pre_tokenizer


def _pre_tokenizer(steps: list[dict[str, Any]], ignore_merges: bool) -> str:
    cuts = []
    for step in steps:
        match step:
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
                cuts += [_PATTERN_OF_GPT_2] if use_regex else []
            case {"type": "Digits", "individual_digits": True}:
                cuts.append(_SINGLE_DIGITS)
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                cuts.append(pattern)
            case _:
                cuts.append(json.dumps(step))
    name = PRE_TOKENIZERS.get((tuple(cuts), ignore_merges))
    if name is None:
        raise _refused(
            f"it cuts text into words in another way than {', '.join(sorted(PRE_TOKENIZERS.values()))}, which are known"
        )
    return name


def _check_normalizers(normalizer: dict[str, Any] | None, allowed: set[str]) -> None:
    if normalizer is None:
        return
    parts = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    others = sorted({part["type"] for part in parts} - allowed)
    if others:
        raise _refused(f"it changes text before it splits it ({', '.join(others)}), which llama.cpp does not")


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    found = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    return {name: token for name, token in found.items() if token is not None}
