"""Bundles as their users handle them: loaded by what the card says, saved again, and tampered with."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors.torch import load_file, save_file
from torch._subclasses import FakeTensorMode
from torch.ao.quantization import quantize_dynamic
from transformers import AutoTokenizer, PreTrainedModel

from client.bundle import verify_manifest
from client.load import load
from core.engine import verify as verification
from core.engine.anatomy import bind
from core.engine.compact import compact
from core.engine.export.bundle import write_manifest, write_model
from core.engine.export.modeling_neuroprune import HeadColumns
from core.engine.report.card import model_card
from core.engine.tasks import TASKS
from core.engine.verify import inspect, verify
from core.errors import OutOfMemoryError, StorageFullError, VerificationError
from core.jobs.spec import Training
from tests import tiny, tiny_tasks
from tests.contract.test_families import CASES, THOROUGH, Case, inputs, masked, outputs, ragged_plan, write_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundle(tmp_path) -> Path:
    return made(CASES[0], tmp_path / "bundle")


def made(case, folder: Path) -> Path:
    model = case.model()
    plan = ragged_plan(model)
    expected = outputs(case, masked(model, plan))
    compact(bind(model), plan)
    return write_bundle(case, model, expected, folder)


def in_new_process(code: str, tmp_path: Path) -> dict:
    """What the code prints as JSON, run where only the bundle's own code is at hand."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", [load, verify_manifest], ids=["loader", "client"])
def test_a_manifest_of_an_unknown_format_is_refused(check, bundle):
    change_json(bundle / "manifest.json", lambda manifest: manifest.update(format=2, files="elsewhere"))
    with pytest.raises(VerificationError, match=r"manifest\.json has format 2; this version reads format 1\. Use the"):
        check(bundle)


@pytest.mark.parametrize("check", [load, verify_manifest], ids=["loader", "client"])
def test_all_chat_templates_come_back_and_are_in_the_manifest(check, tmp_path):
    case = Case("llama", "causal-lm")
    model, tokenizer = case.model(), tiny.tokenizer()
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}"}
    write_model(model, tokenizer, TASKS[case.task](None, Training(), tokenizer), tmp_path, torch.float32)
    write_manifest(tmp_path)
    check(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer.chat_template
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files - {"manifest.json"} == set(json.loads((tmp_path / "manifest.json").read_text())["files"])
    (carrier,) = [path for path in tmp_path.iterdir() if b"{{ tools }}" in path.read_bytes()]
    carrier.write_text(carrier.read_text().replace("{{ tools }}", "{{ other }}"))
    with pytest.raises(VerificationError, match="is not the file that was"):
        check(tmp_path)
    carrier.unlink()
    with pytest.raises(VerificationError, match="is missing from"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("encoder.layer.2.output.dense.weight"), "missing_keys.*layer.2.output.dense"),
        (lambda weights: weights.update(more=torch.ones(1)), "unexpected_keys.*more"),
    ],
    ids=["missing", "extra"],
)
def test_weights_that_lack_or_add_a_tensor_are_refused(bundle, change, message):
    weights = load_file(bundle / "model.safetensors")
    change(weights)
    save_file(weights, bundle / "model.safetensors", metadata={"format": "pt"})
    write_manifest(bundle)
    with pytest.raises(VerificationError, match=message):
        load(bundle)


def test_truncated_weights_are_refused_though_the_manifest_was_written_anew(bundle):
    data = (bundle / "model.safetensors").read_bytes()
    (bundle / "model.safetensors").write_bytes(data[:-8])
    write_manifest(bundle)
    with pytest.raises(VerificationError, match="do not fit together"):
        load(bundle)


