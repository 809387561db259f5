"""One pruning job, from a spec to a verified bundle.

loading → baseline → pruning → compacting → evaluating → exporting → verifying
"""

import copy
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from core.engine.anatomy import Anatomy, bind
from core.engine.data import Batch, Features, Row, Source, hold_out, python_docs, read_rows, sample
from core.engine.evaluate import HiddenTeacher, Teacher, evaluate
from core.engine.export.bundle import compressed_bytes, write_compressed, write_manifest, write_model, write_probe
from core.engine.export.executorch import check_executorch, export_executorch
from core.engine.export.gguf import check_gguf, export_gguf
from core.engine.export.onnx import export_onnx
from core.engine.generation import mend_generation_config
from core.engine.loading import (
    check_architecture,
    fitting_length,
    load_config,
    load_model,
    load_tokenizer,
    move,
)
from core.engine.measure import Performance, Side, measure
from core.engine.methods import Pruner, Schedule, build_pruner
from core.engine.report.card import model_card
from core.engine.report.document import Measured, build_report, summary_of, write_report
from core.engine.report.plot import STRUCTURE_PLOT, TOPOLOGY_PLOT, plot_structure, plot_topology
from core.engine.report.structure import describe_structure
from core.engine.report.topology import describe_topology
from core.engine.structures import give_structure
from core.engine.tasks import TASKS, Task
from core.engine.tasks.base import model_inputs
from core.engine.tracker import Tracker
from core.engine.training import StepListener, total_steps, train
from core.engine.trial import check_runs, check_vocabulary
from core.engine.verify import TOLERANCE, verify
from core.errors import VerificationError
from core.jobs.spec import BuiltinData, JobSpec, Structure
from core.progress import Reporter, Warned

UNTRAINED_HEAD_EPOCHS = 1.0
"""Plain fine-tuning before pruning where the task head is new and the user said nothing."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where the job's inputs lie on this machine; `train` is None for builtin data."""

    model: Path
    train: Path | None = None
    validation: Path | None = None
    names: Mapping[Path, str] = field(default_factory=dict)
    """What the user calls those that lie here under another name."""

    def source(self, path: Path, param: str) -> Source:
        """Where the rows of a file come from, in the user's terms."""
        return Source(self.names.get(path, path.name), param)


