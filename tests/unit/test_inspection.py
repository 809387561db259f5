"""What is refused while a job loads its model: every lie of a config and every hole in a folder, with its reason."""

import base64
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaConfig, LlamaForCausalLM

from core.engine import pipeline
from core.engine.anatomy import bind
from core.engine.data import Features
from core.engine.inputs import Inputs
from core.engine.loading import fitting_length
from core.engine.tasks import TASKS
from core.engine.trial import check_runs
from core.errors import InvalidDataError, InvalidModelError
from core.families import FAMILIES
from core.jobs.defaults import resolve
from core.jobs.spec import JobSpec
from core.progress import PhaseStarted, Warned
from tests import tiny, tiny_families
from tests.tiny_tasks import image, processor

TASK_OPTIONS = {"seq2seq": {"kind": "translation", "source_column": "text", "target_column": "text"}}
"""What a task needs besides its data."""


class EndOfLoadingError(Exception):
    """The job got through loading."""


def load(folder, task="sentence-embedding", texts=None, labels=None, **training):
    """Run a job until it has loaded its model.

    Returns:
        Its warnings.
    """
    texts = texts or tiny.sentences(12)
    labels = labels or [0, 1] * len(texts)
    data = folder.parent / "rows.jsonl"
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=False)]
    if task == "image-classification":
        rows = [row | {"image": base64.b64encode(image(seed)).decode()} for seed, row in enumerate(rows)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "model": {"source": "path", "path": str(folder)},
        "task": {"name": task, "data": {"source": "path", "train": str(data)}, **TASK_OPTIONS.get(task, {})},
        "target": {"sparsity": 0.5},
        "training": training,
    }
    warnings = []

    def report(message):
        if isinstance(message, PhaseStarted) and message.phase != "loading":
            raise EndOfLoadingError
        if isinstance(message, Warned):
            warnings.append(message.message)

    inputs = Inputs(model=folder, train=data)
    with pytest.raises(EndOfLoadingError):
        pipeline.run(resolve(JobSpec.model_validate(spec)), inputs, folder.parent / "bundle", report)
    return warnings


def refused(folder, message, *, error=InvalidModelError, **options):
    with pytest.raises(error, match=message) as caught:
        load(folder, **options)
    assert caught.value.param is not None
    return caught.value


@pytest.fixture
def bert(tmp_path):
    return tiny.save(tiny.bert(), tmp_path / "model")


@pytest.fixture
def llama(tmp_path):
    return tiny.save(tiny.llama(), tmp_path / "model")


def lie(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (tiny.bert, "sentence-embedding"),
        (tiny.bert, "sequence-classification"),
        (tiny.bert_classifier, "sequence-classification"),
        (tiny.bert_classifier, "sentence-embedding"),
        (tiny.llama, "causal-lm"),
        (tiny.llama, "sequence-classification"),
    ],
)
def test_sound_models_load_without_a_warning(tmp_path, model, task):
    assert load(tiny.save(model(), tmp_path / "model"), task=task, max_length=32) == []


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.tasks], ids=lambda family: family.model_type)
def test_every_family_loads_for_its_tasks(tmp_path, family):
    """Also without a padding token, which many decoders lack."""
    for task in family.tasks:
        model = tiny_families.model(family.model_type, task)
        if task == "causal-lm":
            model.config.pad_token_id = None
        folder = tiny.save(model, tmp_path / task)
        processor(task).save_pretrained(folder)
        assert load(folder, task=task, labels=[0, 1, 1, 0] * 3, max_length=32) == []
        stack = family.stacks[0]
        mlp = stack.mlps[0] if stack.mlps else stack.experts
        if getattr(mlp, "fixed_activation", None) is None:
            refused(lie(folder, **{mlp.activation: "foo"}), f"{mlp.activation} 'foo' is not known", task=task)


def test_a_family_without_a_task_is_refused_with_those_that_have_it(tmp_path):
    folder = tiny.save(tiny_families.model("whisper", "speech-to-text"), tmp_path / "model")
    message = r"This family has no task yet: Whisper\. The families that serve 'causal-lm' are llama, .*gpt2"
    refused(folder, message, task="causal-lm")