def test_a_loaded_model_can_be_saved_and_loaded_again_by_both_loaders(tmp_path):
    """With every task. One process saves what `from_pretrained` loaded, another loads that: starting takes long."""
    expected, save, load_again = {}, ["import transformers"], ["import transformers"]
    for number, case in enumerate(THOROUGH):
        folder = made(case, tmp_path / f"bundle-{number}")
        expected[case] = outputs(case, load(folder))
        once, twice = (tmp_path / f"{times}-{number}" for times in ("once", "twice"))
        load(folder).save_pretrained(once)
        from_pretrained = f"transformers.{TASKS[case.task].auto_class.__name__}.from_pretrained"
        save.append(f"{from_pretrained}({str(once)!r}, trust_remote_code=True).save_pretrained({str(twice)!r})")
        load_again.append(f"{from_pretrained}({str(twice)!r}, trust_remote_code=True)")
    in_new_process("\n".join([*save, "print(0)"]), tmp_path)
    in_new_process("\n".join([*load_again, "print(0)"]), tmp_path)
    for number, case in enumerate(THOROUGH):
        for times in ("once", "twice"):
            assert torch.equal(outputs(case, load(tmp_path / f"{times}-{number}")), expected[case]), (times, case)


@pytest.mark.parametrize("case", [CASES[0], *(case for case in CASES if case.family in ("t5", "mixtral"))], ids=str)
def test_a_loaded_model_is_pickled_and_made_anew_as_every_model_is(case, tmp_path):
    model = load(made(case, tmp_path / "bundle"))
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(outputs(case, again), outputs(case, model))
    # What was in memory before would be no initial weight.
    rubbish = [torch.full_like(parameter, torch.nan) for parameter in model.parameters()]
    del rubbish
    fresh = dict(type(model)(model.config).named_parameters())
    assert {name: p.shape for name, p in fresh.items()} == {name: p.shape for name, p in model.named_parameters()}
    assert all(0 <= parameter.abs().max() < 10 for parameter in fresh.values() if parameter.numel())


def test_a_bundle_begins_a_further_task_pickles_and_is_saved_through_every_auto_class(tmp_path):
    """Pruned first, trained for a further task later: with a new head, the narrow encoder is as it was."""
    case, decoder = Case("bert", "masked-lm"), Case("phi3", "causal-lm")
    model = load(made(case, tmp_path / "bundle"))
    made(decoder, tmp_path / "decoder")
    with torch.no_grad():
        expected = model.bert(**inputs())[0]
    save_file(inputs() | {"expected": expected}, tmp_path / "inputs.safetensors")
    program = """
        import json, torch, transformers
        from safetensors.torch import load_file
        batch = load_file("inputs.safetensors")
        expected = batch.pop("expected")
        with torch.no_grad():
            for task in ("SequenceClassification", "TokenClassification"):
                auto = getattr(transformers, f"AutoModelFor{task}")
                model = auto.from_pretrained("bundle", trust_remote_code=True).eval()
                assert type(model).__name__ == f"PrunedBertFor{task}"
                torch.testing.assert_close(model.bert(**batch)[0], expected)
            encoder = transformers.AutoModel.from_pretrained("bundle", trust_remote_code=True)
            encoder.save_pretrained("encoder")
            decoder = transformers.AutoModelForCausalLM.from_pretrained("decoder", trust_remote_code=True)
            torch.save(decoder, "decoder.pt")
            again = torch.load("decoder.pt", weights_only=False)
            assert torch.equal(again(batch["input_ids"]).logits, decoder(batch["input_ids"]).logits)
        print(json.dumps({}))
        """
    in_new_process(textwrap.dedent(program), tmp_path)
    encoder = load(tmp_path / "encoder")
    assert type(encoder).__name__ == "PrunedBertModel"
    with torch.no_grad():
        torch.testing.assert_close(encoder(**inputs())[0], expected)


def test_layers_with_a_config_of_their_own_follow_when_attention_is_switched(tmp_path):
    case = Case("phi3", "causal-lm")
    ids, switched = inputs()["input_ids"], load(made(case, tmp_path))
    eager = load(tmp_path)
    for layer in [eager, *(module for module in eager.modules() if hasattr(module, "config"))]:
        layer.config._attn_implementation = "eager"
    eager.set_attn_implementation("sdpa")
    with torch.no_grad():
        # Without padding, sdpa's mask is none, and eager layers would attend to what follows.
        torch.testing.assert_close(eager(ids).logits, switched(ids).logits)


