"""Words that were hidden in a text, guessed from what stands around them (Devlin et al. 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from core.engine.data import Batch, Feature, Features, Row, pad
from core.engine.tasks.base import NO_LABEL, Metric, Task, model_inputs, share_of, soft_cross_entropy, token_metrics
from core.errors import InvalidDataError, InvalidModelError

HIDDEN = 0.15
"""Share of a row's tokens that is to be guessed; one at least."""

MASKED, REPLACED = 0.8, 0.1
"""Of these, the shares that the mask token and another token stand for; the rest is left as it is."""


class MaskedLMTask(Task):
    """Logits [B, L, V]; those of hidden tokens count.

    What is hidden is drawn once for each row, with the seed: held-out rows ask the same of every model.
    """

    name = "masked-lm"
    auto_class = AutoModelForMaskedLM
    outputs_per_row = False

    def features(self, rows: list[Row]) -> Features:
        """`target_ids` are the hidden tokens, `NO_LABEL` elsewhere; special and unknown tokens are never hidden.

        Raises:
            InvalidModelError: the tokenizer has no mask token.
            InvalidDataError: no row has a token to hide.
        """
        if self.tokenizer.mask_token_id is None:
            raise InvalidModelError("The model's tokenizer has no mask token.", param="/model")
        generator = torch.Generator().manual_seed(self.training.seed)
        features = [self._hide(feature, generator) for feature in self.encode(rows, self.spec.text_column)]
        if all(label == NO_LABEL for feature in features for label in feature["target_ids"]):
            raise InvalidDataError("No row has a token that the model's tokenizer knows.", param="/task/data")
        return Features(features)

    def collate(self, features: list[Feature]) -> Batch:
        """Adds `labels` [B, L]."""
        return super().collate(features) | {"labels": pad(features, "target_ids", NO_LABEL)}

    @staticmethod
    def outputs(model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**model_inputs(batch)).logits
        return logits.float()

    def loss(self, outputs: Tensor, batch: Batch, teacher: Tensor | None) -> Tensor:
        """Of the hidden tokens; the teacher is followed at all that are no padding."""
        labels = batch["labels"].flatten()
        nats = F.cross_entropy(outputs.flatten(0, 1), labels, ignore_index=NO_LABEL, reduction="sum")
        hard = nats / (labels != NO_LABEL).sum().clamp(min=1)
        share = self.training.distillation
        if teacher is None or share is None:
            return hard
        is_real = batch["attention_mask"].bool()
        return (1 - share) * hard + share * soft_cross_entropy(outputs[is_real], teacher[is_real], 1.0)

    def summarise(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Total nats and number of the hidden tokens, and how many of them were guessed, [3]."""
        labels = batch["labels"]
        nats = F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL, reduction="sum")
        guessed = (outputs.argmax(-1) == labels).sum()
        return torch.tensor([nats.item(), (labels != NO_LABEL).sum().item(), guessed.item()], dtype=torch.float64)

    def metrics(self, summaries: list[Tensor], reference: list[Tensor]) -> dict[str, Metric]:
        nats, tokens, guessed = torch.stack(summaries).sum(0).tolist()
        accuracy = share_of(guessed, tokens)
        return token_metrics(nats, tokens) | {"accuracy": Metric(accuracy, "share of hidden tokens, 0 … 1", True)}

    def _hide(self, feature: Feature, generator: torch.Generator) -> Feature:
        """A row with some of its tokens hidden, and these as its targets."""
        ids = torch.tensor(feature["input_ids"])
        free = (~torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))).nonzero()[:, 0]
        count = min(len(free), max(1, round(HIDDEN * len(free))))
        hidden = free[torch.randperm(len(free), generator=generator)[:count]]
        labels = torch.full_like(ids, NO_LABEL)
        labels[hidden] = ids[hidden]
        chance = torch.rand(count, generator=generator)
        others = torch.randint(len(self.tokenizer), (count,), generator=generator)
        ids[hidden] = torch.where(chance < MASKED + REPLACED, others, ids[hidden])
        ids[hidden[chance < MASKED]] = self.tokenizer.mask_token_id
        return {**feature, "input_ids": ids.tolist(), "target_ids": labels.tolist()}
