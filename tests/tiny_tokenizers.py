"""Byte-pair encoding of the kinds that models of the Llama type use, trained on the spot."""

import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests import tiny

ODDITIES = [
    "It's 2026: 12345 CATS!\n\n  we'll see",
    "naïve café, 😀",
    "a  b\tc   \n d",
    "1 22 333 4444",
    "the.cat,ran...",
]
TEXT = [*tiny.sentences(200), *ODDITIES]


@cache
def byte_level(*cuts: str, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of bytes; no token is added in front.

    Args:
        cuts: What cuts text into words, one after the other: "ByteLevel" (GPT-2's way), "Digits", or a pattern.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    steps = [_cut(how) for how in cuts if how != "ByteLevel"]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="ByteLevel" in cuts)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, ["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


@cache
def sentence_piece() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces are written, bytes stand in for what is unknown, <s> comes first."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    of_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    return _trained(tokenizer, ["<unk>", "<s>", "</s>", *of_bytes], max_token_length=6)


def _cut(how: str) -> pre_tokenizers.PreTokenizer:
    if how == "Digits":
        return pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Split(Regex(how), behavior="isolated")


def _trained(tokenizer: Tokenizer, special: list[str], **options) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False, **options)
    tokenizer.train_from_iterator(TEXT, trainer)
    definition = json.loads(tokenizer.to_str())
    # Those of single bytes are ordinary tokens, which only the trainer was told to begin with.
    definition["added_tokens"] = [token for token in definition["added_tokens"] if "0x" not in token["content"]]
    names = {"bos_token": "<s>", "eos_token": "</s>"} | ({"unk_token": "<unk>"} if "<unk>" in special else {})
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(definition)), **names)
