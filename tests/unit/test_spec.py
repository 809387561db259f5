"""The contract, and how its errors are pointed at."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from api.pointers import describe
from api.schemas import JobRequest
from core.catalog import METHODS
from core.jobs.defaults import TRAINING_DEFAULTS, resolve
from core.jobs.methods import Method, NeuroPrune, takes_target
from core.jobs.spec import JobSpec, SequenceClassification
from core.jobs.targets import RANGES
from tests.specs import DEMO, demo_spec, upload_spec


def faults(body):
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate(body)
    return dict(describe({**error, "loc": ("body", *error["loc"])}, JobRequest) for error in caught.value.errors())


def test_the_smallest_spec_takes_all_defaults():
    spec = demo_spec()
    assert spec.method.name == "neuroprune"
    assert spec.export.formats == ("safetensors", "onnx")
    assert spec.training.seed == 42


def test_specs_survive_json():
    assert JobSpec.model_validate_json(demo_spec().model_dump_json()) == demo_spec()


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ({"name": "sentence-embedding"}, {"text_column": "text"}),
        ({"name": "causal-lm", "text_column": "prose"}, {"text_column": "prose"}),
        ({"name": "masked-lm"}, {"text_column": "text"}),
        ({"name": "regression"}, {"text_column": "text", "label_column": "label"}),
        (
            {"name": "sequence-classification", "text_pair_column": "b", "label_column": "c"},
            {"text_column": "text", "text_pair_column": "b", "label_column": "c"},
        ),
        ({"name": "seq2seq", "kind": "translation"}, {"source_column": "source", "target_column": "target"}),
        ({"name": "image-classification"}, {"image_column": "image", "label_column": "label"}),
    ],
)
def test_columns_are_told_by_their_field(task, columns):
    data = {"source": "path", "train": "/data/train.csv"}
    spec = demo_spec(task={**task, "data": data})
    assert spec.columns() == {f"/task/{field}": column for field, column in columns.items()}
    answers = {"label_column", "target_column"}
    assert spec.task.input_columns() == tuple(name for field, name in columns.items() if field not in answers)


def test_resolving_fills_only_what_was_left_open():
    resolved = resolve(demo_spec()).training
    assert resolved.num_train_epochs == TRAINING_DEFAULTS["sentence-embedding"].num_train_epochs
    given = demo_spec(training={"num_train_epochs": 0.5, "learning_rate": 1e-5})
    assert resolve(given).training == given.training


def test_sparser_targets_train_longer_unless_the_user_says_how_long():
    usual = TRAINING_DEFAULTS["sentence-embedding"].num_train_epochs
    for sparsity, expected in ((0.2, usual), (0.5, usual), (0.7, 1.5 * usual), (0.9, 2 * usual)):
        spec = demo_spec(target={"sparsity": sparsity})
        assert resolve(spec).training.num_train_epochs == pytest.approx(expected)
        asked = demo_spec(target={"sparsity": sparsity}, training={"num_train_epochs": 1})
        assert resolve(asked).training.num_train_epochs == 1
    for first, expected in ((0.5, usual), (0.7, 1.5 * usual)):
        frontier = demo_spec(target={"frontier": [first, 0.9]})
        assert resolve(frontier).training.num_train_epochs == pytest.approx(expected)


@pytest.mark.parametrize("name", TRAINING_DEFAULTS)
def test_what_stays_takes_over_where_that_pays(name):
    """Unless the user says otherwise, and only where whole units go while the model trains."""

    def compensation(method):
        return resolved_method(name, {"name": "neuroprune", **method}).compensation

    assert compensation({}) is (name in ("causal-lm", "sequence-classification", "regression"))
    assert compensation({"compensation": True}) is True
    assert compensation({"compensation": False}) is False
    assert compensation({"granularity": "unstructured"}) is None
    assert compensation({"mode": "faithful"}) is None


@pytest.mark.parametrize("method_name", ["neuroprune", "importance", "magnitude", "l1", "random"])
@pytest.mark.parametrize("name", TRAINING_DEFAULTS)
def test_heads_are_spared_where_that_pays(name, method_name):
    def exponent(method):
        return resolved_method(name, {"name": method_name, **method}).head_exponent

    assert exponent({}) == (1.6 if name == "causal-lm" else 1)
    assert exponent({"head_exponent": 2}) == 2
    assert exponent({"granularity": "unstructured"}) is None
    if method_name == "neuroprune":
        assert exponent({"heads_kept": 3}) == 1
        assert exponent({"mode": "faithful"}) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target": {"sparsity": 0.9}}, 1.6),
        ({"target": {"sparsity": 0.91}}, 1),
        ({"target": {"max_metric_drop": 0.1}}, 1.6),
        ({"target": {"parameters": 1000}}, 1.6),
        ({"target": {"frontier": [0.3, 0.5]}}, 1),
        ({"target": {"speedup": 2}}, 1),
        ({"structure": "uniform"}, 1),
        ({"structure": "masked"}, 1.6),
    ],
)
def test_heads_are_spared_where_the_target_allows_it(options, expected):
    task = {"name": "causal-lm", "data": {"source": "upload", "train": FILE}}
    assert resolve(demo_spec(task=task, **options)).method.head_exponent == expected


@pytest.mark.parametrize("task", TRAINING_DEFAULTS)
@pytest.mark.parametrize("name", ["neuroprune", "importance", "magnitude", "l1", "random"])
def test_what_every_layer_keeps_follows_from_the_task(task, name):
    """Unless the user says otherwise; where layers do not compete, it is not read."""

    def floor(structure="ragged", **options):
        return resolved_method(task, {"name": name, **options}, structure).layer_floor

    usual = 0.5 if task == "seq2seq" else 0.8
    assert floor() == floor(granularity="unstructured") == usual
    assert floor(layer_floor=0.0) == 0.0
    assert floor(granularity="2:4") == 0.8
    assert floor(structure="uniform") == 0.8
    if name == "neuroprune":
        assert floor(mode="faithful") == 0.8


@pytest.mark.parametrize(
    ("options", "structure"), [({}, "uniform"), ({"granularity": "2:4"}, "masked"), ({"mode": "faithful"}, "ragged")]
)
def test_a_resolved_job_may_be_stored_and_sent_again_where_layers_do_not_compete(options, structure):
    """It names the usual share, which is not read there."""
    method = resolved_method("sequence-classification", {"name": "neuroprune", **options}, structure)
    assert method.layer_floor == 0.8
    again = resolved_method("sequence-classification", method.model_dump(), structure)
    assert again == method


def resolved_method(task, method, structure="ragged"):
    """A method's options with the task's defaults."""
    data = DEMO["task"]["data"] if task == "sentence-embedding" else UPLOADED["data"]
    kind = {"kind": "translation"} if task == "seq2seq" else {}
    has_target = method.get("mode") != "faithful" and method.get("granularity") != "2:4"
    target = DEMO["target"] if has_target else None
    spec = demo_spec(task={"name": task, "data": data, **kind}, method=method, target=target, structure=structure)
    return resolve(spec).method


def test_the_published_method_takes_no_recovery():
    spec = {**DEMO, "target": None, "method": FAITHFUL, "training": {"recovery_epochs": 1}}
    assert "must be 0 in mode faithful" in faults(spec)["/training/recovery_epochs"]


def test_shares_that_are_held_out_leave_something():
    """Of splits that the data brings along, nothing is held out."""
    rows = {**UPLOADED["data"], "validation_fraction": 0.5}
    spec = {**DEMO, "task": {"name": "sequence-classification", "data": rows}}
    JobSpec.model_validate(spec)
    for enough in ({"test_fraction": 0.4}, {"test_fraction": 0.9, "validation": FILE}):
        JobSpec.model_validate({**spec, "task": {"name": "sequence-classification", "data": rows | enough}})
    assert faults({**spec, "task": {"name": "sequence-classification", "data": rows | {"test_fraction": 0.5}}})


def test_every_option_is_documented():
    definitions = JobSpec.model_json_schema()["$defs"]
    for model, schema in definitions.items():
        for field, about in schema["properties"].items():
            discriminator = "const" in about
            part = "$ref" in about or "discriminator" in about or "oneOf" in about
            assert "description" in about or discriminator or part, f"{model}.{field} has no description"


def test_files_are_found_with_their_pointers():
    assert demo_spec().file_ids() == {}
    train = "file_" + "0" * 32
    assert upload_spec(train).file_ids() == {"/task/data/train": train}


def test_request_is_a_spec_and_names():
    request = JobRequest.model_validate(DEMO | {"name": "n", "labels": {"a": "b"}})
    assert request.spec() == demo_spec()
    assert type(request.spec()) is JobSpec


FILE = "file_" + "0" * 32
UPLOADED = {"data": {"source": "upload", "train": FILE}}


@pytest.mark.parametrize(
    ("change", "pointer", "message"),
    [
        ({"target": {"sparsity": 0.99}}, "/target/sparsity", "less than or equal to 0.95"),
        ({"target": {}}, "/target", "exactly one of: sparsity, parameters, size_bytes"),
        ({"target": {"sparsity": 0.5, "parameters": 1000}}, "/target", "exactly one of"),
        ({"target": "small"}, "/target", "exactly one of"),
        ({"target": {"parameters": 1000, "colour": 1}}, "/target/colour", "allowed here: parameters"),
        ({"target": {"size_bytes": 0.5}}, "/target/size_bytes", "integer"),
        ({"target": {"sparsity": float("nan")}}, "/target/sparsity", "finite"),
        ({"task": {"name": "sentence-embedding", "data": DEMO["task"]["data"], "text_column": 3}},
         "/task/text_column", "string"),
        ({"task": {"name": "causal-lm", "data": {"source": "upload"}}}, "/task/data/train", "Required"),
        ({"task": {"name": "translate"}},
         "/task/name", "'sentence-embedding', 'sequence-classification', 'regression', 'causal-lm'"),
        ({"task": {}}, "/task/name", "Required; one of"),
        ({"task": {"name": "sequence-classification", "data": DEMO["task"]["data"]}},
         "/task/data/source", "'upload', 'path'"),
        ({"model": {"source": "path"}}, "/model/path", "Required"),
        ({"model": {"source": "path", "path": ""}}, "/model/path", "at least 1 character"),
        ({"model": {"source": "path", "path": "/a\0b"}}, "/model/path", "match pattern"),
        ({"model": {"source": "path", "path": "/" + "a" * 5000}}, "/model/path", "at most 4096"),
        ({"task": DEMO["task"] | {"text_column": "x" * 201}}, "/task/text_column", "at most 200"),
        ({"x" * 100_000: 1}, "/" + "x" * 99 + "…", "allowed here: model, task"),
        ({"model": {"source": "builtin", "name": "gpt-9"}}, "/model/name", "'all-MiniLM-L6-v2'"),
        ({"model": {"source": "upload", "file": "../x"}}, "/model/file", "match pattern"),
        ({"model": {"source": "upload", "file": "file_" + "0" * 32, "x/y~": 1}},
         "/model/x~1y~0", "allowed here: source, file"),
        ({"method": {"name": "neuroprune", "alpha": -1}}, "/method/alpha", "greater than or equal to 0"),
        ({"training": {"warmup_fraction": 0.9, "recovery_fraction": 0.9}}, "/training", "must not exceed 1"),
        ({"export": {"formats": ["onnx", "zip"]}}, "/export/formats/1", "'safetensors', 'onnx', 'gguf' or"),
        ({"export": {"formats": ["gguf"]}}, "/export/formats", "gguf is for causal-lm, not for sentence-embedding"),
        ({"target": None}, "/target", "method neuroprune needs one"),
        ({"target": {"parameters": 1000}, "structure": "masked"}, "/target/parameters", "structure masked"),
        ({"target": {"speedup": 2}, "method": {"name": "smart"}}, "/target/speedup", "which smart cannot"),
        ({"method": {"name": "neuroprune", "in_rows": 0.1}, "structure": "uniform"}, "/structure", "in_rows"),
        ({"method": {"name": "magnitude", "granularity": "2:4", "layer_floor": 0.5}, "target": None},
         "/method/layer_floor", "cannot be set with granularity 2:4"),
        ({"method": {"name": "neuroprune", "head_exponent": 1.1}, "target": {"frontier": [0.3, 0.5]}},
         "/target/frontier", "head_exponent above 1"),
        ({"method": {"name": "importance", "head_exponent": 1.1}, "target": {"speedup": 2}},
         "/target/speedup", "head_exponent above 1"),
        ({"method": {"name": "neuroprune", "heads_kept": 3, "head_exponent": 1.1}},
         "/method/head_exponent", "cannot be set with heads_kept"),
        ({"training": {"dense_epochs": 1}}, "/training/dense_epochs", "no labels"),
        ({"training": {"distillation": 0.5}}, "/training/distillation", "no labels"),
        ({"target": {"speedup": 2}, "export": {"formats": []}}, "/target/runtime", "needs onnx"),
        ({"method": {"name": "smart", "initial_temperature": 0.1, "final_temperature": 0.2}},
         "/method/final_temperature", "must not exceed"),
        ({"method": {"name": "magnitude", "experts": 0.1}, "structure": "masked"}, "/structure", "with experts"),
        ({"task": UPLOADED | {"name": "image-classification"}, "export": {"formats": ["executorch"]}},
         "/export/formats", "executorch is for models that read one text"),
        ({"task": UPLOADED | {"name": "seq2seq", "kind": "translation", "metric": "rouge_l"}},
         "/task/metric", "not measured for translation"),
        ({"task": UPLOADED | {"name": "sequence-classification", "label_names": ["a", "b", "a"]}},
         "/task/label_names", "'a' is there 2 times"),
        ({"task": {"name": "regresion"}}, "/task/name", "Must be one of 'sentence-embedding'"),
        ({"model": "bert"}, "/model", 'Must be an object, such as {"source": "builtin", "name": "all-MiniLM-L6-v2"}.'),
        ({"task": []}, "/task", 'Must be an object, such as {"name": "sentence-embedding", "data": {"source":'),
        ({"task": DEMO["task"] | {"data": "python-docs"}},
         "/task/data", 'Must be an object, such as {"source": "upload", "train": "file_'),
        ({"method": "wanda"}, "/method", 'Must be an object, such as {"name": "wanda"}.'),
        ({"training": 3}, "/training", 'Must be an object, such as {"num_train_epochs": 3}.'),
        ({"export": "onnx"}, "/export", 'Must be an object, such as {"formats": ["onnx"]}.'),
        ({"target": None}, "/target", 'such as {"sparsity": 0.5}.'),
        ({"target": {"frontier": [0.5]}}, "/target/frontier", "Name 2 to 8 sparsities, such as [0.5, 0.7]."),
        ({"target": {"frontier": 0.5}}, "/target/frontier", "Name 2 to 8 sparsities, such as [0.5, 0.7]."),
        ({"labels": {"a b": "x"}}, "/labels/a b", "match pattern"),
        ({"labels": {"a": "x" * 201}}, "/labels/a", "at most 200"),
        ({"name": "two\nlines"}, "/name", "match pattern"),
    ],
)  # fmt: skip
def test_errors_point_at_the_field_and_say_what_is_allowed(change, pointer, message):
    found = faults(DEMO | change)
    assert list(found) == [pointer]
    assert message in found[pointer]


def test_a_misfit_names_its_field_without_the_api_too():
    with pytest.raises(ValidationError, match=r"/training/num_train_epochs: must be above 0"):
        demo_spec(training={"num_train_epochs": 0})


def test_the_schema_bounds_the_number_of_classes():
    (names, _) = SequenceClassification.model_json_schema()["properties"]["label_names"]["anyOf"]
    assert (names["minItems"], names["maxItems"]) == (2, 10_000)


FAITHFUL = {"name": "neuroprune", "mode": "faithful"}


@pytest.mark.parametrize(
    ("method", "takes_target"),
    [
        ({"name": "neuroprune"}, True),
        ({"name": "neuroprune", "mode": "targeted", "heads_kept": 12, "in_rows": 0.25}, True),
        ({"name": "neuroprune", "granularity": "unstructured"}, True),
        ({"name": "neuroprune", "granularity": "2:4"}, False),
        (FAITHFUL, False),
        ({"name": "smart"}, True),
        ({"name": "wanda"}, True),
        ({"name": "sparsegpt", "granularity": "4:8"}, False),
    ],
)
def test_a_target_is_required_or_refused_as_the_method_has_it(method, takes_target):
    without = {key: value for key, value in DEMO.items() if key != "target"} | {"method": method}
    if takes_target:
        assert JobSpec.model_validate(without | {"target": {"sparsity": 0.5}}).target is not None
        assert "needs one, such as" in faults(without)["/target"]
    else:
        assert JobSpec.model_validate(without).target is None
        assert "must be left out" in faults(without | {"target": {"sparsity": 0.5}})["/target"]


CLASSES = UPLOADED | {"name": "sequence-classification"}
WRITING = UPLOADED | {"name": "seq2seq", "kind": "translation"}


@pytest.mark.parametrize(
    ("task", "most", "message"),
    [
        (CLASSES, 1, "accuracy runs from 0 to 1: every model is within 1 of the dense one; five points are 0.05"),
        (CLASSES | {"metric": "matthews"}, 2, "matthews runs from -1 to 1"),
        (UPLOADED | {"name": "regression"}, 2, "pearson runs from -1 to 1"),
        (UPLOADED | {"name": "masked-lm", "metric": "accuracy"}, 1, "accuracy runs from 0 to 1"),
        (WRITING, 100, "bleu runs from 0 to 100: every model is within 100 of the dense one; five points are 5"),
        (WRITING | {"kind": "summarisation"}, 1, "rouge_l runs from 0 to 1"),
    ],
)
def test_a_metric_cannot_drop_by_more_than_its_range(task, most, message):
    spec = DEMO | {"task": task}
    assert message in faults(spec | {"target": {"max_metric_drop": most}})["/target/max_metric_drop"]
    JobSpec.model_validate(spec | {"target": {"max_metric_drop": 0.9 * most}})


def test_nats_have_no_range():
    spec = DEMO | {"task": UPLOADED | {"name": "causal-lm"}, "target": {"max_metric_drop": 5}}
    assert JobSpec.model_validate(spec).target.max_metric_drop == 5


def test_every_metric_has_a_range_or_is_of_probabilities():
    definitions = JobSpec.model_json_schema()["$defs"].values()
    about = [schema["properties"]["metric"] for schema in definitions if "metric" in schema["properties"]]
    metrics = {name for each in about for name in each.get("enum") or each["anyOf"][0]["enum"]}
    assert metrics - RANGES.keys() == {"nats_per_token", "perplexity", "nats_per_character"}
    assert RANGES.keys() <= metrics


@pytest.mark.parametrize("target", [{"speedup": 2.0, "runtime": "torch"}, {"frontier": [0.3, 0.5]}])
def test_a_target_of_several_steps_needs_a_method_that_goes_on(target):
    spec = {**DEMO, "method": {"name": "smart"}, "target": target}
    assert "each going on from the one before, which smart cannot" in faults(spec)[f"/target/{next(iter(target))}"]
    JobSpec.model_validate(spec | {"method": {"name": "importance"}})
    # Each of its levels begins with the dense model.
    JobSpec.model_validate(spec | {"target": {"max_metric_drop": 0.01}})


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (FAITHFUL | {"heads_kept": 3}, "heads_kept cannot be set with mode faithful"),
        (FAITHFUL | {"granularity": "2:4", "in_rows": 0.1}, "granularity, in_rows cannot be set with mode faithful"),
        ({"name": "neuroprune", "granularity": "2:4", "in_rows": 0.1}, "in_rows cannot be set with granularity 2:4"),
        (
            {"name": "neuroprune", "granularity": "unstructured", "importance": False},
            "importance cannot be set with granularity unstructured",
        ),
        (FAITHFUL | {"compensation": True}, "compensation cannot be set with mode faithful"),
        (FAITHFUL | {"head_exponent": 2}, "head_exponent cannot be set with mode faithful"),
        (
            {"name": "l1", "granularity": "unstructured", "head_exponent": 2},
            "head_exponent cannot be set with granularity unstructured",
        ),
        ({"name": "l1", "granularity": "2:4", "layer_floor": 0.5}, "layer_floor cannot be set with granularity 2:4"),
        ({"name": "magnitude", "granularity": "4:4"}, "N must be below M; 4:4 is not"),
        ({"name": "magnitude", "granularity": "0:4"}, "Must be structured, unstructured or a pattern such as 2:4."),
        ({"name": "wanda", "granularity": "structured"}, "Must be unstructured or a pattern such as 2:4."),
        ({"name": "smart", "initial_temperature": 0.1, "final_temperature": 0.2}, "must not exceed initial"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(method, message):
    found = faults(DEMO | {"method": method})
    assert len(found) == 1
    assert message in next(iter(found.values()))


@pytest.mark.parametrize(
    ("method", "pointer", "message"),
    [
        (FAITHFUL, "/structure", "not possible with mode faithful"),
        ({"name": "wanda"}, "/structure", "not possible with granularity unstructured"),
        ({"name": "magnitude", "granularity": "2:4"}, "/structure", "not possible with granularity 2:4"),
        ({"name": "neuroprune", "in_rows": 0.1}, "/structure", "not possible with in_rows"),
        ({"name": "l1", "layer_floor": 0.5}, "/method/layer_floor", "cannot be set with structure uniform"),
    ],
)
def test_what_cannot_have_one_width_is_refused_and_can_be_masked(method, pointer, message):
    target = DEMO["target"] if takes_target(TypeAdapter(Method).validate_python(method)) else None
    body = DEMO | {"method": method, "target": target}
    found = faults(body | {"structure": "uniform"})
    assert list(found) == [pointer]
    assert message in found[pointer]
    assert JobSpec.model_validate(body | {"structure": "masked"}).structure == "masked"


@pytest.mark.parametrize("name", ["neuroprune", "importance", "smart", "magnitude", "l1", "random"])
def test_whole_units_can_have_one_width(name):
    spec = demo_spec(method={"name": name}, structure="uniform")
    assert JobSpec.model_validate(resolve(spec).model_dump(mode="json")).structure == "uniform"
    assert demo_spec().structure == "ragged"


def test_alpha_and_beta_default_by_mode():
    assert NeuroPrune(name="neuroprune").strengths() == (1e-3, 1e-3)
    assert NeuroPrune(**FAITHFUL).strengths() == (1e-5, 1e-5)
    assert NeuroPrune(**FAITHFUL, alpha=0, beta=0.1).strengths() == (0, 0.1)


def test_only_methods_that_prune_while_training_need_epochs():
    found = faults(DEMO | {"training": {"num_train_epochs": 0}})
    assert "must be above 0" in found["/training/num_train_epochs"]
    wanda = demo_spec(method={"name": "wanda"}, training={"num_train_epochs": 0})
    assert resolve(wanda).training.num_train_epochs == 0
    assert resolve(demo_spec(method={"name": "wanda"})).training.num_train_epochs == 0
    trained = demo_spec(method={"name": "wanda"}, training={"num_train_epochs": 1})
    assert resolve(trained).training.num_train_epochs == 1


def test_pointers_lead_into_the_body():
    body = DEMO | {
        "task": {"name": "sentence-embedding", "data": {"source": "builtin", "name": "x", "max_train_rows": 0}}
    }
    for pointer in faults(body):
        at = json.loads(json.dumps(body))
        for part in pointer.split("/")[1:]:
            at = at[part]
        assert at in ("x", 0)


STORED = [
    *(
        {"name": name, "granularity": "structured"}
        for name in ("neuroprune", "importance", "magnitude", "l1", "random")
    ),
    *({"name": name, "granularity": "2:4"} for name in ("neuroprune", "importance", "magnitude", "l1", "random")),
    *({"name": entry.name, "granularity": "unstructured"} for entry in METHODS),
    {"name": "smart", "granularity": "structured"},
    {"name": "neuroprune", "heads_kept": 3, "in_rows": 0.2},
    FAITHFUL | {"theta": 0.3, "alpha": 1e-4},
]


@pytest.mark.parametrize("method", STORED, ids=lambda method: "-".join(map(str, method.values())))
def test_a_stored_spec_is_read_again_as_it_was(method):
    """The worker gets the resolved spec as JSON, with every option spelt out."""
    target = DEMO["target"] if takes_target(TypeAdapter(Method).validate_python(method)) else None
    spec = resolve(JobSpec.model_validate(DEMO | {"method": method, "target": target}))
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
