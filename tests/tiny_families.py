"""One tiny random model of every family, for any of its tasks."""

from typing import Any

from transformers import AutoConfig, PreTrainedModel

from core.engine.tasks import TASKS
from tests import tiny
from tests.tiny_tasks import IMAGE_SIZE, TINY_TASKS

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

LLAMA = {"intermediate_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
"""Eight query heads on four key-value heads, twice as wide together as the hidden states."""
MIXTRAL = LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 2}
IMAGES = BERT | {"image_size": IMAGE_SIZE, "patch_size": IMAGE_SIZE // 2}

T5 = {
    "num_layers": 3,
    "num_decoder_layers": 3,
    "d_kv": 8,
    "d_ff": 48,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 8,
    "decoder_start_token_id": 0,
}
BART = {
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}

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
    "deberta-v2/shared": DEBERTA | {"pos_att_type": ["p2c"], "share_att_key": True},
    "distilbert": {"hidden_dim": 48},
    "mpnet": BERT | {"pad_token_id": 1},  # as in all there are: the model counts positions from there, whatever it is
    "llama": LLAMA | {"tie_word_embeddings": True},
    "mistral": LLAMA | {"sliding_window": WINDOW},
    "qwen2": LLAMA | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": LLAMA,
    "mixtral": MIXTRAL,
    "qwen3_moe": MIXTRAL | {"moe_intermediate_size": 48, "num_experts": 3, "norm_topk_prob": False},
    "qwen3_moe/mixed": MIXTRAL | {"moe_intermediate_size": 48, "num_experts": 3, "mlp_only_layers": [1]},
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
    "albert": {"intermediate_size": 48, "embedding_size": 16, "num_hidden_layers": 6, "num_hidden_groups": 3},
    "t5": T5,
    "t5/gated": T5 | {"feed_forward_proj": "gated-gelu"},
    "bart": BART,
    "marian": BART,
    "vit": IMAGES,
    "deit": IMAGES | {"architectures": ["DeiTForImageClassification"]},
    "whisper": BART
    | {
        "num_mel_bins": 6,
        "max_source_positions": 10,
        "max_target_positions": 64,
        "begin_suppress_tokens": None,
        "suppress_tokens": None,
    },
}
"""By `model_type`, and where there are several kinds of it by a name after it: what its config calls the MLP's width,
and what else sets it apart.
"""

TRIED = {"whisper": "speech-to-text"}
"""With what to try a family that serves no task."""


def kinds(model_type: str) -> list[str]:
    """What there is of a family in `SIZES`."""
    return [name for name in SIZES if name.partition("/")[0] == model_type]


def _common(kind: str) -> dict[str, Any]:
    """Of `COMMON` what the family's own config has; real models lack the rest, such as padding of image models."""
    own = AutoConfig.for_model(kind.partition("/")[0])
    return {name: value for name, value in COMMON.items() if hasattr(own, name)}


def model(kind: str, task: str, deviation: float = 0.4) -> PreTrainedModel:
    """Every parameter random, and large enough for each to show in a single number; eval mode."""
    options = {"num_labels": 1, "problem_type": "regression"} if task == "regression" else {}
    config = AutoConfig.for_model(kind.partition("/")[0], **_common(kind) | SIZES[kind] | options)
    return tiny.randomised((TASKS | TINY_TASKS)[task].auto_class.from_config(config), deviation=deviation)


def gpt2() -> PreTrainedModel:
    """Fused query, key and value, all weights stored the other way round."""
    return model("gpt2", "causal-lm", deviation=0.2)


def gpt_neox() -> PreTrainedModel:
    """Query, key and value fused head by head."""
    return model("gpt_neox", "causal-lm", deviation=0.2)


def phi3() -> PreTrainedModel:
    """Eight query heads on four key-value heads, fused one after the other; gate and up fused."""
    return model("phi3", "causal-lm", deviation=0.2)
