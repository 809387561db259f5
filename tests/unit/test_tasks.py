"""Tasks: tokenising, losses and metrics against slow references."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from tokenizers import Tokenizer, models
from transformers import BertConfig, PreTrainedTokenizerFast

from core.engine.data import Row, Source
from core.engine.evaluate import Teacher, evaluate
from core.engine.tasks import TASKS, sentence_embedding
from core.engine.tasks.base import soft_cross_entropy
from core.errors import InvalidDataError, InvalidModelError, NumericalError
from core.jobs import spec
from tests import tiny, tiny_families

TRAIN = Source("rows.jsonl", "/task/data/train")
DATA = {"source": "path", "train": "/data/train.jsonl"}


def task(name, **options):
    parts = {
        "sentence-embedding": spec.SentenceEmbedding,
        "sequence-classification": spec.SequenceClassification,
        "regression": spec.Regression,
        "causal-lm": spec.CausalLM,
        "masked-lm": spec.MaskedLM,
    }
    part = parts[name].model_validate({"name": name, "data": DATA, **options})
    return TASKS[name](part, spec.Training(max_length=16), tiny.tokenizer())


def rows(count=20):
    return [Row({"text": text, "label": i % 3}, TRAIN, i) for i, text in enumerate(tiny.sentences(count))]


def test_distillation_is_the_tempered_divergence():
    student, teacher = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = np.exp(np.array(t) / 2) / np.exp(np.array(t) / 2).sum()
        q = np.exp(np.array(s) / 2) / np.exp(np.array(s) / 2).sum()
        total += sum(pi * (math.log(pi) - math.log(qi)) for pi, qi in zip(p, q, strict=True))
    assert soft_cross_entropy(student, teacher, 2.0).item() == pytest.approx(4 * total / 4)
    assert soft_cross_entropy(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-12)


def test_embeddings_do_not_depend_on_padding():
    ours = task("sentence-embedding")
    features = ours.features(rows())
    model = tiny.bert()
    with torch.no_grad():
        together = ours.outputs(model, ours.collate([features[i] for i in range(20)]))
        alone = torch.cat([ours.outputs(model, ours.collate([features[i]])) for i in range(20)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(20))


def test_embedding_metrics_compare_with_the_dense_model():
    ours = task("sentence-embedding")
    one, other = torch.randn(9, 4), torch.randn(9, 4)
    metrics = ours.metrics([one[:5], one[5:]], [other[:5], other[5:]])
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(one, other, strict=True)]
    pairs = [(i, j) for i in range(9) for j in range(i + 1, 9)]
    expected = spearmanr([float(one[i] @ one[j]) for i, j in pairs], [float(other[i] @ other[j]) for i, j in pairs])
    assert metrics["cosine_to_dense"].value == pytest.approx(sum(cosines) / 9, abs=1e-6)
    assert metrics["similarity_spearman"].value == pytest.approx(expected.statistic)


@pytest.mark.parametrize(
    "embeddings", [torch.ones(1, 4), torch.eye(2), torch.ones(5, 4) + 1e-8 * torch.arange(5)[:, None]]
)
def test_a_rank_correlation_that_nothing_defines_is_nan(embeddings):
    metrics = task("sentence-embedding").metrics([embeddings], [embeddings])
    assert math.isnan(metrics["similarity_spearman"].value)
    assert metrics["cosine_to_dense"].value == pytest.approx(1)


def test_pairs_of_many_rows_are_a_sample(monkeypatch):
    monkeypatch.setattr(sentence_embedding, "PAIRED_ROWS", 100)
    compared = []
    monkeypatch.setattr("scipy.stats.spearmanr", lambda a, b: compared.append(len(a)) or spearmanr(a, b))
    one = torch.nn.functional.normalize(torch.randn(3000, 4), dim=-1)
    values = [task("sentence-embedding").metrics([one], [one + 0.1]) for _ in range(2)]
    assert compared == [100 * 99 // 2] * 2
    assert values[0] == values[1]


def test_nearly_the_same_pairs_are_compared_when_some_rows_are_left_out(monkeypatch):
    """So that the jackknife measures what the rows left out make, and not other samples."""
    monkeypatch.setattr(sentence_embedding, "PAIRED_ROWS", 100)
    dense = torch.nn.functional.normalize(torch.randn(400, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    everything = {tuple(row) for row in dense[sentence_embedding._drawn(dense)].tolist()}
    without = dense[20:]
    fewer = {tuple(row) for row in without[sentence_embedding._drawn(without)].tolist()}
    assert len(everything) == len(fewer) == 100
    assert everything - fewer <= {tuple(row) for row in dense[:20].tolist()}


@pytest.mark.parametrize(
    ("name", "make", "metric"),
    [
        ("sentence-embedding", tiny.bert, "cosine_to_dense"),
        ("sequence-classification", tiny.bert_classifier, "accuracy"),
    ],
)
def test_a_model_that_answers_nan_is_not_measured(name, make, metric):
    ours, model = task(name), make()
    ours.model_options(model.config, rows())
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(NumericalError, match=metric):
        evaluate(ours, model, ours.features(rows()))


def labelled(*labels, class_names=None):
    source = replace(TRAIN, class_names={"label": class_names} if class_names else {})
    return [Row({"text": "a cat", "label": label}, source, i) for i, label in enumerate(labels, 1)]


@pytest.mark.parametrize("names", [None, ("bad", "good", "great")])
def test_a_dense_model_that_learned_nothing_is_doubted(names):
    ours = task("sequence-classification", label_names=names)
    labels = [0, 1, 0, 2] if names else ["bad", "good", "bad", "great"]
    ours.model_options(tiny.bert_config(), labelled(*labels))
    train = ours.features(labelled(*labels[:3]))
    assert ours.doubts(train, [torch.tensor([[0, 0]]), torch.tensor([[1, 1]])]) == []
    same, unknown = ours.doubts(train, [torch.tensor([[1, 0], [1, 1]]), torch.tensor([[1, 2]])])
    assert same.startswith("The dense model answers every held-out row with the class 'good': what pruning costs")
    assert unknown == "The held-out rows have classes that no training row has: 'great'."
    # All are right: a worse model would show.
    assert ours.doubts(train, [torch.tensor([[1, 1], [1, 1]])]) == []


def test_a_dense_model_that_answers_with_one_number_is_doubted():
    ours = task("regression")
    train = ours.features(rows())
    assert ours.doubts(train, [torch.tensor([[0.5, 1.0], [0.7, 2.0]])]) == []
    assert (
        "every held-out row with 0.5: what pruning" in ours.doubts(train, [torch.tensor([[0.5, 1.0], [0.5, 2.0]])])[0]
    )


@pytest.mark.parametrize("said_by", ["spec", "data"])
def test_classes_are_named_by_the_spec_or_the_data(said_by):
    names = ("bad", "so so", "good")
    ours = task("sequence-classification", **({"label_names": names} if said_by == "spec" else {}))
    rows = labelled(2, 0, class_names=names if said_by == "data" else None)
    assert ours.model_options(tiny.bert_config(), rows)["id2label"] == dict(enumerate(names))
    assert [feature["labels"] for feature in ours.features(rows).features] == [2, 0]
    assert ours.features(labelled("so so"))[0]["labels"] == 1
    with pytest.raises(InvalidDataError, match=r"the label is -1, which is none of the classes; .*'bad'"):
        ours.features(labelled(-1))


@pytest.mark.parametrize(
    ("training", "others", "labels", "expected"),
    [
        (("bad", "good"), ("good", "bad"), [0, 1], [1, 0]),
        (("bad", "so so", "good"), ("good", "bad"), [0, 1], [2, 0]),
        (("1", "0"), ("0", "1"), [0, 1], [1, 0]),
        (("bad", "good"), None, [0, 1, "good"], [0, 1, 1]),
        (None, ("good", "bad"), [0, 1], [0, 1]),
    ],
)
def test_numbers_of_another_file_stand_for_its_own_names(training, others, labels, expected):
    ours = task("sequence-classification")
    ours.model_options(tiny.bert_config(), labelled(0, 1, class_names=training))
    rows = labelled(*labels, class_names=others)
    assert [feature["labels"] for feature in ours.features(rows).features] == expected


def test_numbers_of_another_file_stand_for_the_names_of_a_trained_head():
    ours, config = task("sequence-classification"), BertConfig(id2label={0: "good", 1: "bad"})
    assert ours.model_options(config, labelled("bad", "good")) == {}
    assert [ours.class_of(row) for row in labelled(0, 1, class_names=("bad", "good"))] == [1, 0]


def test_a_class_that_only_another_file_names_is_refused():
    ours = task("sequence-classification")
    ours.model_options(tiny.bert_config(), labelled(0, 1, class_names=("bad", "good")))
    with pytest.raises(InvalidDataError, match="the label is 'awful', which is none of the classes; known are 'bad'"):
        ours.features(labelled(0, class_names=("awful", "good")))


def test_the_specs_names_are_those_of_every_files_numbers():
    ours = task("sequence-classification", label_names=("bad", "good"))
    ours.model_options(tiny.bert_config(), labelled(0, 1, class_names=("good", "bad")))
    assert [ours.class_of(row) for row in labelled(0, 1, class_names=("schlecht", "gut"))] == [0, 1]


@pytest.mark.parametrize(
    ("own", "kept", "expected"),
    [
        (["LABEL_0", "LABEL_1"], ["bad", "good"], [0, 1]),
        (["bad", "good"], ["bad", "good"], [0, 1]),
        (["GOOD", "BAD"], ["GOOD", "BAD"], [1, 0]),
    ],
)
def test_a_trained_head_takes_names_that_fit_it(own, kept, expected):
    ours = task("sequence-classification", label_names=("bad", "good"))
    config = BertConfig(id2label=dict(enumerate(own)), label2id={name: i for i, name in enumerate(own)})
    assert ours.model_options(config, labelled(0, 1)) == {}
    assert config.id2label == dict(enumerate(kept))
    assert [feature["labels"] for feature in ours.features(labelled(0, 1, "bad", "good")).features] == expected * 2


@pytest.mark.parametrize("own", [["bad", "fine"], ["LABEL_0", "LABEL_1", "LABEL_2"]])
def test_a_head_for_other_classes_goes(own):
    ours = task("sequence-classification", label_names=("bad", "good"))
    config = BertConfig(id2label=dict(enumerate(own)), label2id={name: i for i, name in enumerate(own)})
    assert ours.model_options(config, labelled(0, 1))["num_labels"] == 2


def test_classes_are_the_sorted_training_labels():
    ours = task("sequence-classification")
    assert ours.model_options(tiny.bert_config(), labelled("no", "yes", "no"))["id2label"] == {0: "no", 1: "yes"}


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["positive", "negative"], ["negative", "positive"], [1, 0]),
        (["a", "b", "c"], ["c", "a"], [2, 0]),
        (["a", "b", "c"], [2, 0], [2, 0]),
        (["a", "b", "c"], ["2", "0"], [2, 0]),
        (["1", "0"], [0, 1], [1, 0]),
        (["1", "2", "3"], [0, 1, 2], [0, 1, 2]),
        (["1", "2", "3"], ["0", "1", "2"], [0, 1, 2]),
        (["1", "2", "3"], [3, 1], [2, 0]),
        (["-1", "0", "1"], ["-1", "1", "0"], [0, 2, 1]),
        (["01", "1"], ["1", "01"], [1, 0]),
    ],
)
def test_a_trained_head_keeps_its_own_classes(names, labels, expected):
    ours = task("sequence-classification")
    config = BertConfig(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    rows = labelled(*labels)
    assert ours.model_options(config, rows) == {}
    features = ours.features(rows)
    assert [features[i]["labels"] for i in range(len(rows))] == expected


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("1", "2", "3"), ["1", "3", "2"], [0, 2, 1]),
        (("1", "2", "3"), [0, 1, 2], [0, 1, 2]),
        (("-1", "0", "1"), ["-1", "0", "1"], [0, 1, 2]),
        (("401", "V42"), ["V42", "401"], [1, 0]),
    ],
)
def test_integers_are_the_specs_names_if_all_of_them_are_and_else_places(names, labels, expected):
    ours = task("sequence-classification", label_names=names)
    rows = labelled(*labels)
    ours.model_options(tiny.bert_config(), rows)
    assert [ours.class_of(row) for row in rows] == expected


def test_a_stray_text_among_integers_is_no_class():
    """Such as a header in the midst of a file that was put together from others."""
    rows = labelled(*["0", "1"] * 60, "label", *["0", "1"])
    with pytest.raises(InvalidDataError, match=r"line 121: column 'label' holds 'label', and integers in nearly all"):
        task("sequence-classification").model_options(tiny.bert_config(), rows)
    named = task("sequence-classification", label_names=("0", "1", "label"))
    named.model_options(tiny.bert_config(), rows)
    assert [named.class_of(row) for row in rows[118:122]] == [0, 1, 2, 0]


def test_a_trained_head_may_name_two_classes_alike():
    ours, config = task("sequence-classification"), BertConfig(id2label={0: "a", 1: "a", 2: "b"})
    assert ours.model_options(config, labelled(0, 1, 2)) == {}
    assert [ours.class_of(row) for row in labelled(0, 1, 2)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["-1", "0", "1", "-1"], ["-1", "0", "1"]),
        ([-1, "1", 0], ["-1", "0", "1"]),
        (["401", "V42", "250"], ["250", "401", "V42"]),
        (["01", "1", "02"], ["01", "02", "1"]),
        (["-0", "0"], ["-0", "0"]),
    ],
)
def test_text_is_an_integer_where_all_labels_are(labels, names):
    ours, rows = task("sequence-classification"), labelled(*labels)
    assert ours.model_options(tiny.bert_config(), rows)["id2label"] == dict(enumerate(names))
    assert [names[ours.class_of(row)] for row in rows] == [str(label) for label in labels]


def test_digits_sort_as_numbers():
    ours = task("sequence-classification")
    names = ours.model_options(tiny.bert_config(), labelled(*map(str, range(12))))["id2label"]
    assert names == {i: str(i) for i in range(12)}


def test_endless_digits_are_text():
    labels = ["1" * 5000, "2" * 5000]
    options = task("sequence-classification").model_options(tiny.bert_config(), labelled(*labels))
    assert options["num_labels"] == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 1], r"^rows\.jsonl: column 'label' must hold at least two classes; it holds 1 in every row"),
        (
            [1, 0, "a", "b"],
            r"^rows\.jsonl, line 3: column 'label' holds 'a', but 1 before; .* all integers or all strings",
        ),
        ([1, 2.5], r"rows\.jsonl, line 2: column 'label' holds 2\.5"),
        ([1], "at least"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(InvalidDataError, match=message) as caught:
        task("sequence-classification").model_options(tiny.bert_config(), labelled(*labels))
    assert caught.value.param == ("/task/data/train" if 2.5 in labels else "/task/label_column")


@pytest.mark.parametrize("name", ["sequence-classification", "regression"])
def test_a_missing_label_of_csv_is_no_class(name):
    with pytest.raises(InvalidDataError, match=r"line 3: column 'label' is empty; it must hold a"):
        task(name).model_options(tiny.bert_config(), labelled("1", "2", ""))


def test_a_held_out_label_that_training_lacks_is_named():
    ours = task("sequence-classification")
    ours.model_options(tiny.bert_config(), rows())
    with pytest.raises(InvalidDataError, match=r"held-out\.csv, line 3: the label is 9") as caught:
        ours.features([Row({"text": "a cat", "label": 9}, Source("held-out.csv", "/task/data/validation"), 3)])
    assert caught.value.param == "/task/data/validation"


@pytest.mark.parametrize("name", ["sequence-classification", "regression"])
def test_pairs_are_encoded_together(name):
    ours = task(name, text_pair_column="second")
    pair = [Row({"text": "a cat", "second": "the dog", "label": i}, TRAIN, i) for i in range(2)]
    ours.model_options(tiny.bert_config(), pair)
    assert len(ours.features(pair)[0]["input_ids"]) == 4


def test_accuracy_counts_right_rows():
    ours = task("sequence-classification")
    batch = {"labels": torch.tensor([0, 1, 1])}
    answers = ours.summarise(torch.tensor([[2.0, 1], [2, 1], [1, 2]]), batch)
    assert ours.metrics([answers], [answers])["accuracy"].value == pytest.approx(2 / 3)


def test_f1_and_matthews_are_those_of_the_confusion_matrix():
    ours = task("sequence-classification")
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(3, (200, 2), generator=generator)
    metrics = ours.metrics([answers[:70], answers[70:]], [])
    confusion = np.zeros((3, 3))
    for given, label in answers.tolist():
        confusion[label, given] += 1
    right, labels, given = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    assert metrics["macro_f1"].value == pytest.approx(np.mean(2 * right / (labels + given)))
    total = confusion.sum()
    covariance = [total**2 - given @ given, total**2 - labels @ labels]
    expected = (total * right.sum() - given @ labels) / math.sqrt(math.prod(covariance))
    assert metrics["matthews"].value == pytest.approx(expected)


def test_matthews_is_not_defined_by_one_class():
    metrics = task("sequence-classification").metrics([torch.tensor([[0, 1], [1, 1]])], [])
    assert math.isnan(metrics["matthews"].value)
    assert metrics["accuracy"].value == 0.5


def test_the_job_says_which_metric_comes_first():
    assert task("sequence-classification").headline == "accuracy"
    assert task("sequence-classification", metric="matthews").headline == "matthews"


def numbers(labels):
    return [Row({"text": "a cat", "label": label}, TRAIN, i) for i, label in enumerate(labels, 1)]


@pytest.mark.parametrize("label", ["high", None, True, math.nan, "nan", math.inf, "-inf", 10**400, 1e300, [1], ""])
def test_a_label_that_is_no_number_is_named(label):
    with pytest.raises(
        InvalidDataError, match=r"^rows\.jsonl, line 2: column 'label' (holds .*|is empty); .* a finite number"
    ) as caught:
        task("regression").model_options(tiny.bert_config(), numbers([1, label]))
    assert caught.value.param == "/task/data/train"


def test_numbers_may_be_text_as_csv_has_them():
    features = task("regression").features(numbers([1, "2.5", -3.0, "1e-2"]))
    assert [features[i]["labels"] for i in range(4)] == [1.0, 2.5, -3.0, 0.01]


def test_equal_numbers_are_refused():
    with pytest.raises(InvalidDataError, match=r"at least two different numbers; it holds 2\.5 in every row") as caught:
        task("regression").model_options(tiny.bert_config(), numbers([2.5, "2.5"]))
    assert caught.value.param == "/task/label_column"


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [
        ({"num_labels": 1, "problem_type": "regression"}, True),
        ({"num_labels": 1}, True),
        ({"num_labels": 2}, False),
        ({"num_labels": 1, "problem_type": "multi_label_classification"}, False),
    ],
)
def test_a_regression_head_is_kept_and_no_other(changes, is_kept):
    config = tiny.bert_config()
    config.update(changes)
    options = task("regression").model_options(config, numbers([1, 2]))
    assert options == ({} if is_kept else {"num_labels": 1, "problem_type": "regression"})


@pytest.mark.parametrize(
    ("model_type", "last"),
    [
        ("bert", "classifier"),
        ("roberta", "classifier.out_proj"),
        ("electra", "classifier.out_proj"),
        ("distilbert", "classifier"),
    ],
)
def test_a_new_head_starts_around_the_labels_and_as_far_apart(model_type, last):
    model, ours = tiny_families.model(model_type, "regression"), task("regression")
    features = ours.features(rows())
    batch = ours.collate([features[i] for i in range(20)])
    with torch.no_grad():
        before = ours.outputs(model, batch) - model.get_submodule(last).bias
        ours.model_options(model.config, numbers([100.0, 200.0, 300.0, 400.0]))
        ours.start_head(model, rows())
        after = ours.outputs(model, batch)
    torch.testing.assert_close(after, 250 + before * float(np.std([100, 200, 300, 400])), rtol=1e-4, atol=1e-4)


def labelled_texts(texts):
    return [Row({"text": text, "label": 1}, TRAIN, number) for number, text in enumerate(texts, 1)]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3"])
def test_a_new_head_without_a_bias_starts_around_the_labels_too(model_type):
    model, ours = tiny_families.model(model_type, "regression"), task("regression")
    seen, others = (labelled_texts(tiny.sentences(300)[part]) for part in (slice(60), slice(150, None)))
    ours.model_options(model.config, numbers([100.0, 102.0]))
    ours.start_head(model, seen)

    def answers(rows):
        with torch.no_grad():
            return ours.outputs(model.eval(), ours.collate(list(ours.features(rows).features)))

    assert answers(seen).mean().item() == pytest.approx(101, abs=0.1)
    # Answers of a layer that starts as it is are around 0, that is, wrong by 101.
    assert (answers(others) - 101).abs().mean() < 75


@pytest.mark.parametrize("distillation", [None, 0.3, 1.0])
def test_regression_learns_from_labels_and_teacher_in_units_of_the_labels_variance(distillation):
    ours = task("regression")
    ours.training = spec.Training(distillation=distillation)
    ours.model_options(tiny.bert_config(), numbers([0, 5, 2, 4]))
    answers, labels, taught = [1.0, 2.0, 4.0], [0.0, 2.5, 5.0], [0.5, 2.0, 6.0]
    hard = sum((a - b) ** 2 for a, b in zip(answers, labels, strict=True)) / 3 / np.var([0, 5, 2, 4])
    soft = sum((a - b) ** 2 for a, b in zip(answers, taught, strict=True)) / 3 / np.var([0, 5, 2, 4])
    found = ours.loss(torch.tensor(answers), {"labels": torch.tensor(labels)}, torch.tensor(taught))
    share = distillation or 0
    assert found.item() == pytest.approx((1 - share) * hard + share * soft, rel=1e-6)
    assert ours.loss(torch.tensor(answers), {"labels": torch.tensor(labels)}, None).item() == pytest.approx(hard)


def test_correlations_are_of_answers_and_labels():
    ours = task("regression")
    answers, labels = torch.randn(30), torch.randn(30).round(decimals=1)
    summaries = [ours.summarise(answers[i : i + 10], {"labels": labels[i : i + 10]}) for i in (0, 10, 20)]
    metrics = ours.metrics(summaries, summaries)

    def correlation(one, other):
        one, other = one - np.mean(one), other - np.mean(other)
        return sum(one * other) / math.sqrt(sum(one**2) * sum(other**2))

    ranks = rankdata(answers.numpy()), rankdata(labels.numpy())
    assert metrics["pearson"].value == pytest.approx(correlation(answers.double().numpy(), labels.double().numpy()))
    assert metrics["spearman"].value == pytest.approx(correlation(*ranks))


@pytest.mark.parametrize(
    "summary", [[[1.0, 2.0]], [[1.0, 2.0], [1.0, 3.0]], [[1.0, 2.0], [3.0, 2.0]], [[0.0, 1.0]] * 3]
)
def test_a_correlation_that_nothing_defines_is_nan(summary):
    metrics = task("regression").metrics([torch.tensor(summary)], [])
    assert all(math.isnan(metric.value) for metric in metrics.values())


def test_documents_are_packed_into_equal_blocks_with_their_start_tokens():
    ours = task("causal-lm")
    features = ours.features(rows())
    assert {len(features[i]["input_ids"]) for i in range(len(features))} == {16}
    words = sum(len(row["text"].split()) + 1 for row in rows())
    assert len(features) == words // 16
    assert features[0]["input_ids"][0] == ours.tokenizer.bos_token_id


def test_nats_per_token_is_the_mean_over_all_predicted_tokens():
    ours = task("causal-lm")
    features, model = ours.features(rows()), tiny.llama()
    total, tokens, characters = 0.0, 0, 0.0
    lengths = [len(row["text"]) / (len(row["text"].split()) + 1) for row in rows()]
    per_token = [
        length for length, row in zip(lengths, rows(), strict=True) for _ in range(len(row["text"].split()) + 1)
    ]
    with torch.no_grad():
        for i in range(len(features)):
            ids = features[i]["input_ids"]
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            for position in range(len(ids) - 1):
                total -= float(logits[position, ids[position + 1]])
                tokens += 1
                characters += per_token[16 * i + position + 1]
    metrics = evaluate(ours, model, features).metrics
    assert metrics["nats_per_token"].value == pytest.approx(total / tokens, rel=1e-5)
    assert metrics["perplexity"].value == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert metrics["nats_per_character"].value == pytest.approx(total / characters, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "include_prompt": True}, None),
        ({"pooling_mode": "mean"}, None),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "pooled by 'cls_token'; .*only the mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "pooled by 'cls_token'"),
        ({"pooling_mode": "lasttoken"}, "pooled by 'lasttoken'"),
        ([], "1_Pooling/config.json cannot be read"),
    ],
)
def test_sentence_encoders_that_pool_otherwise_are_refused(options, message, tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(options))
    for name, refuses in (("sentence-embedding", message), ("masked-lm", None)):
        with pytest.raises(InvalidModelError, match=refuses) if refuses else nullcontext():
            TASKS[name].check_folder(tmp_path)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            [{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Pooling"}],
            None,
        ),
        ([{"type": "sentence_transformers.models.Pooling"}, {"type": "sentence_transformers.models.Dense"}], "'Dense'"),
        ({}, None),
        ([7], "cannot be read"),
    ],
)
def test_sentence_encoders_with_further_layers_are_refused(modules, message, tmp_path):
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InvalidModelError, match=message) if message else nullcontext():
        TASKS["sentence-embedding"].check_folder(tmp_path)


def test_a_text_of_no_tokens_is_none():
    """A tokenizer may drop all of a text, and have nothing that begins or ends one."""
    ours = task("causal-lm")
    letters = Tokenizer(models.BPE({"a": 0, "b": 1, "[PAD]": 2}, []))
    ours.tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="[PAD]")
    features = ours.features([Row({"text": text}, TRAIN, 1) for text in ("ab", "zz", "ba")])
    assert [features[i]["input_ids"] for i in range(len(features))] == [[0, 1, 1, 0]]


def test_the_characters_of_a_text_are_spread_over_its_tokens():
    """All of them but those of the one token that nothing predicts."""
    ours = task("causal-lm")
    ours.training = spec.Training(max_length=1000)
    features = ours.features(rows())
    first = rows()[0]["text"]
    unpredicted = len(first) / (len(first.split()) + 1)
    assert features[0]["characters"] == pytest.approx(sum(len(row["text"]) for row in rows()) - unpredicted)


@pytest.mark.parametrize(("name", "make"), [("sentence-embedding", tiny.bert), ("causal-lm", tiny.llama)])
def test_a_teacher_answers_for_the_rows_it_is_asked_about(name, make):
    ours, model = task(name), make()
    features = ours.features(rows())
    batch = ours.collate([features[i] for i in (4, 0, 2)])
    with torch.no_grad():
        expected = ours.outputs(model, batch)
    torch.testing.assert_close(Teacher(ours, model, features).answer(batch), expected, atol=1e-5, rtol=1e-5)


def masked(count=200, **options):
    """The task, its features, and the rows as the tokenizer has them."""
    ours = task("masked-lm", **options)
    ours.tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    texts = [{"text": text} for text in tiny.sentences(count)]
    return ours, ours.features(texts), ours.encode(texts, "text")


def test_a_share_of_each_rows_tokens_is_hidden_as_in_bert():
    ours, features, plain = masked()
    masks = replaced = total = 0
    for i, row in enumerate(plain):
        hidden = [p for p, label in enumerate(features[i]["target_ids"]) if label != -100]
        assert len(hidden) == max(1, round(0.15 * len(row["input_ids"])))
        for p, (was, now) in enumerate(zip(row["input_ids"], features[i]["input_ids"], strict=True)):
            assert was == (features[i]["target_ids"][p] if p in hidden else now)
            masks += now == ours.tokenizer.mask_token_id
            replaced += now not in (was, ours.tokenizer.mask_token_id)
        total += len(hidden)
    assert masks / total == pytest.approx(0.8, abs=0.08)
    assert replaced / total == pytest.approx(0.1, abs=0.06)


def test_the_same_is_hidden_every_time_and_of_unknown_words_nothing():
    (ours, features, _), (other, again, _) = masked(), masked()
    assert features.features == again.features
    other.training = other.training.model_copy(update={"seed": 1})
    texts = [{"text": text} for text in tiny.sentences(len(features))]
    assert other.features(texts).features != features.features
    assert ours.features([{"text": "xyz a"}])[0]["target_ids"][0] == -100
    with pytest.raises(InvalidDataError, match="No row has a token"):
        ours.features([{"text": "xyz"}])


def test_hidden_tokens_alone_are_measured_and_learnt_and_all_are_distilled():
    ours, features, _ = masked(6)
    model = tiny_families.model("bert", "masked-lm")
    model.resize_token_embeddings(len(ours.tokenizer))
    total, right, tokens = 0.0, 0, 0
    with torch.no_grad():
        for i in range(6):
            logits = model(torch.tensor([features[i]["input_ids"]])).logits[0].log_softmax(-1)
            for guess, label in zip(logits, features[i]["target_ids"], strict=True):
                if label != -100:
                    total, right, tokens = total - float(guess[label]), right + (guess.argmax() == label), tokens + 1
        batch = ours.collate([features[i] for i in range(6)])
        answers = ours.outputs(model, batch)
    metrics = evaluate(ours, model, features).metrics
    assert metrics["nats_per_token"].value == pytest.approx(total / tokens, rel=1e-4)
    assert metrics["accuracy"].value == pytest.approx(int(right) / tokens)
    assert float(ours.loss(answers, batch, None)) == pytest.approx(total / tokens, rel=1e-4)
    ours.training = spec.Training(distillation=1.0)
    taught = answers.flip(-1)
    real = batch["attention_mask"].bool()
    expected = soft_cross_entropy(answers[real], taught[real], 1.0)
    assert float(ours.loss(answers, batch, taught)) == pytest.approx(float(expected))


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(InvalidModelError, match="no mask token"):
        task("masked-lm").features(rows())
