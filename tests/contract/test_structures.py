"""Uniform and masked models: the stock class loads them, nothing of ours is needed, and they answer as they should."""

import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from client.load import load
from core.engine import delivery
from core.engine import verify as verifying
from core.engine.anatomy import Anatomy, bind, count_parameters
from core.engine.export.bundle import write_manifest
from core.engine.export.onnx import export_onnx
from core.engine.ladder import AT_ONCE
from core.engine.loading import check_architecture
from core.engine.methods import build_pruner
from core.engine.methods.budget import Budget
from core.engine.plan import Plan
from core.engine.structures import evened, give_structure, uniform_head_groups
from core.engine.tasks import TASKS
from core.engine.verify import TOLERANCE, differences, inspect, tolerated
from core.errors import InvalidModelError, UnreachableTargetError, VerificationError
from core.families import family_of
from core.jobs.methods import Random
from tests import tiny, tiny_families
from tests.contract.test_families import FIRST, Case, each, inputs, masked, outputs, ragged_plan, write_bundle
from tests.contract.test_families import all_tasks as all_tasks  # a fixture for all tests here
from tests.whole_jobs import run_job, texts

UNIFORM = [case for case in FIRST if family_of(case.family.partition("/")[0]).uniform is not None]
BERT, LLAMA = (next(case for case in FIRST if case.family == family) for family in ("bert", "llama"))


def uniform_plan(anatomy: Anatomy) -> Plan:
    """As few head groups as the family can have, but two where it can; 29 neurons; others in every layer."""
    heads = next(count for count in uniform_head_groups(anatomy) if count >= 2)
    widths = {"heads": heads, "neurons": 29}
    return Plan(
        tuple(
            tuple(sorted((7 * u.layer + i) % u.count for i in range(widths.get(u.kind, u.count))))
            for u in anatomy.units
        )
    )


def masked_plan(model: PreTrainedModel) -> Plan:
    """A ragged one that keeps all experts, as stock routers choose among all, and some neurons of each."""
    anatomy, indices = bind(model), [*ragged_plan(model).indices]
    for mixture in anatomy.mixtures:
        indices[mixture.units.position] = tuple(range(mixture.units.count))
        for expert in mixture.mlps:
            indices[expert.units.position] = (1, 2, 40)
    return Plan(tuple(indices))


def made(case: Case, structure: str, folder: Path) -> PreTrainedModel:
    """A bundle in this folder, and the model that was written to it."""
    model = case.model()
    plan = uniform_plan(bind(model)) if structure == "uniform" else masked_plan(model)
    expected = outputs(case, masked(model, plan))
    give_structure(structure, bind(model), plan)
    write_bundle(case, model, expected, folder)
    return model


def check_stock(case: Case, model: PreTrainedModel, folder: Path) -> None:
    """Nothing of ours is in the bundle, and it loads and answers as the masked model does."""
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".onnx"}
    config = json.loads((folder / "config.json").read_text())
    assert config.keys() & {"auto_map", "neuroprune"} == set()
    assert config["architectures"] == [type(case.model()).__name__]
    found = differences(folder)
    assert {way for way, difference in found.items() if not difference <= TOLERANCE[way]} == set()
    assert found.keys() >= {"loader", "auto_class"}
    assert type(load(folder)) is type(case.model())
    assert inspect(folder)["total_parameters"] == count_parameters(model)


@each(UNIFORM)
def test_a_uniform_bundle_is_of_the_stock_class_and_agrees(case, tmp_path):
    dense = case.model()
    groups = uniform_head_groups(bind(dense))
    model = made(case, "uniform", tmp_path)
    check_stock(case, model, tmp_path)
    loaded = bind(load(tmp_path))
    heads = next(count for count in groups if count >= 2)
    assert {attention.groups for attention in loaded.attentions} == {heads}
    assert {mlp.units.count for mlp in loaded.mlps} == {29}
    assert loaded.encoder_parameters < bind(dense).encoder_parameters


@each(FIRST)
def test_a_masked_bundle_is_of_the_stock_class_and_agrees(case, tmp_path):
    model = made(case, "masked", tmp_path)
    check_stock(case, model, tmp_path)
    assert count_parameters(model) == count_parameters(case.model())


@each([BERT, LLAMA])
def test_a_uniform_bundle_runs_in_onnx_runtime(case, tmp_path):
    model = made(case, "uniform", tmp_path)
    export_onnx(TASKS[case.task], model, inputs(case.task), tmp_path / "model.onnx")
    write_manifest(tmp_path)
    check_stock(case, model, tmp_path)


def test_a_uniform_model_generates_as_the_masked_one_does():
    model = LLAMA.model()
    plan = uniform_plan(bind(model))
    reference = masked(LLAMA.model(), plan)
    give_structure("uniform", bind(model), plan)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    prompt = inputs()["input_ids"]
    assert model.generate(prompt, **options).tolist() == reference.generate(prompt, **options).tolist()


