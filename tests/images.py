"""Images for tiny models, and the least of a task that they need: the engine has none for images yet."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from core.engine.data import Batch, Feature, Features, Row
from core.engine.tasks import Metric, Task
from tests import tiny_families
from tests.tiny_families import IMAGE_SIZE


class ImageClassification(Task):
    """Logits [B, C] of stock models; nothing is trained."""

    name = "image-classification"
    auto_class = AutoModelForImageClassification
    headline = "accuracy"
    outputs_per_row = True

    @staticmethod
    def outputs(model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(batch["pixel_values"]).logits
        return logits

    def collate(self, features: list[Feature]) -> Batch:
        return {"pixel_values": torch.stack([feature["pixel_values"] for feature in features])}

    def features(self, rows: list[Row]) -> Features:
        raise NotImplementedError

    def loss(self, outputs: Tensor, batch: Batch, teacher: Tensor | None) -> Tensor:
        raise NotImplementedError

    def summarise(self, outputs: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError

    def metrics(self, summaries: list[Tensor], reference: list[Tensor]) -> dict[str, Metric]:
        raise NotImplementedError


def model(family: str) -> PreTrainedModel:
    return tiny_families.build(family, AutoModelForImageClassification)


def processor() -> Any:
    """What makes a model's inputs of images; needs no torchvision."""
    return ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


def inputs(rows: int = 2) -> Batch:
    """Random images."""
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(rows, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)}
