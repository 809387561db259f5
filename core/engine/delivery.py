"""From a pruned model to a verified bundle.

compacting → evaluating → exporting → verifying
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.engine.anatomy import Anatomy, bind
from core.engine.data import Batch
from core.engine.evaluate import Evaluation, evaluate
from core.engine.export.bundle import compressed_bytes, write_compressed, write_manifest, write_model, write_probe
from core.engine.export.executorch import export_executorch
from core.engine.export.gguf import export_gguf
from core.engine.export.onnx import export_onnx
from core.engine.inputs import Inputs
from core.engine.loading import move
from core.engine.measure import Performance, Side, measure
from core.engine.methods import Pruner
from core.engine.precision import round_weights, weights_in
from core.engine.preparation import Prepared
from core.engine.probe import probe_inputs
from core.engine.report.card import model_card
from core.engine.report.document import Measured, build_report, undefined_metrics, write_report
from core.engine.report.frontier import FRONTIER_PLOT, build_frontier, frontier_card, plot_frontier
from core.engine.report.plot import STRUCTURE_PLOT, TOPOLOGY_PLOT, plot_structure, plot_topology
from core.engine.report.structure import describe_structure
from core.engine.report.target import check_met
from core.engine.report.topology import describe_topology
from core.engine.structures import give_structure, join_experts
from core.engine.targets import Reached
from core.engine.tracker import Tracker
from core.engine.verify import tolerated, verify
from core.errors import VerificationError
from core.jobs.spec import JobSpec, Structure
from core.progress import Reporter, Warned


@dataclass(frozen=True)
class Dense:
    """The model before pruning: what pruned ones are compared with. Its files lie in `folder` once they are needed."""

    anatomy: Anatomy
    zeros: int
    """Weights of its transformer layers that are zero."""
    evaluation: Evaluation
    folder: Path


@dataclass(frozen=True)
class Delivery:
    """Makes bundles of one job's pruned models."""

    spec: JobSpec
    inputs: Inputs
    prepared: Prepared
    dense: Dense
    tracker: Tracker
    report: Reporter
    warnings: list[str]
    """What was reported of them so far."""

    def deliver(self, reached: Reached, output: Path) -> dict[str, Any]:
        """Remove for good what the pruner took, write the bundle into `output`, and verify it.

        Args:
            reached: Its model is compacted in place.
            output: An empty folder.

        Returns:
            The bundle's report.

        Raises:
            VerificationError: the bundle does not reproduce the pruned model, or is larger than was asked for.
        """
        prepared, dense, pruner, anatomy = self.prepared, self.dense, reached.pruner, reached.pruner.anatomy
        model = anatomy.model
        with self.tracker.phase("compacting"):
            structure = describe_structure(anatomy, pruner)
            masked_parameters = pruner.masks.removed_parameters()
            topology = describe_topology(dense.anatomy, anatomy, pruner.plan(), self.spec.method)
            probe = probe_inputs(prepared.task, model, prepared.held_out)
            outputs, difference = compact_and_compare(self.spec.structure, prepared, pruner, probe)
        with self.tracker.phase("evaluating"):
            pruned = evaluate(prepared.task, model, prepared.held_out, dense.evaluation.summaries)
        with self.tracker.phase("exporting"):
            sides = {"dense": Side(dense.anatomy.model, dense.folder), "pruned": Side(model, output)}
            performance = self._export(sides, probe, outputs)
        with self.tracker.phase("verifying"):
            findings = verify(output, dense.folder)
        differences = {"compaction": difference, **findings.differences}
        measured = Measured(
            baseline=dense.evaluation.metrics,
            pruned=pruned.metrics,
            dense=dense.anatomy.model,
            model=model,
            dtype=prepared.dtype,
            encoder_parameters_dense=dense.anatomy.encoder_parameters,
            encoder_parameters_pruned=bind(model).encoder_parameters,
            zeros_dense=dense.zeros,
            masked_parameters=masked_parameters,
            performance=performance,
            compressed_bytes=compressed_bytes(output),
            peak_memory_bytes=findings.peak_memory_bytes,
            differences=differences,
            tolerated={way: tolerated(way, outputs) for way in differences},
            structure=structure,
            topology=topology,
            train_rows=prepared.train.source_rows,
            held_out_rows=prepared.held_out.source_rows,
            seconds=dict(self.tracker.seconds),
            target_facts=reached.facts,
        )
        return self._write_documents(measured, output)

    def deliver_frontier(self, every: list[Reached], output: Path) -> dict[str, Any]:
        """Deliver each model as a bundle in its folder below `output`, and beside them what compares them.

        Returns:
            The report that compares them.

        Raises:
            VerificationError: a bundle does not reproduce its pruned model.
        """
        reports: dict[str, dict[str, Any]] = {}
        for reached in every:
            assert reached.folder is not None  # noqa: S101 the levels of a frontier have folders
            (output / reached.folder).mkdir()
            reports[reached.folder] = self.deliver(reached, output / reached.folder)
        document = build_frontier(reports)
        write_report(document, output)
        plot_frontier(document, output / FRONTIER_PLOT)
        (output / "README.md").write_text(frontier_card(document))
        write_manifest(output)
        return document

    def _export(self, sides: dict[str, Side], inputs: Batch, outputs: Tensor) -> Performance:
        """Write the model in all its formats, with a probe, and measure it beside the dense one."""
        task, formats, (dense, pruned) = self.prepared.task, self.spec.export.formats, sides.values()
        if not dense.folder.exists():
            self._write_dense(dense, inputs)
        write_model(pruned.model, task.processor, task, pruned.folder, self.prepared.dtype)
        write_probe(type(task), inputs, outputs, pruned.folder)
        if self.spec.structure == "masked":
            write_compressed(pruned.folder)
        if "onnx" in formats:
            export_onnx(type(task), pruned.model, inputs, pruned.folder / "model.onnx")
        if "gguf" in formats:
            export_gguf(pruned.model, task.tokenizer, pruned.folder / "model.gguf")
        if "executorch" in formats:
            length = task.training.max_length
            export_executorch(type(task), pruned.model, inputs, length, pruned.folder / "model.pte")
        performance = measure(type(task), sides, inputs)
        write_manifest(pruned.folder)
        return performance

    def _write_dense(self, dense: Side, inputs: Batch) -> None:
        """Write the dense model as it is measured, once for all bundles of the job."""
        move(dense.model, "cpu")
        dense.model.train(False)
        join_experts(self.dense.anatomy)
        with weights_in(dense.model, self.prepared.dtype):
            dense.model.save_pretrained(dense.folder)
        if "onnx" in self.spec.export.formats:
            export_onnx(type(self.prepared.task), dense.model, inputs, dense.folder / "model.onnx")

    def _write_documents(self, measured: Measured, output: Path) -> dict[str, Any]:
        """Report, plot, model card, and the manifest anew; returns the report."""
        spec = self.spec.model_copy(update={"training": self.prepared.task.training})
        for name in undefined_metrics(measured):
            self.report(Warned(message=f"{name} is left out of the report: too few held-out rows differ to define it."))
        name = self.inputs.names.get(self.inputs.model, self.inputs.model.name)
        document = build_report(spec, name, measured, self.warnings)
        check_met(spec.target, document)
        write_report(document, output)
        plot_structure(measured.structure, output / STRUCTURE_PLOT)
        if document["sparsity"]["achieved"] > 0:
            plot_topology(measured.topology, output / TOPOLOGY_PLOT)
        (output / "README.md").write_text(model_card(document))
        write_manifest(output)
        return document


def compact_and_compare(
    structure: Structure, prepared: Prepared, pruner: Pruner, inputs: Batch
) -> tuple[Tensor, float]:
    """Remove for good, as far as the structure allows, on the CPU and in fp32, with weights as they can be saved.

    Returns:
        What the masked model answered to the inputs, and by how much the compacted model differs.

    Raises:
        VerificationError: by too much.
    """
    model, task = pruner.anatomy.model, prepared.task
    move(model, "cpu")
    model.train(False)
    round_weights(model, prepared.dtype)
    # Not inference mode: what a structure joins is saved, and converted for it, as weights are.
    with torch.no_grad():
        masked = task.outputs(model, inputs)
        give_structure(structure, pruner.anatomy, pruner.plan())
        difference = float((task.outputs(model, inputs) - masked).abs().max())
    most = tolerated("compaction", masked)
    if not difference <= most:
        raise VerificationError(
            f"The compacted model's outputs differ from the masked model's by {difference:.1e}, more than {most:.1e}."
        )
    return masked, difference