def test_a_config_that_leaves_the_width_of_heads_open_says_it_afterwards(tmp_path):
    """Else what is left of the heads would share the hidden size among themselves."""
    sizes = {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 48}
    config = Qwen2Config(**sizes, num_hidden_layers=3, vocab_size=tiny.VOCABULARY)
    assert not hasattr(config, "head_dim")
    model = tiny.randomised(Qwen2ForCausalLM(config))
    plan = uniform_plan(bind(model))
    expected = outputs(LLAMA, masked(model, plan))
    give_structure("uniform", bind(model), plan)
    write_bundle(LLAMA, model, expected, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["head_dim"] == 4
    assert max(differences(tmp_path).values()) <= 1e-5


def test_uneven_layers_get_back_as_many_units_as_the_widest_has(tmp_path):
    """Those that come back are at zero, so the outputs stay."""
    model = tiny_families.model("qwen2", "causal-lm")
    whole = tuple(range(32))
    plan = Plan(((), (4,), whole, (1, 3), (), whole, (2,), (0, 9, 11), whole))
    case = Case("qwen2", "causal-lm")
    expected = outputs(case, masked(model, plan))
    assert evened(bind(model), plan) == Plan(
        ((0, 1), (0, 1, 4), whole, (1, 3), (0, 1, 2), whole, (0, 2), (0, 9, 11), whole)
    )
    give_structure("uniform", bind(model), plan)
    write_bundle(case, model, expected, tmp_path)
    assert max(differences(tmp_path).values()) <= 1e-5


def test_heads_divide_the_hidden_size_where_the_config_asks_for_it():
    """Of four groups of two heads, three would be six heads, which do not divide 32."""
    assert uniform_head_groups(bind(tiny_families.model("llama", "causal-lm"))) == [1, 2, 4]
    assert uniform_head_groups(bind(tiny_families.model("qwen3", "causal-lm"))) == [1, 2, 3, 4]
    assert uniform_head_groups(bind(tiny_families.model("bert", "sentence-embedding"))) == [4]


def test_what_a_uniform_model_cannot_be_is_refused():
    bert, llama = bind(BERT.model()), bind(LLAMA.model())
    with pytest.raises(UnreachableTargetError, match=r"uniform BERT model can lose gone .* Its heads stay") as caught:
        Budget.of(bert, 0.8, uniform=True)
    assert caught.value.param == "/target"
    for anatomy, heads, allowed in ((bert, 6, "12"), (llama, 9, "3, 6, 12")):
        with pytest.raises(UnreachableTargetError, match=rf"{heads} heads cannot stay: .* may keep {allowed}\."):
            Budget.of(anatomy, 0.3, heads_kept=heads, uniform=True)
    with pytest.raises(InvalidModelError, match="structure uniform is not possible, ragged and masked are") as caught:
        Budget.of(replace(bert, family=replace(bert.family, uniform=None)), 0.3, uniform=True)
    assert caught.value.param == "/structure"


def do(model_type: str, task: str, folder: Path, **parts) -> dict:
    """The report of a job; its bundle lies in `folder / "bundle"`."""
    model = tiny.save(tiny_families.model(model_type, task), folder / "model")
    return run_job(folder, model, texts(40), {"name": task}, export={"formats": []}, **parts).report


def test_a_uniform_job_removes_at_least_what_was_asked_for(tmp_path):
    report = do("qwen2", "causal-lm", tmp_path, structure="uniform", target={"sparsity": 0.5})
    target, layers = report["sparsity"], report["layers"]
    assert report["structure"] == "uniform"
    assert 0.5 <= target["achieved"] <= 0.5 + 3 * 96 / report["parameters"]["encoder"]["dense"]
    assert target["achieved"] == pytest.approx(target["removed"], abs=1e-3)
    heads = [layer["attentions"][0]["heads"] for layer in layers]
    for units in (heads, [layer["mlps"][0]["neurons"] for layer in layers]):
        assert len({each["kept"] for each in units}) == 1
        assert units[0]["kept"] < units[0]["dense"]
    config = json.loads((tmp_path / "bundle/config.json").read_text())
    assert config["num_key_value_heads"] == heads[0]["kept"]
    assert "trust_remote_code" not in (tmp_path / "bundle/README.md").read_text()
    check_architecture(tmp_path / "bundle", "causal-lm")  # it can be pruned again


def test_a_masked_job_is_offered_compressed(tmp_path):
    method = {"name": "magnitude", "granularity": "unstructured"}
    report = do("bert", "sentence-embedding", tmp_path, structure="masked", method=method, target={"sparsity": 0.9})
    target, size, bundle = report["sparsity"], report["size_bytes"], tmp_path / "bundle"
    stack = bind(load(bundle)).stack
    zeros = sum(int((parameter == 0).sum()) for parameter in stack.parameters())
    assert target["removed"] == 0
    # Units that lost their connections went whole, with their biases.
    assert target["achieved"] == target["zero"] == zeros / count_parameters(stack) > 0.9
    assert size["pruned"] == pytest.approx(size["dense"], rel=0.01)
    compressed = (bundle / "model.safetensors.zst").read_bytes()
    assert size["compressed"] == len(compressed) < 0.6 * size["dense"]
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(compressed)
    assert plain == (bundle / "model.safetensors").read_bytes()
    assert "model.safetensors.zst" in json.loads((bundle / "manifest.json").read_text())["files"]
    card = (bundle / "README.md").read_text()
    assert "neither smaller nor faster" in card
    assert "zstd -d" in card


def change_config(folder: Path, **entries) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


LAYER = "model.layers.0.mlp.up_proj.weight"

DAMAGES = [
    (lambda folder: change_config(folder, num_attention_heads=8), "do not fit"),
    (lambda folder: change_config(folder, num_key_value_heads=1), "do not fit"),
    (lambda folder: change_config(folder, intermediate_size=30), "do not fit"),
    (lambda folder: change_config(folder, num_hidden_layers=2), r"do not fit together: .*unexpected_keys"),
    (lambda folder: change_config(folder, num_hidden_layers=4), r"do not fit together: .*missing_keys"),
    (lambda folder: change_config(folder, head_dim=-1), "do not fit"),
    (lambda folder: change_config(folder, architectures=[]), "at architectures"),
    (lambda folder: change_config(folder, architectures=["os"]), "names no architecture of transformers: 'os'"),
    (lambda folder: change_config(folder, architectures=["BertModel"]), "do not fit"),
    (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read"),
    (lambda folder: change_weights(folder, lambda weights: weights.pop(LAYER)), r"missing_keys.*up_proj"),
    (
        lambda folder: change_weights(folder, lambda weights: weights.update(more=torch.ones(1))),
        "unexpected_keys.*more",
    ),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "do not fit"),
    (lambda folder: (folder / "model.safetensors").unlink(), "do not fit"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    made(LLAMA, "uniform", folder)
    return folder


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_a_stock_bundle_that_contradicts_itself_is_refused(number, whole, tmp_path):
    """Even where the manifest was written anew, so that only config and weights can tell."""
    damage, message = DAMAGES[number]
    folder = tmp_path / "bundle"
    shutil.copytree(whole, folder)
    damage(folder)
    write_manifest(folder)
    with pytest.raises(VerificationError, match=message):
        load(folder)


def test_a_stock_bundle_whose_probe_names_no_task_is_refused(whole, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(whole, folder)
    save_file(load_file(folder / "probe.safetensors"), folder / "probe.safetensors")
    write_manifest(folder)
    with pytest.raises(VerificationError, match=r"probe\.safetensors names the task None; known are"):
        inspect(folder)


def test_rounding_is_tolerated_in_proportion_to_the_outputs():
    assert tolerated("loader", torch.tensor([[0.0, -0.5]])) == pytest.approx(1e-5)
    assert tolerated("onnx", torch.tensor([[1.0, -30.0]])) == pytest.approx(3e-3)
    assert tolerated("gguf", torch.tensor([30.0])) == 0
    assert torch.tensor(tolerated("loader", torch.tensor([torch.inf]))).isfinite()


@pytest.mark.parametrize(("share", "is_rounding"), [(2e-6, True), (1e-4, False), (math.nan, False)])
def test_a_compaction_with_large_logits_may_differ_by_their_rounding(monkeypatch, share, is_rounding):
    """By more than 1e-5, but no more than 1e-5 of the largest."""
    model = tiny.llama()
    torch.nn.init.normal_(model.lm_head.weight, std=1e3)
    pruner = build_pruner(bind(model), Random(name="random"), 0.5, AT_ONCE, 0)
    rows = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    monkeypatch.setattr(delivery, "give_structure", lambda *_: model.lm_head.weight.mul_(1 + share))
    prepared = SimpleNamespace(task=TASKS["causal-lm"], dtype=torch.float32)
    with nullcontext() if is_rounding else pytest.raises(VerificationError, match="differ from the masked model's by"):
        _, difference = delivery.compact_and_compare("ragged", prepared, pruner, rows)
        assert difference > 1e-5


@pytest.mark.parametrize(
    ("differences", "largest", "is_delivered"),
    [
        ({"loader": 1e-4, "onnx": 1e-3}, 30.0, True),
        ({"loader": 1e-4}, 1.0, False),
        ({"gguf": 1e-9}, 30.0, False),
        ({"onnx": math.nan}, 30.0, False),
    ],
)
def test_a_bundle_is_judged_in_proportion_to_its_outputs(monkeypatch, differences, largest, is_delivered):
    found = json.dumps({"differences": differences, "peak_memory_bytes": {}})
    monkeypatch.setattr(verifying, "_in_clean_process", lambda *_: CompletedProcess([], 0, stdout=found, stderr=""))
    monkeypatch.setattr(verifying, "read_probe", lambda _: ({}, torch.tensor([largest])))
    with nullcontext() if is_delivered else pytest.raises(VerificationError, match="differ by"):
        verifying.verify(Path("bundle"))
