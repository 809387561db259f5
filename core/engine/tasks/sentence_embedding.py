"""Sentence embeddings, kept close to the dense model's; no labels."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from core.engine.data import Batch, Features, Row
from core.engine.inspection import blaming_the_model
from core.engine.tasks.base import Metric, Task, model_inputs
from core.errors import InvalidModelError, shown

PAIRED_ROWS = 1000
"""Rows whose pairs (at most 499,500) are compared: pairs grow with the square of the rows."""

EQUAL_SIMILARITIES = 1e-5
"""Similarities that differ by less differ by rounding."""

MEAN = frozenset({"mean", "mean_tokens"})
"""What sentence-transformers calls the mean of all tokens."""

MODULES = ("Transformer", "Pooling", "Normalize")
"""Of sentence-transformers, which make up what is computed here."""


class SentenceEmbeddingTask(Task):
    """Mean-pooled, normalised last hidden state [B, E], as sentence-transformers computes it."""

    name = "sentence-embedding"
    auto_class = AutoModel
    outputs_per_row = True
    dropout = False

    @staticmethod
    def check_folder(folder: Path) -> None:
        """Refuse what sentence-transformers computes otherwise: its embedding is not the one that would be kept."""
        modules = folder / "modules.json"
        if modules.is_file():
            with blaming_the_model("modules.json cannot be read"):
                kinds = [str(module["type"]).rpartition(".")[2] for module in json.loads(modules.read_text())]
            if further := [kind for kind in kinds if kind not in MODULES]:
                raise InvalidModelError(
                    f"modules.json: a module of type {shown(further[0])} belongs to the model's embeddings; "
                    f"sentence-embedding supports only {', '.join(MODULES)}.",
                    param="/model",
                )
        for path in folder.glob("*_Pooling/config.json"):
            name = path.relative_to(folder)
            with blaming_the_model(f"{name} cannot be read"):
                others = _pooling_modes(json.loads(path.read_text())) - MEAN
            if others:
                raise InvalidModelError(
                    f"{name}: the model's embeddings are pooled by {', '.join(map(shown, sorted(others)))}; "
                    "sentence-embedding supports only the mean of all tokens.",
                    param="/model",
                )

    def features(self, rows: list[Row]) -> Features:
        return Features(self.encode(rows, self.spec.text_column))

    @staticmethod
    def outputs(model: PreTrainedModel, batch: Batch) -> Tensor:
        hidden = model(**model_inputs(batch)).last_hidden_state.float()
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def loss(self, outputs: Tensor, batch: Batch, teacher: Tensor | None) -> Tensor:
        """Distance to the dense embeddings, and between the similarities of all pairs in the batch."""
        if teacher is None:
            raise ValueError("sentence-embedding is learnt from the dense model alone")
        point = (1 - F.cosine_similarity(outputs, teacher)).mean()
        pairs = F.mse_loss(outputs @ outputs.T, teacher @ teacher.T)
        return point + pairs

    def summarise(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs

    def metrics(self, summaries: list[Tensor], reference: list[Tensor]) -> dict[str, Metric]:
        """Mean cosine over all rows; rank correlation over the pairs of at most `PAIRED_ROWS` of them."""
        ours, dense = torch.cat(summaries), torch.cat(reference)
        cosine = F.cosine_similarity(ours, dense).mean().item()
        drawn = _drawn(dense)
        correlation = _rank_correlation(_similarities(ours[drawn]), _similarities(dense[drawn]))
        return {
            "cosine_to_dense": Metric(cosine, "cosine, -1 … 1", True),
            "similarity_spearman": Metric(correlation, "rank correlation, -1 … 1", True),
        }


def _pooling_modes(options: dict[str, Any]) -> set[str]:
    """What sentence-transformers pools by: older versions write a flag for each mode, newer ones its name."""
    flag = "pooling_mode_"
    modes = {name.removeprefix(flag) for name, is_on in options.items() if name.startswith(flag) and is_on}
    named = options.get("pooling_mode") or []
    return modes | ({named} if isinstance(named, str) else set(named))


def _drawn(dense: Tensor) -> Tensor:
    """Which rows are compared in pairs; of fewer rows, as the jackknife has them, nearly the same.

    Args:
        dense: Their embeddings by the dense model, [rows, E], whose checksums are as good as chance.
    """
    checksums = [zlib.crc32(embedding.tobytes()) for embedding in dense.float().numpy()]
    return torch.tensor(checksums).argsort(stable=True)[:PAIRED_ROWS]


def _similarities(embeddings: Tensor) -> NDArray[np.float32]:
    """Of each pair of rows, [pairs]."""
    similarities: NDArray[np.float32] = (embeddings @ embeddings.T).numpy()
    return similarities[np.triu_indices(len(embeddings), k=1)]


def _rank_correlation(ours: NDArray[np.float32], dense: NDArray[np.float32]) -> float:
    """Spearman's; NaN where either has but one value, as of a single pair or of equal texts."""
    from scipy.stats import spearmanr  # slow to import, as all metrics are

    if len(ours) < 2 or min(np.ptp(ours), np.ptp(dense)) < EQUAL_SIMILARITIES:
        return math.nan
    return float(spearmanr(ours, dense).statistic)