@pytest.mark.parametrize("case", THOROUGH, ids=str)
def test_auto_classes_that_a_bundle_names_have_its_layers(case, tmp_path):
    model = load(made(case, tmp_path))
    for name in json.loads((tmp_path / "config.json").read_text())["auto_map"].values():
        base = getattr(transformers, name.removeprefix("modeling_neuroprune.Pruned"))
        assert base.base_model_prefix == model.base_model_prefix


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_a_bundle_with_emptied_layers_is_quantised(family, tmp_path):
    case = Case(family, "sequence-classification")
    model = load(made(case, tmp_path))
    empty = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and not module.in_features]
    assert {type(module).__name__ for module in empty} == {"NoInputs"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this way of doing it will go
        quantised = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert float((outputs(case, quantised) - outputs(case, model)).abs().max()) < 0.1


def test_a_pruned_t5_runs_offloaded(tmp_path):
    """Tables of biases are read by layers that may lie on another device."""
    case = Case("t5", "seq2seq")
    model = load(made(case, tmp_path))
    expected = outputs(case, model)
    cpu_offload(model, execution_device="cpu")
    torch.testing.assert_close(outputs(case, model), expected)


@pytest.mark.parametrize("first_has_heads", [True, False])
def test_a_table_of_biases_may_lie_on_another_gpu(first_has_heads):
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda:0"):
            table = torch.nn.Embedding(8, 4)
            first = HeadColumns(table, 3, is_first=True) if first_has_heads else table
        with torch.device("cuda:1"):
            later, indices = HeadColumns(first, 2, is_first=False), torch.zeros(5, 5, dtype=torch.long)
        # As accelerate does with modules of a device map.
        add_hook_to_module(first, AlignDevicesHook(execution_device="cuda:0"))
        assert (later(indices).shape, later(indices).device) == ((5, 5, 2), torch.device("cuda:1"))


def test_attentions_can_be_asked_for_where_a_layer_has_none(tmp_path):
    model = load(made(Case("mpnet", "sequence-classification"), tmp_path))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**inputs(), output_attentions=True).attentions
    assert [None if each is None else each.shape[1] for each in attentions] == [None, 2, 3]


def test_what_others_write_into_a_saved_models_folder_is_not_of_it(bundle, tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "all_results.json").write_text("{}")
    load(bundle).save_pretrained(saved)
    (saved / "all_results.json").write_text('{"loss": 1}')
    load(saved)
    (saved / "config.json").write_text((saved / "config.json").read_text() + " ")
    with pytest.raises(VerificationError, match=r"config\.json is not the file that was delivered"):
        load(saved)


ANSWERS = {
    "sentence-embedding": "embeddings.tolist()",
    "sequence-classification": "label",
    "image-classification": "label",
    "regression": "number",
    "causal-lm": "text",
    "masked-lm": "word",
    "seq2seq": "text",
}
"""What the card's code of a task ends with."""


def test_what_the_card_says_works(tmp_path):
    """With every task, each card's code on its own, all in one process."""
    cases = [*THOROUGH, Case("t5", "seq2seq"), Case("vit", "image-classification")]
    programs = []
    for number, case in enumerate(cases):
        here = tmp_path / str(number)
        folder = made(case, here / "path" / "to" / "this" / "folder")
        if case.task == "image-classification":
            (here / "photo.jpg").write_bytes(tiny_tasks.image(0, "JPEG"))
        elif case.task in ("causal-lm", "seq2seq"):
            # Some tokenizers tell of types that decoders do not know.
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
            tokenizer.save_pretrained(folder)
            write_manifest(folder)
        code = re.search(r"```python\n(.*?)```", model_card(report(case)), re.DOTALL)[1]
        programs.append((str(here), code, ANSWERS[case.task]))
    answers = in_new_process(
        "import json, os\nanswers = []\n"
        f"for folder, code, answer in {programs!r}:\n"
        "    os.chdir(folder)\n    own = {}\n    exec(code, own)\n    answers.append(eval(answer, own))\n"
        "print(json.dumps(answers))",
        tmp_path,
    )
    assert {case.task for case in cases} == ANSWERS.keys() == TASKS.keys()
    for number, (case, found) in enumerate(zip(cases, answers, strict=True)):
        model = load(tmp_path / str(number) / "path/to/this/folder")
        assert agrees(case, model, found), (case, found)


