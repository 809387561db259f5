"""Every family: each unit is found, masking equals removing, a ragged bundle loads everywhere and agrees.

All from tiny random models whose biases and norms are random too.
"""

import json
import random
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, GenerationMixin, PreTrainedModel, dynamic_module_utils

from client.load import load
from core.engine.anatomy import bind, count_parameters
from core.engine.compact import compact
from core.engine.export.bundle import write_manifest, write_model, write_probe
from core.engine.export.onnx import export_onnx, open_session, run_session
from core.engine.measure import count_flops
from core.engine.methods.neuroprune.redundancy import hand_over_, representatives
from core.engine.plan import Masks, Plan
from core.engine.tasks import TASKS
from core.engine.units import Units
from core.engine.verify import TOLERANCE, differences, inspect, verify
from core.errors import UnknownFamilyError, VerificationError
from core.families import FAMILIES, family_of
from core.family import Family
from core.jobs.spec import Training
from tests import tiny_families, tiny_tasks
from tests.tiny_tasks import TINY_TASKS


@dataclass(frozen=True)
class Case:
    """A family, or a kind of it, and the task it is tried with."""

    family: str
    task: str

    def model(self) -> PreTrainedModel:
        return tiny_families.model(self.family, self.task)


THOROUGHLY_TRIED = ("bert", "llama")
"""One family of either kind, for what takes long and depends on the task more than on the family."""


def tasks_of(family: Family, kind: str) -> tuple[str, ...]:
    """With what a kind of a family is tried: a task for each class of models; further kinds with one in all."""
    tasks = family.tasks or (tiny_families.TRIED[family.model_type],)
    if kind != family.model_type:
        return tasks[:1]
    if kind in THOROUGHLY_TRIED:
        return tasks
    by_class: dict[type, str] = {}
    for task in tasks:
        by_class.setdefault((TASKS | TINY_TASKS)[task].auto_class, task)
    return tuple(by_class.values())


CASES = [
    Case(kind, task)
    for family in FAMILIES
    for kind in tiny_families.kinds(family.model_type)
    for task in tasks_of(family, kind)
]
"""All that the table claims, and families that serve no task yet."""

FIRST = [case for index, case in enumerate(CASES) if case.family not in {other.family for other in CASES[:index]}]
THOROUGH = [case for case in CASES if case.family in THOROUGHLY_TRIED]

EXPORTED_AT_ONCE = ("bert", "gpt2", "llama", "mixtral", "t5")
"""An encoder, a decoder with fused projections, one with gates and grouped queries, one with experts, and an
encoder-decoder: the exporter takes ten seconds for each. An image model is exported in a whole job.
"""

LAYERS = 3
"""Of every stack."""


def each(cases: list[Case], at_once: Container[Case] | None = None) -> pytest.MarkDecorator:
    """A test for each case; those that are not tried at once are left to `make thorough`."""
    rest = [pytest.mark.thorough]
    marked = [pytest.param(case, marks=() if at_once is None or case in at_once else rest) for case in cases]
    return pytest.mark.parametrize("case", marked, ids=[f"{case.family}-{case.task}" for case in cases])


DELIVERED = Path(__file__).parents[1] / "data" / "bundle_format_1"

every_case = each(CASES)
every_family = each(FIRST)
every_decoder = each([case for case in CASES if case.task == "causal-lm"])
every_encoder_decoder = each([case for case in CASES if case.task in tiny_tasks.OF_ENCODER_DECODERS])


@pytest.fixture(autouse=True)
def all_tasks(monkeypatch):
    """Bundles can be made for what the service has no task for yet."""
    for name, task in TINY_TASKS.items():
        monkeypatch.setitem(TASKS, name, task)


def inputs(task: str = "causal-lm", rows: int = 2, tokens: int = 10) -> dict[str, torch.Tensor]:
    return tiny_tasks.inputs(task, rows, tokens)


