"""What is left of a machine, and what a job will take of it."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from core import resources
from core.engine import footprint as module
from core.engine.footprint import Footprint, activation_bytes, check_fits, footprint
from core.errors import OutOfGpuMemoryError, OutOfMemoryError, StorageFullError
from core.jobs.defaults import resolve
from tests import tiny
from tests.specs import demo_spec

GIB = 2**30
SHAPES = {"a.weight": (1000, 500), "a.bias": (1000,)}
WEIGHTS = 4 * 501_000


def test_training_takes_weights_gradients_moments_and_a_teacher():
    spec = resolve(demo_spec(export={"formats": ["safetensors"]}))
    config = tiny.bert_config()
    needed = footprint(SHAPES, config, spec, 16)
    activations = activation_bytes(config, spec.training.per_device_train_batch_size, 16)
    assert needed.weights == WEIGHTS
    assert needed.training == 5 * WEIGHTS + activations
    assert needed.disk == 6 * WEIGHTS


def test_more_formats_take_more_disk():
    plain, onnx = (
        footprint(SHAPES, tiny.bert_config(), resolve(demo_spec(export={"formats": formats})), 16)
        for formats in (["safetensors"], ["safetensors", "onnx"])
    )
    assert onnx.disk - plain.disk == 2 * WEIGHTS


def test_one_shot_methods_take_no_gradients():
    spec = resolve(demo_spec(method={"name": "wanda"}))
    assert footprint(SHAPES, tiny.bert_config(), spec, 16).training == 2 * WEIGHTS


def test_activations_grow_as_the_formula_says():
    config = tiny.bert_config()
    once = activation_bytes(config, 1, 16)
    hidden, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    assert once == 2 * layers * 16 * hidden * (34 + 5 * heads * 16 / hidden)
    assert activation_bytes(config, 8, 16) == 8 * once
    assert activation_bytes(config, 1, 32) > 2 * once


@pytest.fixture
def machine(monkeypatch):
    """4 GiB of memory and of disk are free."""
    monkeypatch.setattr(module, "available_memory", lambda: 4 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * GIB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return monkeypatch


def test_what_fits_is_let_through(machine, tmp_path):
    check_fits(Footprint(weights=GIB, training=4 * GIB, disk=4 * GIB), tmp_path)


@pytest.mark.parametrize(
    ("needed", "error", "text"),
    [
        (Footprint(GIB, 5 * GIB, 0), OutOfMemoryError, "5.0 GiB of memory; the worker has 4.0 GiB"),
        (Footprint(GIB, GIB, 5 * GIB), StorageFullError, "5.0 GiB of disk"),
    ],
)
def test_what_does_not_fit_is_refused(machine, tmp_path, needed, error, text):
    with pytest.raises(error, match=text):
        check_fits(needed, tmp_path)


def test_a_gpu_holds_what_is_trained(machine, tmp_path):
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "mem_get_info", lambda: (8 * GIB, 16 * GIB))
    check_fits(Footprint(weights=GIB, training=8 * GIB, disk=0), tmp_path)
    with pytest.raises(OutOfGpuMemoryError, match=r"GPU memory; the worker has 8\.0 GiB free"):
        check_fits(Footprint(weights=GIB, training=9 * GIB, disk=0), tmp_path)
    with pytest.raises(OutOfMemoryError, match=r"6\.0 GiB of memory"):
        check_fits(Footprint(weights=3 * GIB, training=8 * GIB, disk=0), tmp_path)


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """Files in place of the kernel's."""
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 5000 kB\n")
    (tmp_path / "vmstat").write_text("pgfault 7\noom_kill 3\n")
    monkeypatch.setattr(resources, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(resources, "_VMSTAT", tmp_path / "vmstat")
    monkeypatch.setattr(resources, "_CGROUP", tmp_path)
    return tmp_path


def test_a_container_may_have_less_than_its_machine(kernel):
    assert resources.available_memory() == 5000 * 1024
    (kernel / "memory.current").write_text("3000")
    (kernel / "memory.stat").write_text("anon 2000\ninactive_file 500\n")
    (kernel / "memory.max").write_text("max")
    assert resources.available_memory() == 5000 * 1024
    (kernel / "memory.max").write_text("4000")
    assert resources.available_memory() == 1500


def test_where_the_kernel_says_nothing_nothing_is_known(kernel):
    (kernel / "meminfo").unlink()
    assert resources.available_memory() is None


def test_kills_are_counted_in_the_container_first(kernel):
    assert resources.kills_for_memory() == 3
    (kernel / "memory.events").write_text("oom 9\noom_kill 1\n")
    assert resources.kills_for_memory() == 1


def test_a_folder_is_as_large_as_its_files(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    empty = resources.folder_bytes(tmp_path)
    (tmp_path / "a" / "b" / "file").write_bytes(bytes(1000))
    (tmp_path / "dangling").symlink_to("nowhere")
    assert 1000 <= resources.folder_bytes(tmp_path) - empty < 1100