def agrees(case: Case, model: PreTrainedModel, found: Any) -> bool:
    """Whether an answer is the model's, as far as its kind says."""
    words = tiny.tokenizer()(["One text.", "Another."], return_tensors="pt", padding=True)
    batch = {name: words[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        if case.task == "sentence-embedding":
            expected = TASKS[case.task].outputs(model, batch)
            return float((torch.tensor(found) - expected).abs().max()) <= 1e-5
        if case.task == "regression":
            return found == pytest.approx(model(batch["input_ids"][:1]).logits.item(), abs=1e-5)
    if "classification" in case.task:
        return found in model.config.id2label.values()
    return isinstance(found, str)


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ({"name": "regression", "text_pair_column": "b"}, 'tokenizer("One text.", "Another.", return_tensors="pt")'),
        ({"name": "regression", "text_pair_column": None}, 'tokenizer("One text.", return_tensors="pt")'),
        (
            {"name": "seq2seq", "source_prefix": 'in "English": ', "max_target_length": 9, "num_beams": 3},
            r'tokenizer("in \"English\": One text.", return_token_type_ids=False, return_tensors="pt")',
        ),
        (
            {"name": "seq2seq", "source_prefix": "", "max_target_length": 9, "num_beams": 3},
            "model.generate(**inputs, max_new_tokens=9, num_beams=3, do_sample=False)",
        ),
        (
            {"name": "causal-lm"},
            '(tokenizer.bos_token or "") + "One text.", add_special_tokens=False, return_token_type',
        ),
    ],
)
def test_a_card_shows_how_the_job_asked_for_answers(task, line):
    assert line in model_card({**report(CASES[0]), "spec": {"task": task}})


def report(case, dense_ms: float = 2.0, pruned_ms: float = 1.0) -> dict:
    """As much of a report as a card needs."""
    sides = {"dense": {"median": dense_ms}, "pruned": {"median": pruned_ms}}
    return {
        "model": {
            "name": "mine",
            "dtype": "float32",
            "auto_class": TASKS[case.task].auto_class.__name__,
            "processor_class": "AutoImageProcessor" if TASKS[case.task].reads_images else "AutoTokenizer",
        },
        "structure": "ragged",
        "sparsity": {"achieved": 0.5, "removed": 0.5, "zero": 0.0, "zero_in_dense": 0.0},
        "target": {"name": "sparsity", "requested": 0.5, "achieved": 0.5, "unit": "share"},
        "method": {
            "name": "neuroprune",
            "paper": "https://example.org",
            "options": {"mode": "faithful", "granularity": "structured"},
        },
        "task": {"name": case.task, "held_out_rows": 8},
        "spec": {"task": {"name": case.task, "max_target_length": 8, "num_beams": 1}},
        "metrics": {},
        "warnings": [],
        "parameters": {part: {"dense": 2, "pruned": 1} for part in ("encoder", "total")},
        "size_bytes": {"dense": 2, "pruned": 1},
        "latency_ms": {"torch": sides},
        "latency_setting": {"batch": 1, "length": 8, "threads": 1},
        "throughput_sequences_per_second": {"torch": {"dense": 10.0, "pruned": 20.0}},
        "throughput_setting": {"batch": 8, "length": 8, "threads": 1},
        "flops": {"dense": 2, "pruned": 1},
        "flops_setting": {"batch": 1, "length": 8},
        "peak_memory_bytes": {},
        "peak_memory_setting": {"batch": 8, "length": 8},
    }


