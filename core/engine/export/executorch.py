"""ExecuTorch: one .pte file for phones, through XNNPACK, and how to run it here.

The package is an extra of its own, `executorch`: it is large, and hardly any job asks for it. A worker without it
refuses such a job before anything is loaded; the API, which knows no worker's extras, accepts it.
"""

import copy
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation

from core.engine.data import Batch
from core.engine.export.onnx import TaskOutputs, innermost
from core.engine.tasks import Task
from core.errors import InvalidInputError, VerificationError
from core.family import Family

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""The order in which a .pte file takes those that the model has: it knows no names."""

SHORTEST = 2
"""Tokens; a length of one is exported as a constant."""


class _Constant(nn.Module):
    """A projection that reads nothing: its bias, or zeros. ExecuTorch's matrix product breaks off at empty ones."""

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.width = projection.out_features
        self.bias = projection.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., 0] → [..., width]."""
        zeros = inputs.new_zeros(*inputs.shape[:-1], self.width)
        return zeros if self.bias is None else zeros + self.bias


def check_executorch() -> None:
    """Refuse a job that this worker cannot export for.

    Raises:
        InvalidInputError: the extra is not installed.
    """
    if find_spec("executorch") is None:
        raise InvalidInputError(
            "This worker cannot export to ExecuTorch: it was installed without the extra 'executorch'. "
            "Without 'executorch' in export.formats the job does not need it.",
            param="/export/formats",
        )


def check_lowerable(family: Family) -> None:
    """Refuse models whose shapes ExecuTorch cannot know beforehand.

    Raises:
        InvalidInputError: what a token passes through depends on a router.
    """
    if "executorch" not in family.export_formats:
        raise InvalidInputError(
            f"{family.title} models cannot be exported to ExecuTorch, only to {', '.join(family.export_formats)}.",
            param="/export/formats",
        )


def export_executorch(task: type[Task], model: PreTrainedModel, inputs: Batch, max_length: int, path: Path) -> None:
    """Write a model in eval mode as one .pte file for one row at a time, of `SHORTEST` to `max_length` tokens.

    Args:
        inputs: An example batch, all [batch, length].
        path: The file to write.

    Raises:
        VerificationError: the exporter cannot translate the model.
    """
    names = _names(inputs)
    example = tuple(inputs[name][:1] for name in names)
    dynamic = {1: Dim("length", min=SHORTEST, max=max_length)}
    with warnings.catch_warnings():
        # As with ONNX: what was written is run and compared.
        warnings.simplefilter("ignore")
        logging.getLogger("torch").setLevel(logging.ERROR)
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            wrapped = TaskOutputs(task, _executable(model), names)
            exported = torch.export.export(wrapped, example, dynamic_shapes=(tuple(dynamic for _ in names),))
            lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            program = lowered.to_executorch().buffer
        except Exception as error:
            raise VerificationError(
                f"The model cannot be exported to ExecuTorch: {innermost(error)} "
                "Without 'executorch' in export.formats the job does not need it."
            ) from error
    path.write_bytes(program)


def run_executorch(path: Path, inputs: Batch) -> Tensor:
    """A .pte file's outputs for a batch, row by row.

    Raises:
        VerificationError: ExecuTorch cannot run the file.
    """
    from executorch.runtime import Runtime

    names = _names(inputs)
    try:
        method = Runtime.get().load_program(path).load_method("forward")
        rows = [[inputs[name][i : i + 1].contiguous() for name in names] for i in range(len(inputs["input_ids"]))]
        # The outputs are views of memory that the next row is computed in.
        return torch.cat([method.execute(row)[0].clone() for row in rows])
    except RuntimeError as error:
        raise VerificationError(f"ExecuTorch cannot run {path.name}: {innermost(error)}") from error


def _names(inputs: Batch) -> list[str]:
    return [name for name in INPUTS if name in inputs]


def _executable(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that computes the same without what ExecuTorch gets wrong."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not module.in_features:
            model.set_submodule(name, _Constant(module))
        elif isinstance(module, GELUTanh):
            # XNNPACK computes the exact GELU in its place; spelt out, tanh stays tanh.
            model.set_submodule(name, NewGELUActivation())
    return model
