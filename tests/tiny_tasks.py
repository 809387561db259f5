"""What families are tried with that serve no task of the service yet: their stock classes' logits."""

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, PreTrainedModel

from core.engine.data import Batch
from core.engine.tasks.causal_lm import CausalLMTask


class TextToText(CausalLMTask):
    """An encoder reads tokens, a decoder writes others."""

    name = "text-to-text"
    auto_class = AutoModelForSeq2SeqLM

    @staticmethod
    def outputs(model: PreTrainedModel, batch: Batch) -> Tensor:
        return model(**batch, use_cache=False).logits


class SpeechToText(TextToText):
    """An encoder reads features of sound."""

    name = "speech-to-text"
    auto_class = AutoModelForSpeechSeq2Seq


TINY_TASKS = {task.name: task for task in (TextToText, SpeechToText)}


def inputs(task: str) -> Batch:
    """Two rows, one of which is padded where that can be."""
    ids = torch.arange(4, 24).view(2, 10)
    if task == SpeechToText.name:
        features = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(0))
        return {"input_features": features, "decoder_input_ids": ids}
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    text = {"input_ids": ids, "attention_mask": mask}
    return text | {"decoder_input_ids": ids.flip(1)} if task == TextToText.name else text
