"""Loading a model for a task: whose head it keeps, which it starts anew, and its tokenizer."""

import json
from contextlib import suppress

import pytest
import sentencepiece
import torch
from transformers import BertConfig, BertForSequenceClassification

from core.engine.data import Row, Source
from core.engine.inputs import Inputs
from core.engine.loading import check_architecture, load_config, load_image_processor, load_model, load_tokenizer
from core.engine.preparation import prepare
from core.engine.tasks import TASKS
from core.errors import InvalidModelError, OutOfMemoryError
from core.jobs import spec
from core.jobs.defaults import resolve
from core.jobs.sources import PathData
from tests import tiny, tiny_families, tiny_tasks, whole_jobs


def load(folder, labels, report=lambda message: None, kind=spec.SequenceClassification):
    name = "regression" if kind is spec.Regression else "sequence-classification"
    part = kind(name=name, data=PathData(source="path", train="/data/train.jsonl"))
    task = TASKS[name](part, spec.Training(), tiny.tokenizer())
    source = Source("rows.jsonl", "/task/data/train")
    rows = [Row({"text": "a cat", "label": label}, source, i) for i, label in enumerate(labels, 1)]
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


def test_a_classifiers_head_becomes_one_for_a_number_and_back(tmp_path):
    saved(tmp_path / "classifier", ["positive", "negative"])
    warnings = []
    model, head_is_new = load(tmp_path / "classifier", [1.0, 3.0], warnings.append, spec.Regression)
    assert head_is_new
    assert [w.message for w in warnings] == [
        "The model's head does not fit the data's labels; a new one is trained for a number."
    ]
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert model.classifier.bias.tolist() == [2.0]

    tiny.save(model, tmp_path / "regression")
    again, head_is_new = load(tmp_path / "regression", [5, 7, 9], kind=spec.Regression)
    assert not head_is_new
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    assert again.classifier.bias.tolist() == [2.0]

    model, head_is_new = load(tmp_path / "regression", ["spam", "ham"])
    assert head_is_new
    assert (model.config.num_labels, model.config.problem_type) == (2, "single_label_classification")


@pytest.mark.parametrize("padding", [None, 13])
@torch.no_grad()
def test_a_decoder_answers_a_row_alone_as_among_others(padding, tmp_path):
    """Whatever its config says of padding, which is the tokenizer's."""
    saved_model = tiny_families.model("mistral", "sequence-classification")
    saved_model.config.pad_token_id = padding
    tiny.save(saved_model, tmp_path)
    model, _ = load(tmp_path, [0, 1])
    alone, longer = torch.tensor([[4, 5, 6]]), torch.tensor([[7, 8, 9, 10, 11, 12]])
    padded = torch.cat([torch.cat([alone, torch.zeros(1, 3, dtype=torch.long)], 1), longer])
    together = model(padded, attention_mask=(padded != 0).long()).logits
    torch.testing.assert_close(together[:1], model(alone).logits)
    torch.testing.assert_close(together[1:], model(longer).logits)


@pytest.mark.parametrize(("name", "part"), [("causal-lm", spec.CausalLM), ("masked-lm", spec.MaskedLM)])
def test_a_tokenizer_is_delivered_as_it_was_uploaded(name, part, tmp_path):
    """Whatever a job does with it, its own settings stay: here how it cuts and pads where nobody says."""
    uploaded = tiny_tasks.processor("masked-lm")
    uploaded(["a cat"], truncation=True, max_length=7, padding="max_length")
    uploaded.save_pretrained(tmp_path / "model")
    data = PathData(source="path", train="/data/train.jsonl")
    task = TASKS[name](part(name=name, data=data), spec.Training(max_length=9), load_tokenizer(tmp_path / "model"))
    task.features([Row({"text": text}, Source("rows.jsonl", ""), 1) for text in tiny.sentences(9)])
    task.processor.save_pretrained(tmp_path / "bundle")
    folders = tmp_path / "bundle", tmp_path / "model"
    ours, theirs = (json.loads((folder / "tokenizer.json").read_text()) for folder in folders)
    assert ours == theirs
    ours, theirs = (json.loads((folder / "tokenizer_config.json").read_text()) for folder in folders)
    # The settings of tokenizer.json once more, and nothing of where it was loaded from.
    extra = {"max_length", "stride", "truncation_side", "truncation_strategy", "padding_side", "pad_token_type_id"}
    assert ours.keys() - theirs.keys() <= extra | {"pad_to_multiple_of"}


