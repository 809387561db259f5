"""Next-token prediction on documents packed into blocks of equal length."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from core.engine.data import Batch, Feature, Features, Row, text_of
from core.engine.tasks.base import Metric, Task, model_inputs, soft_cross_entropy, text_metrics
from core.errors import InvalidDataError


class CausalLMTask(Task):
    """Logits [B, L, V]; position i predicts token i + 1."""

    name = "causal-lm"
    auto_class = AutoModelForCausalLM
    outputs_per_row = False
    pads = False

    def features(self, rows: list[Row]) -> Features:
        """Documents in a row, each begun with its start token (or ended with the end token), cut into blocks.

        What is left at the end, less than a block, is left out unless it is all there is: no batch holds padding.

        `characters` is how many of the text a block's predicted tokens stand for: each token of a document for the
        same share of it.
        """
        length = self.training.max_length
        texts = [text_of(row, self.spec.text_column) for row in rows]
        stream: list[int] = []
        characters: list[float] = []
        for text, ids in zip(texts, self.tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
            delimited = self._delimited(ids)
            stream += delimited
            # A tokenizer may make nothing of a text.
            characters += [len(text) / max(1, len(delimited))] * len(delimited)
        if len(stream) < 2:
            raise InvalidDataError("The text has fewer than two tokens.", param="/task/data")
        cuts = [*range(0, len(stream), length), len(stream)]
        if len(cuts) > 2 and cuts[-1] - cuts[-2] < length:
            cuts.pop()
        return Features(
            [
                {
                    "input_ids": stream[start:end],
                    "attention_mask": [1] * (end - start),
                    "characters": sum(characters[start + 1 : end]),
                }
                for start, end in pairwise(cuts)
            ],
            len(rows),
        )

    def collate(self, features: list[Feature]) -> Batch:
        """Adds `characters` [B]."""
        return super().collate(features) | {"characters": torch.tensor([f["characters"] for f in features])}

    @staticmethod
    def outputs(model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**model_inputs(batch), use_cache=False).logits
        return logits.float()

    def loss(self, outputs: Tensor, batch: Batch, teacher: Tensor | None) -> Tensor:
        hard = F.cross_entropy(outputs[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())
        share = self.training.distillation
        if teacher is None or share is None:
            return hard
        return (1 - share) * hard + share * soft_cross_entropy(outputs[:, :-1], teacher[:, :-1], 1.0)

    def summarise(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Total nats, number of predicted tokens, and the characters that these stand for, [3]."""
        target = batch["input_ids"][:, 1:].flatten()
        nats = F.cross_entropy(outputs[:, :-1].flatten(0, 1), target, reduction="sum")
        return torch.tensor([nats.item(), target.numel(), batch["characters"].sum().item()], dtype=torch.float64)

    def metrics(self, summaries: list[Tensor], reference: list[Tensor]) -> dict[str, Metric]:
        nats, tokens, characters = torch.stack(summaries).sum(0).tolist()
        return text_metrics(nats, tokens, characters)

    def _delimited(self, ids: list[int]) -> list[Any]:
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if start is not None:
            return [start, *ids]
        return [*ids, end] if end is not None else ids
