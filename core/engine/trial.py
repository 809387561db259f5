"""Tries a loaded model on the data once, so that one that cannot run is refused before it is trained."""

from itertools import chain, islice
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.engine.anatomy import Anatomy, bind
from core.engine.data import Features, length_of
from core.engine.inspection import blaming_the_model
from core.engine.tasks import Task
from core.errors import InvalidDataError, InvalidModelError

ROWS_LOOKED_AT = 100
"""Rows whose tokens tell whether the tokenizer knows the language of the data."""

UNKNOWN_ALLOWED = 0.5
"""Share of their tokens that may be unknown to it."""


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, features: Features) -> None:
    """Refuse data of which the tokenizer knows hardly anything: every row would look alike.

    Raises:
        InvalidDataError: most tokens are the unknown token.
    """
    unknown = tokenizer.unk_token_id
    framing = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    if unknown is None or unknown in framing:
        return
    rows = islice(features.features, ROWS_LOOKED_AT)
    words = [token for row in rows for token in row["input_ids"] if token not in framing]
    share = words.count(unknown) / max(1, len(words))
    if share > UNKNOWN_ALLOWED:
        raise InvalidDataError(
            f"{share:.0%} of the tokens in the first rows are unknown to the model's tokenizer. "
            "Its files may be incomplete, or the text is in another language or script than the model's.",
            param="/task/data",
        )


@torch.no_grad()
def check_runs(task: Task, model: PreTrainedModel, train: Features, held_out: Features) -> None:
    """Run the shortest and the longest training row through a model on the CPU.

    Raises:
        InvalidModelError: the model does not fit its family's row or the tokenizer, does not run, or answers with NaN
            or infinity.
    """
    _check_token_ids(model, train, held_out)
    rows = sorted(train.features, key=length_of)
    with blaming_the_model("The model does not run"):
        _check_heads(bind(model))
        outputs = task.outputs(model, task.collate([rows[0], rows[-1]]))
    if not outputs.isfinite().all():
        raise InvalidModelError("The model answers the first rows with NaN or infinity.", param="/model")


def _check_token_ids(model: PreTrainedModel, train: Features, held_out: Features) -> None:
    if model.main_input_name != "input_ids":
        return
    size = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    rows = chain(train.features, held_out.features)
    largest = max((token for row in rows for token in (*row["input_ids"], *row.get("target_ids", ()))), default=0)
    if largest >= size:
        raise InvalidModelError(
            f"The tokenizer gives token ids up to {largest}; the model's vocabulary has {size} (vocab_size). "
            "Are they of the same model?",
            param="/model",
        )


def _check_heads(anatomy: Anatomy) -> None:
    """Refuse heads of another size than the config says."""
    config = anatomy.model.config
    for attention in anatomy.attentions:
        heads = getattr(config, attention.row.heads)
        asked = heads * attention.head_dim
        width = attention.groups * attention.queries_per_group * attention.head_dim
        if width != asked:
            raise InvalidModelError(
                f"Layer {attention.units.layer}: the query projection is {width} wide; config.json asks for {heads} "
                f"heads of {attention.head_dim}, that is, {asked}.",
                param="/model",
            )
