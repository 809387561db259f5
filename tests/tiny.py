"""Tiny random models and their tokenizers, made on the spot: nothing is downloaded."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "then", "it", "was", "very"]
WORDS += ["happy", "sad", "good", "bad", "big", "small", "red", "blue"]
VOCABULARY = len(SPECIAL) + len(WORDS)


def tokenizer() -> PreTrainedTokenizerFast:
    """Words of `WORDS`, split at white space."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    )


def bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )


def llama_config() -> LlamaConfig:
    """Eight query heads on four key-value heads, gated MLP, tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        intermediate_size=48,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )


def randomised(model: PreTrainedModel, seed: int = 0, deviation: float = 0.2) -> PreTrainedModel:
    """Every parameter random, biases and norms too, so that a wrong one shows; eval mode.

    Those that are never trained are what they have to be.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    return model.train(False)


def bert() -> PreTrainedModel:
    return randomised(BertModel(bert_config()))


def bert_classifier() -> PreTrainedModel:
    return randomised(BertForSequenceClassification(bert_config()))


def bert_regression() -> PreTrainedModel:
    config = bert_config()
    config.num_labels, config.problem_type = 1, "regression"
    return randomised(BertForSequenceClassification(config))


def llama() -> PreTrainedModel:
    return randomised(LlamaForCausalLM(llama_config()))


def llama_regression() -> PreTrainedModel:
    config = llama_config()
    config.num_labels, config.problem_type = 1, "regression"
    return randomised(LlamaForSequenceClassification(config))


def save(model: PreTrainedModel, folder: Path) -> Path:
    """A model folder as a user would upload it."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[str]:
    """Random sentences of five to twelve words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 13, (count,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator).tolist()) for n in lengths]
