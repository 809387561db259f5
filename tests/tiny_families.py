"""One tiny random model of every family, for any of its tasks."""

from typing import Any

from transformers import AutoConfig, PreTrainedModel

from core.engine.tasks import TASKS
from tests import tiny

COMMON: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
BERT = {"intermediate_size": 48}
DEBERTA = BERT | {
    "attention_head_size": 8,
    "relative_attention": True,
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "conv_kernel_size": 3,
}
"""Fewer buckets than positions, so that distances are binned; a convolution after the first layer."""

IMAGE_SIZE = 8
LLAMA = {"intermediate_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
"""Eight query heads on four key-value heads, twice as wide together as the hidden states."""
IMAGES = BERT | {"image_size": IMAGE_SIZE, "patch_size": IMAGE_SIZE // 2}

WINDOW = 5
"""Positions that a layer with local attention sees: fewer than the tests' rows have, and more than their padding has.

What attention to nothing but padding gives differs between runtimes, and nobody reads it.
"""

SIZES: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "electra": BERT | {"embedding_size": 16},
    "deberta-v2": DEBERTA | {"pos_att_type": ["c2p", "p2c"]},
    "deberta-v2, shared": DEBERTA | {"pos_att_type": ["p2c"], "share_att_key": True},
    "distilbert": {"hidden_dim": 48},
    "mpnet": BERT | {"relative_attention_num_buckets": 32},
    "llama": LLAMA | {"tie_word_embeddings": True},
    "mistral": LLAMA | {"sliding_window": WINDOW},
    "qwen2": LLAMA | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": LLAMA,
    "gemma2": LLAMA | {"sliding_window": WINDOW},
    "gemma3_text": LLAMA | {"sliding_window": WINDOW, "sliding_window_pattern": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "gpt_neo": {
        "intermediate_size": 48,
        "attention_types": [[["local", "global"], 1], [["local"], 1]],
        "window_size": WINDOW,
    },
    "gptj": {"n_inner": 48, "rotary_dim": 4},
    "gpt2": {"n_inner": 48},
    "gpt_neox": {"intermediate_size": 48},
    "bloom": {"hidden_size": 12},
    "phi3": LLAMA | {"original_max_position_embeddings": 64},
    "modernbert": {
        "intermediate_size": 48,
        "global_attn_every_n_layers": 2,
        "local_attention": 2 * WINDOW,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "vit": IMAGES,
    "deit": IMAGES | {"architectures": ["DeiTForImageClassification"]},
}
"""By `model_type`, and what of it varies after a comma.

What its config calls the MLP's width, and what else sets the family apart.
"""


def model(family: str, task: str, deviation: float = 0.4) -> PreTrainedModel:
    """For a task of ours."""
    options = {"num_labels": 1, "problem_type": "regression"} if task == "regression" else {}
    return build(family, TASKS[task].auto_class, deviation, **options)


def build(family: str, auto_class: Any, deviation: float = 0.4, **options: Any) -> PreTrainedModel:
    """Every parameter random, and large enough for each to show in a single number; eval mode."""
    config = AutoConfig.for_model(family.partition(",")[0], **COMMON | SIZES[family] | options)
    return tiny.randomised(auto_class.from_config(config), deviation=deviation)


def gpt2() -> PreTrainedModel:
    """Fused query, key and value, all weights stored the other way round."""
    return model("gpt2", "causal-lm", deviation=0.2)


def gpt_neox() -> PreTrainedModel:
    """Query, key and value fused head by head."""
    return model("gpt_neox", "causal-lm", deviation=0.2)


def phi3() -> PreTrainedModel:
    """Eight query heads on four key-value heads, fused one after the other; gate and up fused."""
    return model("phi3", "causal-lm", deviation=0.2)
