"""Models that the benchmarks train from nothing, for kinds of which no small pretrained one is at hand.

Each is a folder with random weights and a byte-level tokenizer fitted to the training rows; what trains it is the
benchmark's dense phase.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from benchmarks.trials import made_once

SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def gpt2(folder: Path, rows: Path, *, vocabulary: int = 1024, positions: int = 128) -> Path:
    """A decoder of GPT-2's kind, 4 layers of 6 heads and 768 neurons: 2.0M parameters.

    Args:
        folder: Where it is kept; made if it is not there yet.
        rows: JSONL, gzipped, with a `text` each.
        vocabulary: Tokens.
        positions: Most tokens a row.
    """

    def make(made: Path) -> None:
        tokenizer = byte_pairs(texts(rows, "text"), vocabulary)
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=positions,
            n_embd=192,
            n_layer=4,
            n_head=6,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        _save(made, GPT2LMHeadModel, config, tokenizer)

    return made_once(folder, make)


def t5(folder: Path, rows: Path, *, vocabulary: int = 4096) -> Path:
    """An encoder-decoder of T5 1.1's kind, 3 + 3 layers of 6 heads and 512 gated neurons: 4.3M parameters.

    Args:
        folder: Where it is kept; made if it is not there yet.
        rows: JSONL, gzipped, with a `source` and a `target` each.
        vocabulary: Tokens, the same for both sides.
    """

    def make(made: Path) -> None:
        tokenizer = byte_pairs(texts(rows, "source", "target"), vocabulary)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
        )
        config = T5Config(
            vocab_size=len(tokenizer),
            d_model=256,
            d_kv=32,
            num_heads=6,
            d_ff=512,
            num_layers=3,
            num_decoder_layers=3,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        config.decoder_start_token_id = tokenizer.pad_token_id
        _save(made, T5ForConditionalGeneration, config, tokenizer)

    return made_once(folder, make)


def byte_pairs(lines: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of bytes, GPT-2's way, fitted to these lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)  # type: ignore[no-untyped-call]


def texts(rows: Path, *columns: str) -> Iterator[str]:
    """The texts of a gzipped JSONL file, column by column within each row."""
    with gzip.open(rows, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            yield from (row[column] for column in columns)


def _save(
    folder: Path,
    kind: type[PreTrainedModel],
    config: GPT2Config | T5Config,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    set_seed(0)
    tokenizer.save_pretrained(folder)
    kind(config).save_pretrained(folder)