@pytest.mark.parametrize(("dense", "text"), [(2.0, "2.00x faster"), (0.5, "2.00x slower")])
def test_a_card_says_slower_where_it_is(dense, text):
    assert f"({text})" in model_card(report(CASES[0], dense))


@pytest.mark.parametrize(
    ("removed", "zero", "words"),
    [
        (0.5, 0.0004, ["50.0% of its encoder removed\n", "gone from the weights, not set to zero"]),
        (0.0, 0.5, ["50.0% of its encoder set to zero\n", "No head or neuron is gone"]),
        (0.1, 0.4, ["50.0% of its encoder removed or zero\n", "10.0% of the encoder's", "40.0% are zeros"]),
    ],
)
def test_a_card_tells_zeros_from_what_left(removed, zero, words):
    sparsity = {"achieved": removed + zero, "removed": removed, "zero": zero, "zero_in_dense": 0.01}
    card = model_card({**report(CASES[0]), "sparsity": sparsity})
    assert all(each in card for each in words)
    assert (f"| zeros in the encoder | 1.0% | {zero:.1%} |" in card) == (zero > 0.001)
    assert "Asked for: sparsity 0.5; achieved: 0.5 (share)." in card
    assert "](topology.png)" in card


def test_a_card_of_an_unpruned_model_shows_no_topology():
    card = model_card(
        {**report(CASES[0]), "sparsity": dict.fromkeys(("achieved", "removed", "zero", "zero_in_dense"), 0.0)}
    )
    assert "topology.png" not in card


def stack(config: dict) -> dict:
    return config["neuroprune"]["family"]["stacks"][0]


def layer(config: dict, index: int = 0) -> dict:
    return config["neuroprune"]["layers"][index]


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.pop("files"), "manifest.json is not as it was delivered; at files: Field required"),
        (lambda manifest: manifest.update(files=["config.json"]), "at files"),
        (lambda manifest: manifest["files"].update({"config.json": 7}), r"at files\.config\.json"),
        (lambda manifest: manifest["files"]["config.json"].pop("size"), r"at files\.config\.json\.size"),
    ],
    ids=["no files", "list", "number", "no size"],
)
def test_a_manifest_of_another_shape_is_refused(bundle, change, message):
    change_json(bundle / "manifest.json", change)
    with pytest.raises(VerificationError, match=message):
        inspect(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(neuroprune=[1]), "describes no pruned model"),
        (lambda config: config.pop("neuroprune"), "names no architecture of transformers: 'PrunedBertModel'"),
        (lambda config: config["neuroprune"].pop("task"), r"at neuroprune\.task: Field required"),
        (lambda config: config["neuroprune"].update(task="poetry"), "names the task 'poetry'; known are"),
        (lambda config: config["neuroprune"].pop("family"), r"at neuroprune\.family"),
        (lambda config: stack(config).update(layers="decoder.layer"), "do not fit together"),
        (lambda config: stack(config)["attentions"][0].update(query="attention.query"), "do not fit"),
        (lambda config: stack(config)["attentions"][0].update(core="attention"), "do not fit"),
        (lambda config: stack(config)["attentions"][0].pop("core"), r"stacks\.0\.attentions\.0\.core"),
        (lambda config: stack(config)["mlps"].clear(), "do not fit together"),
        (lambda config: layer(config)["attentions"][0].update(heads=-1), r"layers\.0\.attentions\.0\.heads"),
        (lambda config: layer(config, 2)["attentions"][0].update(heads=4, key_value_heads=4), "do not fit together"),
        (lambda config: layer(config, 2)["attentions"][0].update(heads=2, key_value_heads=2), "do not fit together"),
        (lambda config: layer(config)["mlps"][0].pop("neurons"), r"layers\.0\.mlps\.0\.neurons"),
        (lambda config: layer(config)["attentions"][0].update(head_dim="wide"), r"attentions\.0\.head_dim"),
        (lambda config: config["neuroprune"].update(task="causal-lm"), "cannot answer the bundle's probe"),
    ],
)
def test_a_config_of_another_shape_is_refused(bundle, change, message):
    change_json(bundle / "config.json", change)
    write_manifest(bundle)
    with pytest.raises(VerificationError, match=message):
        inspect(bundle)


