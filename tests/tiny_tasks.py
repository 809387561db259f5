"""What families are tried with that serve no task of the service yet: their stock classes' logits."""

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from core.engine.data import Batch, Feature
from core.engine.export.bundle import Processor
from core.engine.tasks.causal_lm import CausalLMTask
from core.engine.tasks.sequence_classification import SequenceClassificationTask
from tests import tiny

IMAGE_SIZE = 8


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


class ImageClassification(SequenceClassificationTask):
    """An encoder reads an image."""

    name = "image-classification"
    auto_class = AutoModelForImageClassification

    @staticmethod
    def outputs(model: PreTrainedModel, batch: Batch) -> Tensor:
        return model(**batch).logits

    def collate(self, features: list[Feature]) -> Batch:
        return {"pixel_values": torch.stack([feature["pixel_values"] for feature in features])}


OF_ENCODER_DECODERS = (TextToText.name, SpeechToText.name)
TINY_TASKS = {task.name: task for task in (TextToText, SpeechToText, ImageClassification)}


def inputs(task: str, rows: int = 2, tokens: int = 10) -> Batch:
    """Texts, the last of which is padded where that can be; sounds or images of one size."""
    generator = torch.Generator().manual_seed(0)
    if task == ImageClassification.name:
        return {"pixel_values": torch.randn(rows, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)}
    ids = 4 + torch.arange(rows * tokens).view(rows, tokens) % 20
    if task == SpeechToText.name:
        return {"input_features": torch.randn(rows, 6, 20, generator=generator), "decoder_input_ids": ids}
    mask = torch.ones_like(ids)
    mask[-1, -4:] = 0
    text = {"input_ids": ids, "attention_mask": mask}
    return text | {"decoder_input_ids": ids.flip(1)} if task == TextToText.name else text


def processor(task: str) -> Processor:
    """What makes a model's inputs; that of images needs no torchvision."""
    if task == ImageClassification.name:
        return ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return tiny.tokenizer()
