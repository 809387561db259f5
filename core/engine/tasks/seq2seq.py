"""A text written from a text: translation and summarisation by encoder-decoders."""

from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from core.engine.data import Batch, Feature, Features, Row, batches_by_length, pad
from core.engine.inspection import most_tokens
from core.engine.tasks.base import NO_LABEL, Metric, Task, model_inputs, soft_cross_entropy, text_metrics
from core.errors import InvalidInputError

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
"""Our name of a metric → the package's."""


class Seq2SeqTask(Task):
    """Logits [B, T, V]: of each of a target's T tokens, given the source and the target's tokens before it."""

    name = "seq2seq"
    auto_class = AutoModelForSeq2SeqLM
    outputs_per_row = False

    def model_options(self, config: PreTrainedConfig, rows: list[Row]) -> dict[str, Any]:
        """None.

        Raises:
            InvalidInputError: the model has no positions for targets that long.
        """
        positions = most_tokens(config)
        if positions is not None and self.spec.max_target_length > positions:
            raise InvalidInputError(
                f"The model has positions for {positions} tokens; max_target_length is {self.spec.max_target_length}.",
                param="/task/max_target_length",
            )
        return {}

    def features(self, rows: list[Row]) -> Features:
        """`target_ids` are the first reference's; `characters` of it they stand for; `references` are all of them."""
        sources = self.encode(rows, self.spec.source_column, prefix=self.spec.source_prefix)
        references = [self._references(row) for row in rows]
        targets = self.tokenizer(text_target=[first for first, *_ in references])["input_ids"]
        return Features(
            [
                {
                    "input_ids": source["input_ids"],
                    "attention_mask": source["attention_mask"],
                    "target_ids": (ids := self._ended(target)),
                    "characters": len(texts[0]) * min(1.0, len(ids) / max(1, len(target))),
                    "references": texts,
                }
                for source, target, texts in zip(sources, targets, references, strict=True)
            ]
        )

    def collate(self, features: list[Feature]) -> Batch:
        """Adds `labels` [B, T], which are `NO_LABEL` where a target is over, and `characters` [B]."""
        labels = pad(features, "target_ids", NO_LABEL)
        return super().collate(features) | {
            "labels": labels,
            "characters": torch.tensor([f["characters"] for f in features]),
        }

    @staticmethod
    def inputs(model: PreTrainedModel, batch: Batch) -> Batch:
        """The decoder reads the labels as the model itself shifts them, unless it is told what to read."""
        inputs = model_inputs(batch)
        if "decoder_input_ids" not in inputs:
            shift: Any = model.prepare_decoder_input_ids_from_labels
            inputs["decoder_input_ids"] = shift(labels=batch["labels"])
        return inputs

    @staticmethod
    def outputs(model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**Seq2SeqTask.inputs(model, batch), use_cache=False).logits
        return logits.float()

    @staticmethod
    def real_tokens(batch: Batch, *, is_target: bool) -> Tensor | None:
        return batch["labels"] != NO_LABEL if is_target else batch["attention_mask"].bool()

    def loss(self, outputs: Tensor, batch: Batch, teacher: Tensor | None) -> Tensor:
        hard = F.cross_entropy(outputs.flatten(0, 1), batch["labels"].flatten(), ignore_index=NO_LABEL)
        share = self.training.distillation
        if teacher is None or share is None:
            return hard
        is_label = batch["labels"] != NO_LABEL
        return (1 - share) * hard + share * soft_cross_entropy(outputs[is_label], teacher[is_label], 1.0)

    def summarise(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Total nats and number of the targets' tokens, and the characters that these stand for, [3]."""
        labels = batch["labels"].flatten()
        nats = F.cross_entropy(outputs.flatten(0, 1), labels, ignore_index=NO_LABEL, reduction="sum")
        tokens = (labels != NO_LABEL).sum()
        return torch.tensor([nats.item(), tokens.item(), batch["characters"].sum().item()], dtype=torch.float64)

    def metrics(self, summaries: list[Tensor], reference: list[Tensor]) -> dict[str, Metric]:
        nats, tokens, characters = torch.stack(summaries).sum(0).tolist()
        return text_metrics(nats, tokens, characters)

    def writing_metrics(self, model: PreTrainedModel, features: Features) -> dict[str, Metric]:
        """BLEU and chrF of translations, ROUGE of summaries; the model writes until its end token, without sampling."""
        written = self.write(model, features)
        references = [feature["references"] for feature in features.features]
        return TEXT_METRICS[self.spec.kind](written, references)

    def write(self, model: PreTrainedModel, features: Features) -> list[str]:
        """What the model writes to each row."""
        written = [""] * len(features)
        writer: Any = model
        for batch in batches_by_length(features, self.training.per_device_eval_batch_size, self.collate):
            # The model's own generation_config says how it writes otherwise, but not how many answers there are.
            ids = writer.generate(
                **{name: tensor.to(model.device) for name, tensor in model_inputs(batch).items()},
                do_sample=False,
                num_return_sequences=1,
                return_dict_in_generate=False,
                num_beams=self.spec.num_beams,
                max_new_tokens=self.spec.max_target_length,
            )
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            for row, text in zip(batch["row"].tolist(), texts, strict=True):
                written[row] = text
        return written

    def _references(self, row: Row) -> list[str]:
        """One text, or a list of them."""
        column = self.spec.target_column
        value = row.get(column)
        texts: list[Any] = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise row.lacks(column, "text, or a list of texts")
        return texts

    def _ended(self, ids: list[int]) -> list[int]:
        """At most `max_target_length` tokens, the last of which tells the model to stop."""
        end = self.tokenizer.eos_token_id
        cut = ids[: self.spec.max_target_length]
        return cut if end is None or cut[-1:] == [end] else [*cut[: self.spec.max_target_length - 1], end]


def translation_metrics(written: list[str], references: list[list[str]]) -> dict[str, Metric]:
    """sacreBLEU's BLEU (Post 2018, tokens as in mteval-13a) and chrF (Popović 2015) of the whole corpus."""
    import sacrebleu  # slow to import, as all metrics are

    streams: Any = list(zip_longest(*references))
    return {
        "bleu": Metric(sacrebleu.corpus_bleu(written, streams).score, "BLEU, 0 … 100", True),
        "chrf": Metric(sacrebleu.corpus_chrf(written, streams).score, "chrF, 0 … 100", True),
    }


def summary_metrics(written: list[str], references: list[list[str]]) -> dict[str, Metric]:
    """Mean F1 of ROUGE-1, 2 and L (Lin 2004) with stems; of several references, the best one of a row counts."""
    from rouge_score.rouge_scorer import RougeScorer  # slow to import, as all metrics are

    scorer = RougeScorer(list(ROUGE.values()), use_stemmer=True)
    scores = [scorer.score_multi(texts, text) for text, texts in zip(written, references, strict=True)]
    return {
        name: Metric(sum(score[theirs].fmeasure for score in scores) / len(scores), "F1, 0 … 1", True)
        for name, theirs in ROUGE.items()
    }


TEXT_METRICS = {"translation": translation_metrics, "summarisation": summary_metrics}
