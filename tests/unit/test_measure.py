"""What a model costs to run, by hand: the order of calls, operations, bytes."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch

from core.engine import measure, memory
from core.engine.anatomy import bind
from core.engine.compact import compact
from core.engine.plan import Plan
from core.engine.tasks import TASKS
from tests import tiny, tiny_families

TASK = TASKS["sentence-embedding"]
MEGABYTE = 1_000_000
SIDES = ("dense", "pruned")


@pytest.mark.parametrize(("rounds", "seconds", "counted"), [(5, 1e9, 5), (5, 0.0, measure.LEAST_ROUNDS), (2, 0.0, 2)])
def test_calls_take_turns_after_warming_up(rounds, seconds, counted):
    called = []
    runs = {name: lambda name=name: called.append(name) for name in ("dense", "pruned")}
    found = measure.interleave(runs, rounds, seconds)
    assert called == ["dense", "pruned"] * (measure.WARM_UP + counted)
    assert {latency.calls for latency in found.values()} == {counted}


@pytest.fixture
def clock(monkeypatch):
    """Stands still but for what a test adds to `now`, in seconds."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_warming_up_is_not_in_the_milliseconds_of_a_call(clock):
    seconds = iter([5.0] * measure.WARM_UP + [0.001, 0.002, 0.004])
    found = measure.interleave({"dense": lambda: setattr(clock, "now", clock.now + next(seconds))}, 3)["dense"]
    assert (found.median, found.p10, found.p90) == pytest.approx((2.0, 1.2, 3.6))


def test_speed_and_throughput_are_those_of_the_clock(clock, tmp_path):
    """A row takes the dense model 4 ms, the pruned one 1 ms."""
    sides = {name: measure.Side(tiny.bert(), tmp_path) for name in SIDES}
    a_row = {sides["dense"].model: 0.004, sides["pruned"].model: 0.001}

    def outputs(model, batch):
        clock.now += a_row[model] * len(batch["input_ids"])

    task, example = SimpleNamespace(outputs=outputs), {"input_ids": torch.ones(2, 5, dtype=torch.long)}
    found = measure.measure(task, sides, example)
    latency = {name: side.median for name, side in found.latency_ms["torch"].items()}
    assert latency == pytest.approx({"dense": 4.0, "pruned": 1.0})
    assert found.throughput["torch"] == pytest.approx({"dense": 250.0, "pruned": 1000.0})
    assert measure.speedup(task, sides, example, "torch") == pytest.approx(4.0)


def test_the_speed_of_a_model_that_reads_images_is_taken_too(tmp_path):
    sides = {name: measure.Side(tiny_families.model("vit", "image-classification"), tmp_path) for name in SIDES}
    images = torch.rand(2, 3, *[sides["dense"].model.config.image_size] * 2)
    assert measure.speedup(TASKS["image-classification"], sides, {"pixel_values": images}, "torch") > 0


def test_full_rows_are_as_long_as_the_model_takes():
    batch = measure.full_batch(("input_ids", "attention_mask", "token_type_ids"), tiny.bert_config(), 3)
    assert {tensor.shape for tensor in batch.values()} == {(3, 64)}
    assert bool((batch["attention_mask"] == 1).all() & (batch["token_type_ids"] == 0).all())


@pytest.mark.parametrize(
    "special",
    [
        {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
        {"pad_token_id": None, "bos_token_id": -1, "eos_token_id": [25, 26], "decoder_start_token_id": 99},
        dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    ],
)
def test_full_rows_hold_all_tokens_but_special_ones_and_the_same_every_time(special):
    """Whatever configs say: no such token, several, or one that the vocabulary lacks."""
    config = tiny_families.model("t5", "seq2seq").config
    config.decoder_start_token_id = None
    for name, value in special.items():
        setattr(config, name, value)
    batch, again = (measure.full_batch(("input_ids", "decoder_input_ids"), config, 8) for _ in range(2))
    without = {token for value in special.values() for token in (value if isinstance(value, list) else [value])}
    for name, tokens in batch.items():
        assert set(tokens.unique().tolist()) == set(range(tiny.VOCABULARY)) - without
        assert torch.equal(tokens, again[name])
    assert not torch.equal(*batch.values())


def test_a_full_row_passes_through_as_many_experts_as_a_text():
    """All tokens alike would pass through the same two of three."""
    model = tiny_families.model("mixtral", "causal-lm")
    chosen = []
    for layer in bind(model).layers:
        layer.mixture.router.register_forward_hook(lambda *found: chosen.append(len(found[-1][2].unique())))
    with torch.inference_mode():
        TASKS["causal-lm"].outputs(model, measure.full_batch(("input_ids", "attention_mask"), model.config, 1))
    assert chosen == [3, 3, 3]


def bert_flops(length: int, heads: int, neurons: int) -> int:
    """Of three layers with 32 hidden dimensions and heads of 8, one row, and the pooler after them."""
    width = 8 * heads
    projections = length * (4 * 32 * width + 2 * 32 * neurons)
    attention = 2 * length * length * width
    return 2 * (3 * (projections + attention) + 32 * 32)


def test_operations_are_those_of_the_products():
    model = tiny.bert()
    batch = measure.full_batch(("input_ids", "attention_mask"), model.config, 1)

    def flops() -> int:
        with torch.inference_mode():
            return measure.count_flops(model, lambda: TASK.outputs(model, batch))

    assert flops() == bert_flops(64, 4, 64)
    kept = ((0, 2, 3), tuple(range(10)), tuple(range(32)))
    compact(bind(model), Plan(kept * 3))
    assert flops() == bert_flops(64, 3, 10)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_operations_of_experts_are_those_of_the_two_that_a_token_passes_through():
    """Of three layers with 32 hidden dimensions, 8 query and 4 key-value heads of 8, and 3 experts of 48 neurons."""
    model, task, length = tiny_families.model("mixtral", "causal-lm"), TASKS["causal-lm"], 64
    batch = measure.full_batch(("input_ids", "attention_mask"), model.config, 1)
    with torch.inference_mode():
        found = measure.count_flops(model, lambda: task.outputs(model, batch))
    attention = length * 32 * (2 * 64 + 2 * 32) + 2 * length * length * 64
    experts = length * (32 * 3 + 2 * 3 * 32 * 48)
    assert found == 2 * (3 * (attention + experts) + length * 32 * tiny.VOCABULARY)


def test_size_is_that_of_the_weights(tmp_path):
    for name, size in (("model.safetensors", 5), ("model-00001-of-00002.safetensors", 7), ("probe.safetensors", 11)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert measure.saved_bytes(tmp_path) == 12


@pytest.mark.skipif(not memory.available(), reason="resident memory is measured on Linux")
def test_peak_memory_is_that_of_running(monkeypatch):
    """40 MB of weights and 60 MB on the way; what loading took in passing, 200 MB, does not count."""
    # As in use, in a process of its own: what earlier tests freed would hold the weights here, and not be seen.
    for name, value in memory.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with ProcessPoolExecutor(1, get_context("spawn")) as clean:
        # What torch itself needs is there after the first time.
        _, peak = [clean.submit(memory.peak, load_weights).result() for _ in range(2)]
    assert peak == pytest.approx(100 * MEGABYTE, abs=2 * MEGABYTE)


def load_weights() -> Callable[[], float]:
    torch.ones(50 * MEGABYTE)
    weights = torch.ones(10 * MEGABYTE)
    return lambda: float(torch.ones(15 * MEGABYTE)[0] + weights[0])
