"""Texts from texts: what is read and learnt, and metrics against slow references."""

import math

import pytest
import sacrebleu
import torch
from pydantic import ValidationError

from core.engine.anatomy import bind
from core.engine.data import Row, Source
from core.engine.evaluate import HiddenTeacher, evaluate
from core.engine.tasks import TASKS
from core.engine.tasks.seq2seq import summary_metrics, translation_metrics
from core.errors import InvalidDataError, InvalidInputError
from core.jobs import spec
from tests import tiny, tiny_families

DATA = {"source": "path", "train": "/data/train.jsonl"}


def task(training=None, **options):
    part = spec.Seq2Seq.model_validate({"name": "seq2seq", "data": DATA, "kind": "translation", **options})
    return TASKS["seq2seq"](part, spec.Training(max_length=16, **training or {}), tiny.tokenizer())


def rows(count=6):
    sources, targets = tiny.sentences(count), tiny.sentences(count, seed=1)
    return [{"source": source, "target": target} for source, target in zip(sources, targets, strict=True)]


def batch_of(ours, features, count=6):
    return ours.collate([features[i] for i in range(count)])


def test_a_target_ends_with_the_end_token_and_is_cut_before_it():
    ours = task(max_target_length=4)
    end = ours.tokenizer.eos_token_id
    features = ours.features(
        [{"source": "a cat", "target": "the dog"}, {"source": "a", "target": "a big red cat ran on"}]
    )
    ids = ours.tokenizer.convert_tokens_to_ids
    assert features[0]["target_ids"] == [*ids(["the", "dog"]), end]
    assert features[1]["target_ids"] == [*ids(["a", "big", "red"]), end]
    assert features[0]["characters"] == len("the dog")
    assert features[1]["characters"] == pytest.approx(len("a big red cat ran on") * 4 / 6)


def test_a_prefix_is_put_before_every_source():
    ours = task(source_prefix="very ")
    assert (
        ours.features([{"source": "sad", "target": "a"}])[0]["input_ids"]
        == task().features([{"source": "very sad", "target": "a"}])[0]["input_ids"]
    )


def test_further_references_are_kept_and_the_first_is_learnt():
    features = task().features([{"source": "a", "target": ["the cat", "a cat"]}])
    assert features[0]["references"] == ["the cat", "a cat"]
    assert features[0]["target_ids"] == task().features([{"source": "a", "target": "the cat"}])[0]["target_ids"]


@pytest.mark.parametrize("target", [None, "", 3, [], ["a", ""], ["a", 3]])
def test_a_row_without_a_target_is_named(target):
    row = Row({"source": "a", "target": target}, Source("rows.jsonl", "/task/data/train"), 4)
    expected = r"rows\.jsonl, line 4: column 'target' (holds .*|is empty); .* or a list of texts"
    with pytest.raises(InvalidDataError, match=expected):
        task().features([row])


@pytest.mark.parametrize("kind", ["t5", "bart", "marian"])
def test_the_decoder_reads_the_labels_shifted_and_padding_costs_nothing(kind):
    """By a loop over rows without padding."""
    ours, model = task(), tiny_families.model(kind, "seq2seq")
    features = ours.features(rows())
    total, tokens = 0.0, 0
    with torch.no_grad():
        for i in range(len(features)):
            labels = torch.tensor([features[i]["target_ids"]])
            loss = model(input_ids=torch.tensor([features[i]["input_ids"]]), labels=labels).loss
            total += float(loss) * labels.numel()
            tokens += labels.numel()
        batch = batch_of(ours, features)
        assert float(ours.loss(ours.outputs(model, batch), batch, None)) == pytest.approx(total / tokens, rel=1e-4)
    metrics = evaluate(ours, model, features).metrics
    assert metrics["nats_per_token"].value == pytest.approx(total / tokens, rel=1e-4)
    characters = sum(len(row["target"]) for row in rows())
    assert metrics["nats_per_character"].value == pytest.approx(total / characters, rel=1e-4)
    assert set(metrics) == {"nats_per_token", "perplexity", "nats_per_character", "bleu", "chrf"}