@pytest.mark.parametrize("model_type", ["vit", "deit"])
def test_models_of_images_are_tried_on_images(model_type):
    task = TASKS["image-classification"](None, None, processor("image-classification"))
    features = Features([{"image": image(seed), "labels": 0} for seed in range(3)])
    model = tiny_families.model(model_type, "image-classification")
    check_runs(task, model, features, features)
    model.classifier.bias.data[0] = torch.nan
    with pytest.raises(InvalidModelError, match="answers the first rows with NaN"):
        check_runs(task, model, features, features)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.derived], ids=lambda family: family.model_type)
def test_what_old_files_hold_for_nothing_is_ignored(tmp_path, family):
    model = tiny_families.model(family.model_type, "causal-lm")
    layer = f"{model.base_model_prefix}.{family.stacks[0].layers}.1"
    folder = tiny.save(model, tmp_path / "model")
    change_weights(folder, lambda held: held.update({f"{layer}.{name}": torch.ones(4) for name in family.derived}))
    load(folder, task="causal-lm")


def test_sharded_half_precision_weights_load(tmp_path):
    folder = tmp_path / "model"
    tiny.save(tiny.llama(), folder)
    (folder / "model.safetensors").unlink()
    tiny.llama().half().save_pretrained(folder, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()
    load(folder, task="causal-lm")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(folder, f"index.json names '{shard.name}', which is not in the folder", task="causal-lm")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../model.safetensors"}, "which is not in the folder"),
        ({"a": 3}, "which is not in the folder"),
        ([], "index.json cannot be read"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(bert, weight_map, message):
    (bert / "model.safetensors").rename(bert / "other.safetensors")
    refused(bert, "holds neither model.safetensors nor model.safetensors.index.json")
    (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(bert, message)


def test_weights_that_are_cut_off_are_refused(bert):
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(bert, "model.safetensors cannot be read: .*incomplete")


def test_a_folder_without_a_tokenizer_is_refused(bert):
    (bert / "tokenizer.json").unlink()
    refused(bert, "holds no tokenizer; one of tokenizer.json, vocab.txt")


def test_text_that_the_tokenizer_does_not_know_is_refused(bert):
    refused(
        bert, "100% of the tokens in the first rows are unknown", error=InvalidDataError, texts=["xy zz", "zz xy"] * 4
    )
    load(bert, texts=["the cat zz", "zz cat"] * 4)


def test_the_names_that_old_files_give_to_norms_are_understood(bert):
    def rename(tensors):
        for name in [name for name in tensors if "LayerNorm" in name]:
            tensors[name.replace("weight", "gamma").replace("bias", "beta")] = tensors.pop(name)

    load(change_weights(bert, rename))


@pytest.mark.parametrize("layers", [0, 2, 4, 100_000])
def test_another_number_of_layers_than_the_files_hold_is_refused(bert, layers):
    refused(lie(bert, num_hidden_layers=layers), rf"config.json asks for {layers} layers .* hold 3")


def test_files_without_layers_are_refused(bert):
    change_weights(bert, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layer." in name])
    refused(bert, "hold no transformer layers; a BERT model's are called encoder.layer.0")


def test_weights_that_the_config_does_not_ask_for_are_refused(llama):
    def add_bias(tensors):
        tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(64)

    refused(
        change_weights(llama, add_bias), r"hold 'model.layers.1.*q_proj.bias', which .* not ask for", task="causal-lm"
    )


@pytest.mark.parametrize(
    ("change", "name", "shape", "asked"),
    [
        ({"intermediate_size": 65}, "encoder.layer.0.intermediate.dense.weight", [64, 32], [65, 32]),
        ({"hidden_size": 4_000_000}, "embeddings.word_embeddings.weight", [27, 32], [27, 4_000_000]),
        ({"vocab_size": 10**10}, "embeddings.word_embeddings.weight", [27, 32], [10**10, 32]),
    ],
)
def test_another_shape_than_the_config_asks_for_is_named(bert, change, name, shape, asked):
    error = refused(lie(bert, **change), "has the shape")
    assert f"{name!r} has the shape {shape} in the model's files; config.json asks for {asked}." in error.message


def test_a_language_model_does_not_get_a_new_head(tmp_path):
    config = LlamaConfig(**tiny.llama_config().to_diff_dict() | {"tie_word_embeddings": False})
    folder = tiny.save(tiny.randomised(LlamaForCausalLM(config)), tmp_path / "model")
    change_weights(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(5, 32)}))
    refused(folder, r"'lm_head.weight' has the shape \[5, 32\]", task="causal-lm")


def test_a_head_with_another_number_of_classes_is_replaced_with_a_warning(tmp_path):
    config = BertConfig(**tiny.bert_config().to_diff_dict() | {"num_labels": 3})
    folder = tiny.save(tiny.randomised(BertForSequenceClassification(config)), tmp_path / "model")
    warnings = load(folder, task="sequence-classification", labels=["spam", "ham"] * 6, max_length=32)
    assert warnings == ["The model's head does not fit the data's labels; a new one is trained for 2: ham, spam."]


def test_a_pruned_model_is_refused(bert):
    refused(lie(bert, neuroprune={"format": 1}), "already pruned by NeuroPrune; pruning twice is not supported yet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "foo"}, r"config.json: hidden_act 'foo' is not known; known are .*gelu"),
        ({"hidden_size": "abc"}, r"config.json cannot be used: .*'hidden_size' expected int, got str"),
        ({"num_attention_heads": 0}, r"No model can be built from config.json: .*zero"),
        ({"num_attention_heads": 5}, r"No model can be built from config.json: .*multiple of the number of attention"),
        ({"max_position_embeddings": -1}, r"config.json: max_position_embeddings is -1; at least 8"),
        ({"max_position_embeddings": 10**30}, r"No model can be built from config.json: .*long \(\w+\)\.$"),
        ({"max_position_embeddings": 0}, r"config.json: max_position_embeddings is 0; at least 8"),
        ({"pad_token_id": 99}, r"No model can be built from config.json"),
        ({"head_dim": 7}, r"Layer 0: .*widths \(32, 32, 32\) cannot be divided into heads of 7"),
        ({"head_dim": -8}, r"Layer 0: .*cannot be divided into heads of -8"),
        ({"head_dim": 16}, r"Layer 0: the query projection is 32 wide; config.json asks for 4 heads of 16"),
        ({"type_vocab_size": "2"}, r"config.json cannot be used"),
    ],
)
def test_a_config_that_describes_no_model_is_refused(bert, changes, message):
    refused(lie(bert, **changes), message)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path):
    config = BertConfig(**tiny.bert_config().to_diff_dict() | {"vocab_size": 10})
    folder = tiny.save(tiny.randomised(BertModel(config)), tmp_path / "model")
    refused(folder, r"gives token ids up to 2\d; the model's vocabulary has 10")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bert, value):
    def spoil(tensors):
        tensors["encoder.layer.1.output.dense.weight"][3, 5] = value

    refused(change_weights(bert, spoil), "'encoder.layer.1.output.dense.weight' holds NaN or infinity")


