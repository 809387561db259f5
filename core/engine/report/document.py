"""`report.json`: everything measured, with units; and its summary, which the job itself shows."""

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from core.catalog import METHODS
from core.engine.anatomy import count_parameters
from core.engine.measure import LATENCY_BATCH, THROUGHPUT_BATCH, Performance
from core.engine.report.target import describe_target
from core.engine.tasks import TASKS, Metric
from core.engine.training import uses_bf16
from core.jobs.sources import BuiltinModel
from core.jobs.spec import JobSpec

REPORT_FORMAT = 2


@dataclass(frozen=True)
class Measured:
    """What the pipeline found out."""

    baseline: dict[str, Metric]
    pruned: dict[str, Metric]
    dense: PreTrainedModel
    model: PreTrainedModel
    dtype: torch.dtype
    """What both are saved in; they were measured in fp32."""
    encoder_parameters_dense: int
    encoder_parameters_pruned: int
    zeros_dense: int
    """Weights of the dense model's transformer layers that are zero."""
    masked_parameters: int
    """Of heads, neurons and in-rows that were pruned, whether they left the weights or stayed as zeros."""
    performance: Performance
    compressed_bytes: int | None
    """Of the weights, where the bundle holds them compressed as well."""
    peak_memory_bytes: dict[str, dict[str, int]]
    differences: dict[str, float]
    """Largest of the outputs, by the way the bundle was loaded."""
    tolerated: dict[str, float]
    """The largest that would have been delivered."""
    structure: list[dict[str, Any]]
    topology: dict[str, Any]
    train_rows: int
    held_out_rows: int
    seconds: dict[str, float]
    target_facts: dict[str, Any]
    """What the way to the target tells of it."""


def undefined_metrics(measured: Measured) -> list[str]:
    """Those that are not finite, of the dense or the pruned model, by name."""
    sides = measured.baseline, measured.pruned
    return sorted(name for name in measured.baseline if not all(isfinite(side[name].value) for side in sides))


def build_report(spec: JobSpec, model_name: str, measured: Measured, warnings: list[str]) -> dict[str, Any]:
    """The report of a finished bundle, as plain JSON types; metrics that are not finite are left out."""
    encoder = {"dense": measured.encoder_parameters_dense, "pruned": measured.encoder_parameters_pruned}
    task = TASKS[spec.task.name]
    report = {
        "format": REPORT_FORMAT,
        "model": {
            "name": spec.model.name if isinstance(spec.model, BuiltinModel) else model_name,
            "architecture": type(measured.dense).__name__,
            "dtype": str(measured.dtype).removeprefix("torch."),
            "auto_class": task.auto_class.__name__,
            "processor_class": "AutoImageProcessor" if task.reads_images else "AutoTokenizer",
        },
        "task": {
            "name": spec.task.name,
            "train_rows": measured.train_rows,
            "held_out_rows": measured.held_out_rows,
        },
        "method": {
            "name": spec.method.name,
            "paper": next(m.paper for m in METHODS if m.name == spec.method.name),
            "options": spec.method.model_dump(mode="json", exclude={"name"}),
        },
        "structure": spec.structure,
        "sparsity": _sparsity(measured),
        "headline_metric": spec.task.metric,
        "metrics": {
            name: {
                "dense": metric.value,
                "pruned": measured.pruned[name].value,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
            }
            for name, metric in _headline_first(measured.baseline, spec.task.metric)
            if name not in undefined_metrics(measured)
        },
        "parameters": {
            "encoder": encoder,
            "total": {"dense": count_parameters(measured.dense), "pruned": count_parameters(measured.model)},
        },
        **_performance(measured),
        "verification": {"largest_absolute_difference": measured.differences, "tolerated": measured.tolerated},
        "layers": measured.structure,
        "topology": measured.topology,
        "warnings": list(warnings),
        "seconds": measured.seconds,
        "spec": spec.model_dump(mode="json"),
        "environment": environment_of(spec),
    }
    return report | {"target": describe_target(spec.target, report) | measured.target_facts}


def summary_of(report: dict[str, Any]) -> dict[str, Any]:
    """The part of a report that `GET /v1/jobs/{id}` carries."""
    keys = (
        "headline_metric",
        "metrics",
        "parameters",
        "size_bytes",
        "latency_ms",
        "latency_setting",
        "throughput_sequences_per_second",
        "throughput_setting",
        "flops",
        "flops_setting",
        "peak_memory_bytes",
        "peak_memory_setting",
        "sparsity",
        "frontier",
        "target",
        "seconds",
    )
    return {key: report[key] for key in keys if key in report}


def write_report(report: dict[str, Any], output: Path) -> None:
    """Write `report.json`."""
    (output / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")


def _headline_first(metrics: dict[str, Metric], headline: str | None) -> list[tuple[str, Metric]]:
    """Metrics by name; the others stay in their order."""
    return sorted(metrics.items(), key=lambda item: item[0] != headline)


def _sparsity(measured: Measured) -> dict[str, float]:
    """Shares of the transformer layers' parameters, 0 … 1, that are gone, one way or the other.

    `removed` left the weights; `zero` is still there, and includes what was zero in the dense model. Both together are
    `achieved`. `zero_in_dense` is what was zero before.
    """
    dense = measured.encoder_parameters_dense
    removed = dense - measured.encoder_parameters_pruned
    zero = sum(layer["zero_weights_in_kept"] for layer in measured.structure) + measured.masked_parameters - removed
    return {
        "achieved": (removed + zero) / dense,
        "removed": removed / dense,
        "zero": zero / dense,
        "zero_in_dense": measured.zeros_dense / dense,
    }


def _performance(measured: Measured) -> dict[str, Any]:
    """What the models cost to run, each figure beside its setting: full rows of `length` tokens, or images."""
    performance = measured.performance
    length = {} if performance.length is None else {"length": performance.length}
    one, many = ({"batch": batch, **length} for batch in (LATENCY_BATCH, THROUGHPUT_BATCH))
    threads = {"threads": performance.threads}
    compressed = {} if measured.compressed_bytes is None else {"compressed": measured.compressed_bytes}
    return {
        "size_bytes": performance.size_bytes | compressed,
        "latency_ms": performance.latency_as_dict(),
        "latency_setting": one | threads,
        "throughput_sequences_per_second": performance.throughput,
        "throughput_setting": many | threads,
        "flops": performance.flops,
        "flops_setting": one,
        "peak_memory_bytes": measured.peak_memory_bytes | performance.gpu_memory_bytes,
        "peak_memory_setting": many,
    }


def environment_of(spec: JobSpec) -> dict[str, Any]:
    """Where and with what a job ran."""
    packages = ("torch", "transformers", "onnxruntime", "safetensors")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "training_precision": "bf16" if uses_bf16(spec.training) else "fp32",
        **{name: version(name) for name in packages},
    }
