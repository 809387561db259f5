"""What is left of a machine, and what a job will take of it."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import BloomConfig

from core import resources
from core.engine import footprint
from core.engine.footprint import activation_bytes, check_disk, check_memory, disk_bytes, training_bytes
from core.errors import OutOfGpuMemoryError, OutOfMemoryError, StorageFullError
from tests import tiny

SHAPES = {"a.weight": (1000, 500), "a.bias": (1000,)}
WEIGHTS = 4 * 501_000


def test_training_takes_weights_gradients_moments_and_a_teacher():
    assert training_bytes(SHAPES, trains=True) == 5 * WEIGHTS


def test_one_shot_methods_take_no_gradients():
    assert training_bytes(SHAPES, trains=False) == 2 * WEIGHTS


def test_disk_is_taken_by_bundles_formats_and_checkpoints():
    assert disk_bytes(SHAPES, torch.float32, ["safetensors"], trains=False) == 2 * WEIGHTS
    assert disk_bytes(SHAPES, torch.float32, ["safetensors"], trains=True) == 6 * WEIGHTS
    assert disk_bytes(SHAPES, torch.float32, ["safetensors", "onnx", "gguf"], trains=False) == 5 * WEIGHTS


def test_activations_grow_as_the_formula_says():
    config = tiny.bert_config()
    once = activation_bytes(config, 1, 16)
    hidden, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    assert once == 2 * layers * 16 * hidden * (34 + 5 * heads * 16 / hidden)
    assert activation_bytes(config, 8, 16) == 8 * once
    assert activation_bytes(config, 1, 32) > 2 * once


def test_attention_matrices_count_only_where_dropout_keeps_them():
    config = tiny.llama_config()
    once, fused = (activation_bytes(config, 1, length) for length in (16, 1024))
    assert fused == 64 * once
    config.attention_dropout = 0.1
    assert activation_bytes(config, 1, 1024) > 10 * fused
    # Of these, transformers has no fused attention.
    bloom = BloomConfig(hidden_size=32, n_layer=3, n_head=8, attention_dropout=0.0)
    assert activation_bytes(bloom, 1, 1024) > 10 * 64 * activation_bytes(bloom, 1, 16)


@pytest.fixture
def machine(monkeypatch):
    """As much memory and disk is free as a small job takes, but no GPU."""
    monkeypatch.setattr(footprint, "available_memory", lambda: 5 * WEIGHTS + FITS)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=6 * WEIGHTS))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return monkeypatch


FITS, TOO_LARGE = (activation_bytes(tiny.bert_config(), batch, 64) for batch in (32, 33))


def test_main_memory_decides_without_a_gpu(machine):
    check_memory(SHAPES, trains=True, activations=FITS)
    with pytest.raises(
        OutOfMemoryError, match=r"about 0\.0 GiB of memory; the worker has .* smaller per_device"
    ) as caught:
        check_memory(SHAPES, trains=True, activations=TOO_LARGE)
    assert caught.value.code == "out_of_memory_host"
    machine.setattr(footprint, "available_memory", lambda: 4 * WEIGHTS + FITS)
    check_memory(SHAPES, trains=True, activations=FITS, is_loaded=True)
    with pytest.raises(OutOfMemoryError):
        check_memory(SHAPES, trains=True, activations=FITS)


def test_a_gpu_holds_what_is_trained(machine):
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "mem_get_info", lambda: (5 * WEIGHTS + FITS, 0))
    machine.setattr(footprint, "available_memory", lambda: 2 * WEIGHTS)
    check_memory(SHAPES, trains=True, activations=FITS)
    with pytest.raises(OutOfGpuMemoryError, match="of GPU memory") as caught:
        check_memory(SHAPES, trains=True, activations=TOO_LARGE)
    assert caught.value.code == "out_of_memory_gpu"
    machine.setattr(footprint, "available_memory", lambda: 2 * WEIGHTS - 1)
    with pytest.raises(OutOfMemoryError, match="of memory"):
        check_memory(SHAPES, trains=True, activations=FITS)


def test_disk_has_to_suffice(machine, tmp_path):
    check_disk(SHAPES, torch.float32, ["safetensors"], tmp_path, trains=True)
    with pytest.raises(StorageFullError, match="Fewer formats"):
        check_disk(SHAPES, torch.float32, ["safetensors", "gguf"], tmp_path, trains=True)


def test_of_models_in_16_bits_less_is_written():
    """The models themselves; checkpoints and other formats are in fp32."""
    whole, half = (disk_bytes(SHAPES, dtype, ["onnx"], trains=True) for dtype in (torch.float32, torch.bfloat16))
    assert (whole, half) == (8 * WEIGHTS, 7 * WEIGHTS)


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


def test_a_folder_that_vanishes_under_the_count_counts_nothing(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    (tmp_path / "stays").mkdir()
    (tmp_path / "stays" / "file").write_bytes(bytes(1000))
    scandir = os.scandir

    def vanishing(path):
        if Path(path).name == "gone":
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert resources.folder_bytes(tmp_path) == 1000
    assert resources.folder_bytes(tmp_path / "gone") == 0