@pytest.mark.parametrize("name", ["causal-lm", "sequence-classification"])
def test_padding_is_delivered_where_batches_hold_some(name, tmp_path):
    """One answer a row is read from the last token that is no padding; where nothing is padded, the end token would
    no longer be learnt if it stood for padding.
    """
    model = tiny_families.model("gpt2", name)
    model.config.pad_token_id = None
    tiny.save(model, tmp_path / "model")
    tokenizer_config = tmp_path / "model/tokenizer_config.json"
    options = json.loads(tokenizer_config.read_text())
    del options["pad_token"]
    tokenizer_config.write_text(json.dumps(options))
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(tiny.WORDS)))
    task = {"name": name, "data": {"source": "path", "train": str(train)}}
    asked = {"model": {"source": "path", "path": str(tmp_path)}, "task": task, "target": {"sparsity": 0.5}}
    job = resolve(spec.JobSpec.model_validate(asked))
    prepared = prepare(job, Inputs(tmp_path / "model", train), lambda message: None)
    expected = None if name == "causal-lm" else 3
    assert prepared.task.processor.pad_token_id == prepared.model.config.pad_token_id == expected


@pytest.mark.parametrize(
    ("name", "model", "longest"),
    [
        ("sequence-classification", tiny.bert_classifier, 3),
        # Two patches in either direction, and what stands for them all.
        ("image-classification", lambda: tiny_families.model("vit", "image-classification"), 5),
    ],
)
def test_memory_is_asked_for_as_large_as_batches_are(name, model, longest, tmp_path, monkeypatch):
    """Not as large as they might be: rows are padded to the longest, and may be fewer than a batch."""
    tiny.save(model(), tmp_path / "model")
    tiny_tasks.processor(name).save_pretrained(tmp_path / "model")
    train = tmp_path / "train.jsonl"
    rows = [row | {"text": f"{tiny.WORDS[i]} cat sat"} for i, row in enumerate(whole_jobs.rows_of_any_task(15))]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {
        "model": {"source": "path", "path": str(tmp_path)},
        "task": {"name": name, "data": {"source": "path", "train": str(train)}},
        "target": {"sparsity": 0.5},
    }
    counted = []
    monkeypatch.setattr("core.engine.preparation.activation_bytes", lambda _, *sizes: counted.append(sizes) or 2**50)
    with pytest.raises(OutOfMemoryError):
        prepare(resolve(spec.JobSpec.model_validate(asked)), Inputs(tmp_path / "model", train), lambda message: None)
    assert counted == [(13, longest)]  # two of the fifteen rows are held out


def test_a_model_that_names_code_of_its_own_is_delivered_without(tmp_path):
    """None of it is run, nor is it in the bundle: whoever trusts the bundle's code would look for it in vain."""
    tiny.save(tiny.llama(), tmp_path / "model")
    tiny_tasks.processor("image-classification").save_pretrained(tmp_path / "model")
    own = {
        "config.json": "AutoConfig",
        "tokenizer_config.json": "AutoTokenizer",
        "preprocessor_config.json": "AutoImageProcessor",
    }
    for file, name in own.items():
        path = tmp_path / "model" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {name: "own_code.Own"}}))
    for load in (load_config, load_tokenizer, load_image_processor):
        load(tmp_path / "model").save_pretrained(tmp_path / "bundle")
    for file in own:
        assert "auto_map" not in json.loads((tmp_path / "bundle" / file).read_text())


PIECES = {"vocab.txt": "[PAD]\n[UNK]"}
LETTERS = {"vocab.json": '{"a": 0}'}
WHOLE = {"tokenizer.json": "{whole}"}
FAST = "PreTrainedTokenizerFast"