def test_answers_that_are_not_finite_are_refused(bert):
    def enlarge(tensors):
        tensors["embeddings.LayerNorm.weight"].fill_(3e38)

    refused(change_weights(bert, enlarge), "answers the first rows with NaN or infinity")


@pytest.mark.parametrize(
    ("model_type", "task", "length"),
    [
        ("bert", "sentence-embedding", 64),
        ("roberta", "sentence-embedding", 63),
        ("llama", "causal-lm", 64),
        ("opt", "causal-lm", 64),
        ("gpt_neo", "causal-lm", 64),
    ],
)
def test_rows_longer_than_the_models_positions_are_cut(tmp_path, model_type, task, length):
    folder = tiny.save(tiny_families.model(model_type, task), tmp_path / "model")
    warnings = load(folder, task=task, texts=[" ".join(tiny.sentences(20, seed)) for seed in range(8)])
    assert warnings == [f"max_length 128 exceeds the model's {length} positions; {length} is used."]


def test_the_tokenizers_limit_counts_where_it_is_sane():
    config, tokenizer, warnings = tiny.bert_config(), tiny.tokenizer(), []
    assert fitting_length(64, config, tokenizer, warnings.append) == 64
    tokenizer.model_max_length = 1
    assert fitting_length(64, config, tokenizer, warnings.append) == 64
    assert warnings == []
    tokenizer.model_max_length = 40
    assert fitting_length(64, config, tokenizer, warnings.append) == 40
    assert [warning.message for warning in warnings] == [
        "max_length 64 exceeds the 40 tokens of the tokenizer's model_max_length; 40 is used."
    ]


def test_grouped_queries_that_do_not_divide_are_refused():
    model = tiny.llama()
    model.base_model.layers[1].self_attn.k_proj = torch.nn.Linear(32, 24)
    model.base_model.layers[1].self_attn.v_proj = torch.nn.Linear(32, 24)
    with pytest.raises(InvalidModelError, match=r"Layer 1: .*\(64, 24, 24\) cannot be divided"):
        bind(model)