def outputs(case: Case, model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return TASKS[case.task].outputs(model, inputs(case.task))


def plan_of(model: PreTrainedModel, keeps: Callable[[Units, int], bool]) -> Plan:
    """Keep those of all units of which `keeps` says so, but none of an expert that goes."""
    found = bind(model).units
    gone = {member.position for units in found for i, member in enumerate(units.members) if not keeps(units, i)}
    kept = (units.count if units.position not in gone else 0 for units in found)
    pairs = zip(found, kept, strict=True)
    return Plan(tuple(tuple(filter(partial(keeps, units), range(count))) for units, count in pairs))


def ragged_plan(model: PreTrainedModel) -> Plan:
    """In turn layers without heads, without neurons, with some of each; without some in-rows, but for the second.

    Of experts, first some are left, then fewer than a token passes through, then all.
    """

    def keeps(units: Units, i: int) -> bool:
        match units.kind, units.layer % 3:
            case "heads", turn:
                return i in ((), (1, 3), (0, 1, 2))[turn]
            case "neurons", turn:
                return (i > units.position, False, i % 3 > 0)[turn]
            case "experts", turn:
                return i in ((0, 2), (1,), (0, 1, 2))[turn]
            case _, turn:
                return (i > 4, True, i % 4 != 1)[turn]

    return plan_of(model, keeps)


def masked(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    anatomy = bind(model)
    masks = Masks(anatomy)
    for position, units in enumerate(anatomy.units):
        removed = sorted(set(range(units.count)) - set(plan.kept(units)))
        masks.remove(position, torch.tensor(removed, dtype=torch.long))
    assert masks.plan() == plan
    return model


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(UnknownFamilyError, match=r"'gpt9' is not supported; known are: bert, .*gptj, [a-z0-9_, -]*\."):
        family_of("gpt9")


def test_families_that_are_exported_at_once_are_in_the_table():
    assert set(EXPORTED_AT_ONCE) <= {case.family for case in FIRST}


@every_case
def test_all_units_are_found(case):
    """What belongs to no unit is a norm's, a table of positions, or the bias of an output."""
    anatomy = bind(case.model())
    in_units = {id(part.parameter) for units in anatomy.units for part in units.slices}
    outputs = {id(part.output.module) for layer in anatomy.layers for part in layer.parts}
    rest = 0
    for module in anatomy.stack.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in in_units:
                is_outputs = name == "bias" and id(module) in outputs
                assert is_outputs or "Norm" in type(module).__name__ or isinstance(module, torch.nn.Embedding)
                rest += parameter.numel()
    assert anatomy.removable_parameters + rest == anatomy.encoder_parameters
    assert {attention.groups for attention in anatomy.attentions} == {4}
    assert {mlp.units.count for mlp in anatomy.mlps} == {48}


@every_case
def test_masking_unit_by_unit_equals_removing(case):
    count = len(bind(case.model()).units)
    generator = random.Random(0)
    for position in range(count):
        model = case.model()
        anatomy = bind(model)
        units = anatomy.units[position]
        for unit in generator.sample(range(units.count), min(3, units.count)):
            model = case.model()
            anatomy = bind(model)
            masks = Masks(anatomy)
            masks.remove(position, torch.tensor([unit]))
            expected = outputs(case, model)
            before = anatomy.encoder_parameters
            compact(anatomy, masks.plan())
            assert float((outputs(case, model) - expected).abs().max()) <= 1e-5
            members = sum(member.count * member.cost for member in units.members[unit : unit + 1])
            assert bind(model).encoder_parameters == before - units.cost - members


@every_family
def test_a_head_for_which_another_stands_leaves_the_model_as_it_was(case):
    """Heads with the same weights are the same but for a bias of their own."""
    model = case.model()
    anatomy = bind(model)
    with torch.no_grad():
        for attention in anatomy.attentions:
            for part in attention.units.reads:
                part.values[0] = part.values[1]
    before, masks = outputs(case, model), Masks(anatomy)
    for attention in anatomy.attentions:
        standing = int(representatives(attention, masks.kept(attention.units.position), theta=0.0)[0])
        if standing != 0:
            hand_over_(attention, 0, standing)
            masks.remove(attention.units.position, torch.tensor([0]))
    torch.testing.assert_close(outputs(case, model), before, rtol=1e-4, atol=1e-4)


@every_case
def test_removing_the_neighbour_instead_shows(case):
    """The control: were the indices off by one, the test above would fail."""
    anatomy = bind(case.model())
    firsts = (0, len(anatomy.layers) - LAYERS)
    for units in anatomy.units:
        if units.layer not in firsts or not units.count:
            continue
        model, other, removed = case.model(), case.model(), torch.arange(1, units.count - 1, 4)
        masks = Masks(bind(model))
        masks.remove(units.position, removed)
        neighbour = Masks(bind(other))
        neighbour.remove(units.position, removed + 1)
        compact(bind(other), neighbour.plan())
        assert float((outputs(case, model) - outputs(case, other)).abs().max()) > 1e-4


@pytest.fixture
def modules_cache(tmp_path, monkeypatch):
    """Where transformers puts the code of bundles that this test loads."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def check_agreement(case: Case, folder: Path, ways: set[str], *, onnx: bool) -> None:
    """A ragged bundle in this folder answers as the masked model does, whichever of these ways it is loaded."""
    model = case.model()
    plan = ragged_plan(model)
    expected = outputs(case, masked(model, plan))
    compact(bind(model), plan)
    write_bundle(case, model, expected, folder)
    if onnx:
        export_onnx(TASKS[case.task], model, inputs(case.task), folder / "model.onnx")
        write_manifest(folder)
        check_other_shapes(case, model, folder / "model.onnx")
    found = differences(folder)
    assert set(found) == ways
    assert {way for way in ways if not found[way] <= TOLERANCE[way]} == set()
    assert inspect(folder)["total_parameters"] == count_parameters(model)


def check_other_shapes(case: Case, model: PreTrainedModel, path: Path) -> None:
    """The graph takes more rows, and longer ones, than it was exported with."""
    other = inputs(case.task, rows=3, tokens=13)
    with torch.no_grad():
        expected = TASKS[case.task].outputs(model, other)
    found = run_session(open_session(path, threads=1), other)
    assert float((found - expected).abs().max()) <= TOLERANCE["onnx"]


@every_case
def test_a_ragged_bundle_with_emptied_layers_loads_and_agrees(case, tmp_path, modules_cache):
    check_agreement(case, tmp_path / "bundle", {"loader", "auto_class"}, onnx=False)


def test_a_bundle_of_an_image_model_prepares_images_as_the_model_did(tmp_path):
    case = Case("vit", "image-classification")
    model = case.model()
    compact(bind(model), ragged_plan(model))
    folder = write_bundle(case, model, outputs(case, model), tmp_path)
    image = torch.randint(256, (9, 14, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    ours, expected = AutoImageProcessor.from_pretrained(folder), tiny_tasks.processor(case.task)
    torch.testing.assert_close(*(prepare(image, return_tensors="pt")["pixel_values"] for prepare in (ours, expected)))


@each(
    [case for case in dict.fromkeys([*FIRST, *THOROUGH]) if not case.family.startswith("qwen3_moe")],
    at_once=[case for case in FIRST if case.family in EXPORTED_AT_ONCE],
)
def test_a_ragged_bundle_with_emptied_layers_runs_in_onnx_runtime(case, tmp_path, modules_cache):
    check_agreement(case, tmp_path / "bundle", {"loader", "auto_class", "onnx"}, onnx=True)


@every_case
def test_operations_are_counted_whichever_layers_are_empty(case):
    def flops(model: PreTrainedModel) -> int:
        with torch.inference_mode():
            return count_flops(model, lambda: TASKS[case.task].outputs(model, inputs(case.task)))

    model = case.model()
    dense = flops(model)
    compact(bind(model), ragged_plan(model))
    assert 0 < flops(model) < dense


@every_decoder
def test_generation_with_cache_equals_generation_without(case):
    model = case.model()
    compact(bind(model), ragged_plan(model))
    prompt = inputs()["input_ids"][:1]
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert model.generate(prompt, use_cache=True, **options).tolist() == (
        model.generate(prompt, use_cache=False, **options).tolist()
    )


def emptied(model: PreTrainedModel, layer: int) -> Plan:
    """One layer without heads, the others whole but for a head, a few neurons and in-rows."""

    def keeps(units: Units, i: int) -> bool:
        if units.kind == "heads":
            return units.layer != layer and i != 2
        if units.kind == "experts":
            return i != units.layer
        return i < 40 if units.kind == "neurons" else i % 2 == 0

    return plan_of(model, keeps)


@every_decoder
@pytest.mark.parametrize("layer", range(3))
def test_padded_generation_equals_the_masked_models_whichever_layer_lost_its_heads(case, layer):
    model = case.model()
    plan = emptied(model, layer)
    reference = masked(case.model(), plan)
    compact(bind(model), plan)
    ids = inputs()["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {
        "attention_mask": mask,
        "max_new_tokens": 10,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    found, expected = model.generate(ids, **options), reference.generate(ids, **options)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert float((torch.stack(found.logits) - torch.stack(expected.logits)).abs().max()) <= 1e-5


@every_decoder
@pytest.mark.parametrize("layer", range(3))
def test_continuing_from_a_cache_equals_reading_the_whole(case, layer):
    model, ids = case.model(), inputs()["input_ids"]
    compact(bind(model), emptied(model, layer))
    with torch.no_grad():
        expected = model(ids).logits
        begun = model(ids[:, :6], use_cache=True)
        assert begun.past_key_values.get_seq_length() == 6
        rest = model(ids[:, 6:], past_key_values=begun.past_key_values).logits
    assert float((rest - expected[:, 6:]).abs().max()) <= 1e-5


@every_encoder_decoder
@pytest.mark.parametrize("beams", [1, 3])
def test_a_pruned_decoder_writes_what_the_masked_one_does(case, beams):
    """With and without a cache, whichever decoder layer lost its heads."""
    given = inputs(case.task)
    del given["decoder_input_ids"]
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": beams, **given}
    for layer in range(LAYERS, 2 * LAYERS):
        model = case.model()
        plan = emptied(model, layer)
        expected = GenerationMixin.generate(masked(case.model(), plan), **options)
        compact(bind(model), plan)
        for use_cache in (True, False):
            assert torch.equal(GenerationMixin.generate(model, use_cache=use_cache, **options), expected)


@every_encoder_decoder
@pytest.mark.parametrize("layer", range(LAYERS, 2 * LAYERS))
def test_a_decoder_continues_from_a_cache(case, layer):
    model, given = case.model(), inputs(case.task)
    compact(bind(model), emptied(model, layer))
    ids = given.pop("decoder_input_ids")
    with torch.no_grad():
        expected = model(**given, decoder_input_ids=ids).logits
        begun = model(**given, decoder_input_ids=ids[:, :6], use_cache=True)
        assert begun.past_key_values.get_seq_length() == 6
        rest = model(**given, decoder_input_ids=ids[:, 6:], past_key_values=begun.past_key_values).logits
    assert float((rest - expected[:, 6:]).abs().max()) <= 1e-5


def write_bundle(case: Case, model: PreTrainedModel, expected: torch.Tensor, folder: Path) -> Path:
    processor = tiny_tasks.processor(case.task)
    task = TASKS[case.task](None, Training(), processor)
    write_model(model, processor, task, folder, torch.float32)
    write_probe(type(task), inputs(case.task), expected, folder)
    write_manifest(folder)
    return folder


@pytest.fixture
def bundle(tmp_path) -> Path:
    case = CASES[0]
    model = case.model()
    plan = ragged_plan(model)
    expected = outputs(case, masked(model, plan))
    compact(bind(model), plan)
    return write_bundle(case, model, expected, tmp_path)


def test_a_bundle_holds_no_pickle(bundle):
    assert {path.suffix for path in bundle.iterdir()} <= {".json", ".safetensors", ".py", ".txt", ".jinja"}


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", lambda data: data[:-8], "not the file that was delivered"),
        ("model.safetensors", lambda data: data[:-1] + b"x", "not the file that was delivered"),
        ("config.json", lambda data: data + b" ", "not the file that was delivered"),
        ("manifest.json", lambda data: b"{", "cannot be read"),
        ("manifest.json", lambda data: data.replace(b'"format": 1', b'"format": 7'), "format 7; this version reads"),
    ],
    ids=["truncated", "altered", "config", "manifest", "format"],
)
def test_a_damaged_bundle_is_refused(bundle, name, damage, message):
    path = bundle / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(VerificationError, match=message):
        load(bundle)


def test_a_missing_file_is_named(bundle):
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(VerificationError, match=r"tokenizer\.json is missing"):
        load(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda neuroprune: neuroprune["layers"][2]["mlps"][0].update(neurons=5),
        lambda neuroprune: neuroprune["layers"].pop(),
        lambda neuroprune: neuroprune.update(format=3),
        lambda neuroprune: neuroprune.update(architecture="BertLMHeadModel"),
        lambda neuroprune: neuroprune.update(architecture="os"),
    ],
    ids=["width", "layers", "format", "other architecture", "no architecture"],
)
def test_a_config_that_disagrees_with_the_weights_is_refused(bundle, change):
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    change(config["neuroprune"])
    path.write_text(json.dumps(config))
    write_manifest(bundle)
    with pytest.raises(VerificationError):
        load(bundle)


def test_a_bundle_that_answers_differently_is_not_delivered(bundle):
    write_probe(TASKS[CASES[0].task], inputs(), torch.zeros(2, 32), bundle)
    write_manifest(bundle)
    with pytest.raises(VerificationError, match="Loaded through loader, the outputs differ by"):
        verify(bundle)


def test_a_bundle_of_version_0_1_0_loads(modules_cache):
    """Format 1 as it was first delivered: a layer without heads, one without neurons, one that reads half."""
    found = differences(DELIVERED)
    assert set(found) == {"loader", "auto_class"}
    assert max(found.values()) <= 1e-5