@pytest.mark.parametrize(
    ("files", "options", "tokens"),
    [
        (PIECES, {"tokenizer_class": "BertTokenizer", "vocab": "{secret}"}, {}),
        (PIECES, {"tokenizer_class": "BertTokenizer", "vocab": "../secret"}, {}),
        (LETTERS, {"tokenizer_class": "RobertaTokenizer", "vocab": {"a": 0}, "merges": "{secret}"}, {}),
        (LETTERS, {"tokenizer_class": "BertTokenizer", "init_inputs": ["{secret}"]}, {}),
        (PIECES, {"tokenizer_class": FAST, "gguf_file": "../secret"}, {}),
        (WHOLE, {"tokenizer_class": FAST, "fast_tokenizer_files": ["{whole_secret}"]}, {}),
        (WHOLE, {"tokenizer_class": FAST, "fast_tokenizer_files": ["tokenizer.1.json/../../secret"]}, {}),
        (PIECES, {"tokenizer_class": "BertTokenizer"}, {"vocab": "{secret}"}),
        (PIECES, {}, {"vocab_file": "{secret}"}),
        (WHOLE, {"tokenizer_class": "BertTokenizer"}, {"vocab_file": "{secret}", "tokenizer_file": "/none"}),
        (WHOLE, {"tokenizer_class": FAST}, {"tokenizer_file": "{whole_secret}"}),
        # Of these, transformers itself reads no path that the config gives.
        (WHOLE, {"tokenizer_class": "BertTokenizer", "tokenizer_file": "{whole_secret}"}, None),
        # Nor are those read that only a class's own files go before.
        (PIECES, {"tokenizer_class": "GemmaTokenizer", "vocab_file": "{secret}", "merges_file": "{empty}"}, None),
        (PIECES, {"tokenizer_class": "Siglip2Tokenizer", "vocab_file": "{secret}", "merges_file": "{empty}"}, None),
    ],
)
def test_a_tokenizer_reads_no_file_outside_of_its_folder(files, options, tokens, tmp_path):
    """It would be delivered with the bundle: whoever uploads a model could read the worker's files."""
    tiny.tokenizer().save_pretrained(tmp_path / "whole")
    whole = (tmp_path / "whole" / "tokenizer.json").read_text()
    elsewhere = {"secret": '{"hunter2": 0}', "empty": "", "whole_secret": whole.replace("cat", "hunter2")}
    for name, text in elsewhere.items():
        (tmp_path / name).write_text(text)
    folder = tmp_path / "model"
    (folder / "tokenizer.1.json").mkdir(parents=True)
    configs = {"tokenizer_config.json": options} | ({} if tokens is None else {"special_tokens_map.json": tokens})
    for name, text in (files | {name: json.dumps(entries) for name, entries in configs.items()}).items():
        for secret in elsewhere:
            text = text.replace(f"{{{secret}}}", str(tmp_path / secret))
        (folder / name).write_text(text.replace("{whole}", whole))
    if tokens is None:
        with suppress(InvalidModelError):  # for want of a vocabulary
            load_tokenizer(folder).save_pretrained(tmp_path / "bundle")
            assert "hunter2" not in (tmp_path / "bundle" / "tokenizer.json").read_text()
        return
    with pytest.raises(InvalidModelError, match="a file outside of the model's folder") as caught:
        load_tokenizer(folder)
    assert "hunter2" not in str(caught.value)


