"""What families are tried with: inputs of every kind, and tasks that the service does not have yet."""

import io

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from core.engine.data import Batch
from core.engine.tasks.base import Processor
from core.engine.tasks.causal_lm import CausalLMTask
from core.engine.tasks.image_classification import ImageClassificationTask
from core.engine.tasks.masked_lm import MaskedLMTask
from core.engine.tasks.seq2seq import Seq2SeqTask
from tests import tiny

IMAGE_SIZE = 8


class SpeechToText(CausalLMTask):
    """An encoder reads features of sound, a decoder writes."""

    name = "speech-to-text"
    auto_class = AutoModelForSpeechSeq2Seq

    @staticmethod
    def outputs(model: PreTrainedModel, batch: Batch) -> Tensor:
        return model(**batch, use_cache=False).logits


OF_ENCODER_DECODERS = (Seq2SeqTask.name, SpeechToText.name)
TINY_TASKS = {task.name: task for task in (SpeechToText,)}


def inputs(task: str, rows: int = 2, tokens: int = 10) -> Batch:
    """Texts, the last of which is padded where that can be; sounds or images of one size."""
    generator = torch.Generator().manual_seed(0)
    if task == ImageClassificationTask.name:
        return {"pixel_values": torch.randn(rows, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)}
    ids = 4 + torch.arange(rows * tokens).view(rows, tokens) % 20
    if task == SpeechToText.name:
        return {"input_features": torch.randn(rows, 6, 20, generator=generator), "decoder_input_ids": ids}
    mask = torch.ones_like(ids)
    mask[-1, -4:] = 0
    text = {"input_ids": ids, "attention_mask": mask}
    return text | {"decoder_input_ids": ids.flip(1)} if task == Seq2SeqTask.name else text


def image(seed: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A file with noise, wider than high."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (9, 14, 3), generator=generator, dtype=torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def processor(task: str) -> Processor:
    """What makes a model's inputs; that of images needs no torchvision."""
    if task == ImageClassificationTask.name:
        return ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    tokenizer = tiny.tokenizer()
    if task == MaskedLMTask.name:
        # One of the tokens that there are, so that the vocabulary stays.
        tokenizer.add_special_tokens({"mask_token": "[UNK]"})
    return tokenizer
