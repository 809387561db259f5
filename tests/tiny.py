"""Tiny random models and their tokenizers, made on the spot: nothing is downloaded."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertModel,
    Phi3Config,
    Phi3ForCausalLM,
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


def gpt2_config() -> GPT2Config:
    """Fused query, key and value, all weights stored the other way round."""
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_inner=48,
        n_positions=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )


def gpt_neox_config() -> GPTNeoXConfig:
    """Query, key and value fused head by head."""
    return GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )


def phi3_config() -> Phi3Config:
    """Eight query heads on four key-value heads, fused one after the other; gate and up fused."""
    return Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        original_max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )


def modernbert_config() -> ModernBertConfig:
    """Fused query, key and value, fused gate and up; layers that see all tokens and some that see but neighbours."""
    return ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        global_attn_every_n_layers=2,
        local_attention=6,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )


def randomised(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Every parameter random, biases and norms too, so that a wrong one shows; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
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


def gpt2() -> PreTrainedModel:
    return randomised(GPT2LMHeadModel(gpt2_config()))


def gpt2_classifier() -> PreTrainedModel:
    return randomised(GPT2ForSequenceClassification(gpt2_config()))


def gpt_neox() -> PreTrainedModel:
    return randomised(GPTNeoXForCausalLM(gpt_neox_config()))


def phi3() -> PreTrainedModel:
    return randomised(Phi3ForCausalLM(phi3_config()))


def modernbert() -> PreTrainedModel:
    return randomised(ModernBertModel(modernbert_config()))


def modernbert_classifier() -> PreTrainedModel:
    return randomised(ModernBertForSequenceClassification(modernbert_config()))


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
