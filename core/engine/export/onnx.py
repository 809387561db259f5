"""ONNX export with dynamic batch and length, and its session."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.onnx.errors import OnnxExporterError
from transformers import PreTrainedModel

from core.engine.data import Batch
from core.engine.tasks import Task
from core.errors import VerificationError
from core.families import family_of

SLOW_FUSIONS = ["SkipLayerNormFusion"]
"""ONNX Runtime 1.32 vectorises LayerNormalization on CPUs, but not what this fusion puts in its place: BERT-base spends
10 instead of 1 of about 150 ms in its norms then."""


class TaskOutputs(nn.Module):
    """A model that answers with what its task compares."""

    def __init__(self, task: type[Task], model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.task.outputs(self.model, dict(zip(self.names, inputs, strict=True)))


def export_onnx(task: type[Task], model: PreTrainedModel, inputs: Batch, path: Path) -> None:
    """Write a model in eval mode as one .onnx file whose output is the task's.

    Args:
        inputs: An example batch, at least two rows and two tokens: [batch, length], or [batch, ...] of a fixed size.
        path: The file to write.

    Raises:
        VerificationError: the exporter cannot translate the model.
    """
    names = list(inputs)
    batch, lengths = Dim("batch"), {True: Dim("target_length"), False: Dim("length")}
    dynamic = tuple(
        {0: batch, 1: lengths[name.startswith("decoder_")]} if tensor.ndim == 2 else {0: batch}
        for name, tensor in inputs.items()
    )
    with warnings.catch_warnings(), _exportable_attention(model), _exportable_experts(model):
        # The exporter warns about its own internals; what it wrote is compared with the model below all this.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                TaskOutputs(task, model, names),
                tuple(inputs.values()),
                str(path),
                input_names=names,
                output_names=["outputs"],
                dynamic_shapes=(dynamic,),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except OnnxExporterError as error:
            raise VerificationError(
                f"The model cannot be exported to ONNX: {innermost(error)} "
                "Without 'onnx' in export.formats the job does not need it."
            ) from error


@contextmanager
def _exportable_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let attentions with a bias by head multiply matrices one by one.

    Of the fused operation with such a bias, the exporter mistakes the strides of the result.
    """
    stacks = family_of(model.config.model_type).stacks
    usual = model.config._attn_implementation
    if any(attention.bias is not None for stack in stacks for attention in stack.attentions):
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


@contextmanager
def _exportable_experts(model: PreTrainedModel) -> Iterator[None]:
    """Let transformers' own experts multiply each token by copies of its experts' weights.

    The other ways have a shape that depends on the router's choice, or an operation that the exporter does not know.
    """
    usual = model.config._experts_implementation
    if any(stack.experts is not None for stack in family_of(model.config.model_type).stacks):
        model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_experts_implementation(usual)


def innermost(error: BaseException) -> str:
    """What went wrong at first, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else f"{type(error).__name__}."


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU with this many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Idle threads of one session must not take the cores from the other that is timed beside it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS
    )


def run_session(session: onnxruntime.InferenceSession, inputs: Batch) -> Tensor:
    """The session's outputs for a batch; inputs that the graph does not read are left out."""
    wanted = {node.name for node in session.get_inputs()}
    feed = {name: np.asarray(tensor) for name, tensor in inputs.items() if name in wanted}
    return torch.from_numpy(session.run(["outputs"], feed)[0])