def test_distillation_is_over_labels_alone():
    ours = task({"distillation": 1.0})
    batch = batch_of(ours, ours.features(rows()))
    is_label = batch["labels"] != -100
    generator = torch.Generator().manual_seed(0)
    answers, taught = (torch.randn(*is_label.shape, 7, generator=generator).double() for _ in range(2))
    batch["labels"] = batch["labels"].clamp(max=6)
    expected = [
        sum(float(p * (p.log() - q.log())) for p, q in zip(t.softmax(-1), s.softmax(-1), strict=True))
        for s, t, real in zip(answers.flatten(0, 1), taught.flatten(0, 1), is_label.flatten(), strict=True)
        if real
    ]
    found = ours.loss(answers, batch, taught)
    assert float(found) == pytest.approx(sum(expected) / len(expected))
    answers[~is_label] = 0
    assert float(ours.loss(answers, batch, taught)) == pytest.approx(float(found))


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_are_written_together_as_each_alone(beams):
    ours, model = task(num_beams=beams, max_target_length=8), tiny_families.model("t5", "seq2seq")
    features = ours.features(rows())
    alone = []
    for row in rows():
        ids = model.generate(
            torch.tensor([ours.tokenizer(row["source"])["input_ids"]]), num_beams=beams, max_new_tokens=8
        )
        alone.append(ours.tokenizer.decode(ids[0], skip_special_tokens=True))
    assert ours.write(model, features) == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_is_written_once_whatever_the_models_own_settings(beams):
    ours, model = task(num_beams=beams, max_target_length=8), tiny_families.model("t5", "seq2seq")
    features = ours.features(rows())
    expected = ours.write(model, features)
    model.generation_config.update(num_beams=4, num_return_sequences=2, return_dict_in_generate=True)
    assert ours.write(model, features) == expected


def test_bleu_takes_all_references_however_many_a_row_has():
    written, references = (
        ["the cat sat on the mat", "a dog ran"],
        [["the cat sat on a mat"], ["a dog sat", "the dog ran"]],
    )
    metrics = translation_metrics(written, references)
    padded = [["the cat sat on a mat", "a dog sat"], [None, "the dog ran"]]
    assert metrics["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(written, padded).score)
    assert translation_metrics(written, [[text] for text in written])["bleu"].value == pytest.approx(100)
    assert metrics["chrf"].value < 100


def test_rouge_is_the_overlap_with_the_best_reference():
    found = summary_metrics(["the cat sat here"], [["a dog", "the cat ran here"]])
    assert found["rouge_1"].value == pytest.approx(3 / 4)
    assert found["rouge_2"].value == pytest.approx(1 / 3)
    assert found["rouge_l"].value == pytest.approx(3 / 4)


def test_hidden_states_of_encoder_and_decoder_have_their_own_padding():
    """Padding both sides further changes nothing."""
    ours = task()
    dense, student = (tiny_families.model("bart", "seq2seq", deviation=deviation) for deviation in (0.3, 0.4))
    features = ours.features(rows())
    batch = batch_of(ours, features)
    padded = batch | {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 3)),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 3)),
        "labels": torch.nn.functional.pad(batch["labels"], (0, 2), value=-100),
    }
    teacher, found = HiddenTeacher(ours, bind(dense), bind(student)), []
    with torch.no_grad():
        for each in (batch, padded):
            ours.outputs(student, each)
            found.append(float(teacher.distance(each)))
    teacher.close()
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] > 0


def test_targets_longer_than_the_model_has_positions_for_are_refused():
    config = tiny_families.model("bart", "seq2seq").config
    with pytest.raises(InvalidInputError, match="positions for 64 tokens; max_target_length is 65") as caught:
        task(max_target_length=65).model_options(config, [])
    assert caught.value.param == "/task/max_target_length"
    assert task(max_target_length=64).model_options(config, []) == {}


@pytest.mark.parametrize(("kind", "metric"), [("translation", "rouge_l"), ("summarisation", "bleu")])
def test_a_headline_that_is_not_measured_is_refused(kind, metric):
    with pytest.raises(ValidationError, match=f"metric {metric} is not measured for {kind}"):
        task(kind=kind, metric=metric)


def test_nothing_written_is_scored_as_nothing():
    assert translation_metrics([""], [["a cat"]])["bleu"].value == 0
    assert math.isclose(summary_metrics([""], [["a cat"]])["rouge_l"].value, 0)


@pytest.mark.parametrize(("metric", "written"), [("nats_per_token", 0), ("bleu", 1)])
def test_texts_are_written_for_the_headline_alone_only_where_it_is_of_these(monkeypatch, metric, written):
    ours, model, calls = task(metric=metric), tiny_families.model("t5", "seq2seq"), []
    write = type(ours).write
    monkeypatch.setattr(type(ours), "write", lambda *arguments: calls.append(1) or write(*arguments))
    features = ours.features(rows())
    alone = evaluate(ours, model, features, headline_only=True).metrics
    assert len(calls) == written
    assert alone[metric] == evaluate(ours, model, features).metrics[metric]
