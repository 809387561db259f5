"""Next-token prediction on documents packed into blocks of equal length."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from core.engine.data import Batch, Features, Row, text_of
from core.engine.tasks.base import Metric, Task, model_inputs, soft_cross_entropy
from core.errors import InvalidDataError


class CausalLMTask(Task):
    """Logits [B, L, V]; position i predicts token i + 1."""

    name = "causal-lm"
    auto_class = AutoModelForCausalLM
    headline = "nats_per_token"
    outputs_per_row = False

    def features(self, rows: list[Row]) -> Features:
        """Documents in a row, each begun with its start token (or ended with the end token), cut into blocks."""
        length = self.training.max_length
        texts = [text_of(row, self.spec.text_column) for row in rows]
        stream: list[int] = []
        for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]:
            stream += self._delimited(ids)
        if len(stream) < 2:
            raise InvalidDataError("The text has fewer than two tokens.", param="/task/data")
        blocks = [stream[i : i + length] for i in range(0, len(stream), length)]
        if len(blocks) > 1 and len(blocks[-1]) < length:
            blocks.pop()
        return Features([{"input_ids": block, "attention_mask": [1] * len(block)} for block in blocks])

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
        """Total nats and number of predicted tokens, [2], in double precision."""
        target = batch["input_ids"][:, 1:].flatten()
        nats = F.cross_entropy(outputs[:, :-1].flatten(0, 1), target, reduction="sum")
        return torch.tensor([nats.item(), target.numel()], dtype=torch.float64)

    def metrics(self, summaries: list[Tensor], reference: list[Tensor]) -> dict[str, Metric]:
        nats, tokens = torch.stack(summaries).sum(0).tolist()
        return {
            "nats_per_token": Metric(nats / tokens, "nats", False),
            "perplexity": Metric(math.exp(min(nats / tokens, 700.0)), "1", False),
        }

    def _delimited(self, ids: list[int]) -> list[Any]:
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if start is not None:
            return [start, *ids]
        return [*ids, end] if end is not None else ids