@dataclass(frozen=True)
class Prepared:
    """What is loaded before anything is trained."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    head_is_new: bool
    train: Features
    held_out: Features


def run(spec: JobSpec, inputs: Inputs, output: Path, report: Reporter) -> dict[str, Any]:
    """Do the job and write its bundle into `output`, flat.

    Args:
        spec: A resolved spec.
        inputs: Its inputs, on this machine.
        output: An empty folder.
        report: Told of phases, progress and warnings.

    Returns:
        The summary of the report that belongs into the job itself.

    Raises:
        NeuroPruneError: any of the tree; nothing else is expected.
    """
    set_seed(spec.training.seed)
    tracker = Tracker(report)
    with tracker.phase("loading"):
        prepared = prepare(spec, inputs, report)
        anatomy = bind(prepared.model)
        dense_steps, pruning_steps = _steps(spec, prepared)
        pruner = _pruner(spec, anatomy, pruning_steps)
    tracker.expect(dense_steps, pruning_steps)
    with tracker.phase("baseline"):
        if dense_steps:
            train(prepared.task, prepared.model, prepared.train, steps=dense_steps, listen=tracker.training_step)
        dense = copy.deepcopy(prepared.model)
        baseline = evaluate(prepared.task, prepared.model, prepared.held_out)
    dense_anatomy = bind(dense)
    with tracker.phase("pruning"):
        prune(prepared.task, pruner, dense, prepared.train, pruning_steps, tracker.training_step)
    with tracker.phase("compacting"):
        structure = describe_structure(anatomy, pruner)
        masked_parameters = pruner.masks.removed_parameters()
        topology = describe_topology(dense_anatomy, anatomy, pruner.plan(), spec.method)
        probe_inputs, probe_outputs, difference = _compact(spec.structure, prepared, anatomy, pruner)
    with tracker.phase("evaluating"):
        pruned = evaluate(prepared.task, prepared.model, prepared.held_out, baseline.summaries)
    with TemporaryDirectory() as dense_folder:
        sides = {"dense": Side(dense, Path(dense_folder)), "pruned": Side(prepared.model, output)}
        with tracker.phase("exporting"):
            performance = _export(spec, prepared, sides, probe_inputs, probe_outputs)
        with tracker.phase("verifying"):
            findings = verify(output, Path(dense_folder))
    measured = Measured(
        baseline=baseline.metrics,
        pruned=pruned.metrics,
        dense=dense,
        model=prepared.model,
        encoder_parameters_dense=dense_anatomy.encoder_parameters,
        encoder_parameters_pruned=anatomy.encoder_parameters,
        masked_parameters=masked_parameters,
        performance=performance,
        compressed_bytes=compressed_bytes(output),
        peak_memory_bytes=findings.peak_memory_bytes,
        differences={"compaction": difference, **findings.differences},
        structure=structure,
        topology=topology,
        train_rows=len(prepared.train),
        held_out_rows=len(prepared.held_out),
        seconds=tracker.seconds,
    )
    used = spec.model_copy(update={"training": prepared.task.training})
    return _write_documents(used, inputs, measured, output, report)


def _export(spec: JobSpec, prepared: Prepared, sides: dict[str, Side], inputs: Batch, outputs: Tensor) -> Performance:
    """Write the model in all its formats, with a probe of inputs and outputs, and measure it beside the dense one."""
    task, (dense, pruned) = type(prepared.task), sides.values()
    move(dense.model, "cpu")
    dense.model.train(False)
    dense.model.save_pretrained(dense.folder)
    write_model(pruned.model, prepared.tokenizer, prepared.task, pruned.folder)
    write_probe(task, inputs, outputs, pruned.folder)
    if spec.structure == "masked":
        write_compressed(pruned.folder)
    if "onnx" in spec.export.formats:
        for side in sides.values():
            export_onnx(task, side.model, inputs, side.folder / "model.onnx")
    if "gguf" in spec.export.formats:
        export_gguf(pruned.model, prepared.tokenizer, pruned.folder / "model.gguf")
    if "executorch" in spec.export.formats:
        length = prepared.task.training.max_length
        export_executorch(task, pruned.model, inputs, length, pruned.folder / "model.pte")
    performance = measure(task, sides, inputs)
    write_manifest(pruned.folder)
    return performance


def _write_documents(
    spec: JobSpec, inputs: Inputs, measured: Measured, output: Path, report: Reporter
) -> dict[str, Any]:
    """Report, plot, model card, and the manifest anew; returns the report's summary."""
    document = build_report(spec, inputs.names.get(inputs.model, inputs.model.name), measured)
    for name in sorted(measured.baseline.keys() - document["metrics"].keys()):
        report(Warned(message=f"{name} is left out of the report: too few held-out rows differ to define it."))
    write_report(document, output)
    plot_structure(measured.structure, output / STRUCTURE_PLOT)
    if document["target"]["achieved"] > 0:
        plot_topology(measured.topology, output / TOPOLOGY_PLOT)
    (output / "README.md").write_text(model_card(document))
    write_manifest(output)
    return summary_of(document)


def prepare(spec: JobSpec, inputs: Inputs, report: Reporter) -> Prepared:
    """Load rows, tokenizer and model, and try them out together.

    Raises:
        NeuroPruneError: the model, the data or both do not fit the task, or the model not an export.
    """
    if "executorch" in spec.export.formats:
        check_executorch()
    check_architecture(inputs.model, spec.task.name)
    all_rows, train_rows, held_out_rows = _rows(spec, inputs)
    config = load_config(inputs.model)
    tokenizer = load_tokenizer(inputs.model)
    length = fitting_length(spec.training.max_length, config, tokenizer, report)
    task = TASKS[spec.task.name](spec.task, spec.training.model_copy(update={"max_length": length}), tokenizer)
    model, head_is_new = load_model(inputs.model, config, task, all_rows, report)
    mend_generation_config(model, tokenizer, report)
    if "gguf" in spec.export.formats:
        check_gguf(model, tokenizer)
    train_features, held_out_features = task.features(train_rows), task.features(held_out_rows)
    check_vocabulary(tokenizer, train_features)
    check_runs(task, model, train_features, held_out_features)
    move(model, "cuda" if torch.cuda.is_available() else "cpu")
    return Prepared(task, tokenizer, model, head_is_new, train_features, held_out_features)


def _rows(spec: JobSpec, inputs: Inputs) -> tuple[list[Row], list[Row], list[Row]]:
    """All rows that training is drawn from, those that are drawn, and the held-out ones."""
    data, seed = spec.task.data, spec.training.seed
    if isinstance(data, BuiltinData):
        everything, held_out = python_docs()
        train = everything
    else:
        assert inputs.train is not None  # noqa: S101 only builtin data has no file
        train = everything = read_rows(inputs.train, inputs.source(inputs.train, "/task/data/train"))
        if inputs.validation is not None:
            held_out = read_rows(inputs.validation, inputs.source(inputs.validation, "/task/data/validation"))
        else:
            train, held_out = hold_out(train, data.validation_fraction, seed)
    return everything, sample(train, data.max_train_rows, seed), held_out[: data.max_validation_rows]


