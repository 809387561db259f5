"""Loading a model for a task: whose head it keeps, and which it starts anew."""

import torch
from transformers import BertConfig, BertForSequenceClassification

from core.engine.loading import load_config, load_model
from core.engine.tasks import TASKS
from core.jobs import spec
from tests import tiny


def load(folder, labels, report=lambda message: None):
    part = spec.SequenceClassification(
        name="sequence-classification", data=spec.PathData(source="path", train="/data/train.jsonl")
    )
    task = TASKS["sequence-classification"](part, spec.Training(), tiny.tokenizer())
    rows = [{"text": "a cat", "label": label} for label in labels]
    return load_model(folder, load_config(folder), task, rows, report)


def saved(folder, names):
    config = BertConfig(**tiny.bert_config().to_diff_dict() | {"id2label": dict(enumerate(names))})
    config.label2id = {name: i for i, name in enumerate(names)}
    model = tiny.randomised(BertForSequenceClassification(config))
    tiny.save(model, folder)
    return model


def test_a_trained_head_is_kept_where_the_labels_are_its_own(tmp_path):
    saved_model = saved(tmp_path, ["positive", "negative"])
    model, head_is_new = load(tmp_path, ["negative", "positive"])
    assert not head_is_new
    assert torch.equal(model.classifier.weight, saved_model.classifier.weight)
    assert model.config.id2label == {0: "positive", 1: "negative"}


def test_a_head_for_other_classes_starts_anew(tmp_path):
    saved_model = saved(tmp_path, ["positive", "negative"])
    model, head_is_new = load(tmp_path, ["spam", "ham"])
    assert head_is_new
    assert not torch.equal(model.classifier.weight, saved_model.classifier.weight)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, saved_model.bert.embeddings.word_embeddings.weight)
    assert model.config.id2label == {0: "ham", 1: "spam"}
