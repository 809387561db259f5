"""One label for an image."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification

from core.engine.data import Batch, Feature, Features, Row
from core.engine.images import decode, image_bytes
from core.engine.tasks.classification import ClassificationTask


class ImageClassificationTask(ClassificationTask):
    """Logits [B, C]."""

    name = "image-classification"
    auto_class = AutoModelForImageClassification
    reads_images = True
    pads = False

    def features(self, rows: list[Row]) -> Features:
        """Images stay compressed: a batch's are decoded when it is made."""
        return Features(
            [{"image": image_bytes(row, self.spec.image_column), "labels": self.class_of(row)} for row in rows]
        )

    def collate(self, features: list[Feature]) -> Batch:
        """`pixel_values` [B, channels, height, width], as the model's own processor makes them; `row` and `labels`."""
        process: Any = self.processor
        images = [decode(feature["image"]) for feature in features]
        return {
            "pixel_values": process(images=images, return_tensors="pt")["pixel_values"],
            "row": torch.tensor([feature["row"] for feature in features]),
            "labels": torch.tensor([feature["labels"] for feature in features]),
        }

    @staticmethod
    def real_tokens(batch: Batch, *, is_target: bool) -> Tensor | None:
        return None