def _steps(spec: JobSpec, prepared: Prepared) -> tuple[int, int]:
    """Optimiser steps of dense training and of pruning."""
    training, rows = spec.training, len(prepared.train)
    assert training.num_train_epochs is not None  # noqa: S101 resolved specs have it
    asked = training.dense_epochs
    dense_epochs = asked if asked is not None else UNTRAINED_HEAD_EPOCHS * prepared.head_is_new
    dense_steps = total_steps(rows, training, dense_epochs) if dense_epochs else 0
    epochs = training.num_train_epochs
    return dense_steps, total_steps(rows, training, epochs) if epochs else 0


def _pruner(spec: JobSpec, anatomy: Anatomy, steps: int) -> Pruner:
    """The method bound to the model; refused here, before anything is trained, where the target is out of reach."""
    training = spec.training
    schedule = Schedule(max(1, steps), training.warmup_fraction, training.recovery_fraction)
    sparsity = spec.target.sparsity if spec.target is not None else None
    uniform = spec.structure == "uniform"
    return build_pruner(anatomy, spec.method, sparsity, schedule, training.seed, uniform=uniform)


def prune(
    task: Task, pruner: Pruner, dense: PreTrainedModel, features: Features, steps: int, listen: StepListener
) -> None:
    """Calibrate, train while the pruner removes, and finish.

    Args:
        task: What the model is for.
        pruner: Bound to the model that is pruned, in place.
        dense: What that model learns from.
        features: The training rows.
        steps: Optimiser steps; 0 for methods that need none.
        listen: Hears of every step.
    """
    model, training = pruner.anatomy.model, task.training
    pruner.calibrate(partial(_run_calibration, task, model, features))
    if steps:
        learns_from_teacher = training.distillation is None or training.distillation > 0
        teacher = Teacher(task, dense, features) if learns_from_teacher else None
        with ExitStack() as stack:
            hidden_teacher = None
            if training.hidden_distillation:
                hidden_teacher = stack.enter_context(closing(HiddenTeacher(task, bind(dense), pruner.anatomy)))
            train(
                task,
                model,
                features,
                steps=steps,
                teacher=teacher,
                hidden_teacher=hidden_teacher,
                pruner=pruner,
                listen=listen,
            )
    pruner.finish()


@torch.no_grad()
def _run_calibration(task: Task, model: PreTrainedModel, features: Features, rows: int) -> None:
    """Pass so many rows, drawn with the seed, through the model in eval mode."""
    was_training = model.training
    model.train(False)
    drawn = torch.randperm(len(features), generator=torch.Generator().manual_seed(task.training.seed))[:rows]
    for chunk in torch.split(drawn, task.training.per_device_eval_batch_size):
        batch = task.collate([features[i] for i in chunk.tolist()])
        task.outputs(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
    model.train(was_training)


def _compact(structure: Structure, prepared: Prepared, anatomy: Anatomy, pruner: Pruner) -> tuple[Batch, Tensor, float]:
    """Remove for good, as far as the structure allows, on the CPU and in fp32.

    Returns:
        A probe: inputs and what the masked model answered; and by how much the compacted model differs.
    """
    model = prepared.model
    move(model, "cpu")
    model.train(False)
    inputs = _probe(prepared.task, prepared.held_out)
    with torch.inference_mode():
        masked = prepared.task.outputs(model, inputs)
        give_structure(structure, anatomy, pruner.plan())
        difference = float((prepared.task.outputs(model, inputs) - masked).abs().max())
    if not difference <= TOLERANCE["loader"]:
        raise VerificationError(f"The compacted model's outputs differ from the masked model's by {difference:.1e}.")
    return inputs, masked, difference


def _probe(task: Task, held_out: Features) -> Batch:
    """A few held-out rows, two at least; short ones where there is an output for every token.

    At least two tokens wide, by padding if need be: what is one in an example, ONNX export takes for a constant.
    """
    wanted = 8 if task.outputs_per_row else 2
    rows = [held_out[i * len(held_out) // wanted] for i in range(wanted)]
    batch = model_inputs(task.collate(rows))
    if batch["input_ids"].shape[1] == 1:
        fill = {"input_ids": task.tokenizer.pad_token_id or 0}
        batch = {name: F.pad(tensor, (0, 1), value=fill.get(name, 0)) for name, tensor in batch.items()}
    return batch if task.outputs_per_row else {name: tensor[:, :16].contiguous() for name, tensor in batch.items()}