def test_tokenizers_are_read_as_every_version_saves_them(tmp_path):
    """With further special tokens by name, with paths of the machine that saved them, in the Hub's cache of links."""
    tokenizer = tiny.tokenizer()
    blobs, folder = tmp_path / "blobs", tmp_path / "model"
    tokenizer.save_pretrained(blobs)
    (blobs / "special_tokens_map.json").write_text(json.dumps({"eot": "<eot>", "pad_token": "[PAD]"}))
    options = json.loads((blobs / "tokenizer_config.json").read_text())
    options |= {"tokenizer_file": str(blobs / "tokenizer.json"), "special_tokens_map_file": str(blobs / "x")}
    options |= {"fast_tokenizer_files": ["tokenizer.json"], "name_or_path": str(blobs)}
    (blobs / "tokenizer_config.json").write_text(json.dumps(options))
    folder.mkdir()
    for path in blobs.iterdir():
        (folder / path.name).symlink_to(path)
    assert load_tokenizer(folder).get_vocab().items() >= tokenizer.get_vocab().items()


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_an_image_processor_reads_no_file_outside_of_its_folder(file, tmp_path):
    tiny_tasks.processor("image-classification").save_pretrained(tmp_path)
    elsewhere = {"image_processor_type": "OneFormerImageProcessor", "repo_path": "/etc", "class_info_file": "passwd"}
    (tmp_path / file).write_text(json.dumps({"image_processor": elsewhere}))
    with pytest.raises(InvalidModelError, match="a file outside of the model's folder, 'passwd'"):
        load_image_processor(tmp_path)


def test_weights_elsewhere_that_a_config_names_are_not_read(tmp_path):
    """Neither another's private ones nor, under an innocent name, pickled ones."""
    own, private = tiny.bert_classifier(), tiny.bert_classifier()
    tiny.save(own, tmp_path / "model")
    torch.nn.init.constant_(private.bert.encoder.layer[0].attention.self.query.weight, 0.25)
    private.save_pretrained(tmp_path / "private")
    path = str(tmp_path / "private" / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(own.state_dict(), path)}
    (tmp_path / "model" / "w.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["transformers_weights"] = "w.safetensors.index.json"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    model, _ = load(tmp_path / "model", ["a", "b"])
    loaded = model.bert.encoder.layer[0].attention.self.query.weight
    assert torch.equal(loaded, own.bert.encoder.layer[0].attention.self.query.weight)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"num_labels": 10**12}, "num_labels is more than"),
        ({"configuration_files": ["config.4.0.0.json"]}, "names other"),
    ],
)
def test_what_is_more_or_other_than_was_checked_is_refused_before_it_is_made(entry, problem, tmp_path):
    """Each of so many labels would get a name, and another file than the checked one would be the config."""
    tiny.save(tiny.bert_classifier(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | entry))
    with pytest.raises(InvalidModelError, match=problem):
        check_architecture(tmp_path, "sequence-classification")


def test_where_positions_follow_padding_the_configs_stays(tmp_path):
    """Whatever the tokenizer pads with: the model's embeddings are made for it."""
    model = tiny_families.model("roberta", "sequence-classification")
    model.config.pad_token_id = 1
    tiny.save(model, tmp_path)
    loaded, _ = load(tmp_path, [0, 1])
    assert loaded.config.pad_token_id == 1 != tiny.tokenizer().pad_token_id


def test_a_marians_tokenizer_reads_sources_and_targets_each_by_its_own_pieces(tmp_path):
    """Its two files of pieces share one vocabulary."""
    texts = {"source": tiny.sentences(200), "target": [text.upper() for text in tiny.sentences(200, seed=1)]}
    pieces = ["</s>", "<unk>"]
    for side, sentences in texts.items():
        place = tmp_path / side
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_prefix=str(place), vocab_size=40, hard_vocab_limit=False
        )
        place.with_suffix(".model").rename(place.with_suffix(".spm"))
        processor = sentencepiece.SentencePieceProcessor(model_file=str(place.with_suffix(".spm")))
        pieces += [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    vocabulary = [*dict.fromkeys(piece for piece in pieces if piece != "<s>"), "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian"}))
    options = {"tokenizer_class": "MarianTokenizer", "source_lang": "xx", "target_lang": "yy"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    tokenizer = load_tokenizer(tmp_path)
    source, target = tokenizer("the cat sat")["input_ids"], tokenizer(text_target="THE CAT SAT")["input_ids"]
    assert tokenizer.unk_token_id not in source + target
    assert not set(source[:-1]) & set(target[:-1])
    assert (tokenizer.decode(source), tokenizer.decode(target)) == ("the cat sat</s>", "THE CAT SAT</s>")
