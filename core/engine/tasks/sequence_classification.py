"""One label for a text or a pair of texts."""

from transformers import AutoModelForSequenceClassification

from core.engine.data import Features, Row
from core.engine.tasks.classification import ClassificationTask


class SequenceClassificationTask(ClassificationTask):
    """Logits [B, C]."""

    name = "sequence-classification"
    auto_class = AutoModelForSequenceClassification

    def features(self, rows: list[Row]) -> Features:
        encoded = self.encode(rows, self.spec.text_column, self.spec.text_pair_column)
        return Features([{**feature, "labels": self.class_of(row)} for feature, row in zip(encoded, rows, strict=True)])