def change_probe(folder: Path, change) -> None:
    tensors = load_file(folder / "probe.safetensors")
    change(tensors)
    save_file(tensors, folder / "probe.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "probe.safetensors").unlink(), "probe.safetensors cannot be read"),
        (lambda folder: (folder / "probe.safetensors").write_bytes(b"x"), "probe.safetensors cannot be read"),
        (lambda folder: change_probe(folder, lambda probe: probe.pop("outputs")), "holds no 'outputs'"),
        (lambda folder: change_probe(folder, lambda probe: probe.pop("input_ids")), "cannot answer the bundle's probe"),
        (lambda folder: change_probe(folder, lambda probe: probe["input_ids"].fill_(10**6)), "cannot answer"),
        (lambda folder: change_probe(folder, lambda p: p.update(outputs=torch.zeros(1))), r"shape \[2, 32\]; recorded"),
    ],
    ids=["missing", "damaged", "no outputs", "no inputs", "unknown token", "shape"],
)
def test_a_bundle_without_a_usable_probe_is_refused(bundle, damage, message):
    damage(bundle)
    write_manifest(bundle)
    with pytest.raises(VerificationError, match=message):
        inspect(bundle)


def test_checking_a_broken_bundle_prints_one_line(bundle):
    change_json(bundle / "manifest.json", lambda manifest: manifest.pop("files"))
    done = subprocess.run(
        [sys.executable, "-m", "client.load", str(bundle)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_verifying_works_from_any_folder(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert max(verify(bundle).differences.values()) <= 1e-5


def test_a_clean_process_that_fails_is_logged_whole(bundle, caplog):
    (bundle / "modeling_neuroprune.py").write_text("raise ImportError('first')\n")
    write_manifest(bundle)
    with pytest.raises(VerificationError, match="ImportError: first"):
        verify(bundle)
    assert "Traceback" in caplog.text


def test_a_clean_process_that_hangs_is_ended(bundle, monkeypatch):
    monkeypatch.setattr(verification, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(VerificationError, match=r"within 0\.2 seconds"):
        verify(bundle)


def test_the_probe_holds_what_a_batch_does(bundle):
    assert set(load_file(bundle / "probe.safetensors")) == {*inputs(), "outputs"}


def test_a_bundle_of_format_1_still_loads():
    """One that version 0.1.0 wrote, when a layer had one attention and one MLP."""
    assert inspect(ROOT / "tests/data/bundle_format_1")["max_abs_difference"] <= 1e-5


@pytest.mark.parametrize(
    ("status", "words", "kills", "expected"),
    [
        (-signal.SIGKILL, "", [3, 4], OutOfMemoryError),
        (-signal.SIGKILL, "", [3, 3], VerificationError),
        (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory: 9 bytes", [3, 3], OutOfMemoryError),
        (1, "MemoryError", [3, 3], OutOfMemoryError),
        (1, "KeyError: 'x'", [3, 4], VerificationError),
    ],
)
def test_memory_that_is_full_while_verifying_is_not_the_bundles_fault(
    status, words, kills, expected, tmp_path, monkeypatch
):
    done = subprocess.CompletedProcess([], status, "", words)
    monkeypatch.setattr(verification, "_in_clean_process", lambda *_: done)
    monkeypatch.setattr(verification, "kills_for_memory", partial(next, iter(kills)))
    with pytest.raises(expected):
        verify(tmp_path)


def test_a_disk_that_is_full_while_verifying_is_not_the_bundles_fault(tmp_path, monkeypatch):
    full = subprocess.CompletedProcess(
        [], 1, "", "Traceback …\nOSError: [Errno 28] No space left on device: 'a' -> 'b'\n"
    )
    monkeypatch.setattr(verification, "_in_clean_process", lambda *_: full)
    with pytest.raises(StorageFullError, match="while verifying"):
        verify(tmp_path)
