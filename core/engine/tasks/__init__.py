"""What a model is for: how rows become batches, what the loss is, and how good a model is at it."""

from core.engine.tasks.base import Metric, Task
from core.engine.tasks.causal_lm import CausalLMTask
from core.engine.tasks.image_classification import ImageClassificationTask
from core.engine.tasks.masked_lm import MaskedLMTask
from core.engine.tasks.regression import RegressionTask
from core.engine.tasks.sentence_embedding import SentenceEmbeddingTask
from core.engine.tasks.seq2seq import Seq2SeqTask
from core.engine.tasks.sequence_classification import SequenceClassificationTask

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        SentenceEmbeddingTask,
        SequenceClassificationTask,
        RegressionTask,
        CausalLMTask,
        MaskedLMTask,
        Seq2SeqTask,
        ImageClassificationTask,
    )
}

__all__ = ["TASKS", "Metric", "Task"]
