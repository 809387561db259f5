"""What a checkpoint holds of the model and of the pruner; the trainer's own files lie beside.

Weights are safetensors. The pruner's state, and the trainer's of optimiser, schedule and random numbers, are written
by torch and read with `weights_only`, which builds tensors and plain values and runs no code.
"""

from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel

from core.engine.methods import Pruner

_WEIGHTS = "model.safetensors"
_PRUNER = "pruner.pt"


def write(folder: Path, model: PreTrainedModel, pruner: Pruner | None) -> None:
    """Leave weights and pruner where `restore` finds them; the folder is made."""
    folder.mkdir(parents=True)
    save_model(model, str(folder / _WEIGHTS))
    if pruner is not None:
        torch.save(pruner.state_dict(), folder / _PRUNER)


def restore(folder: Path, model: PreTrainedModel, pruner: Pruner | None) -> None:
    """Inverse of `write`, into a model and a pruner like those that were written."""
    load_model(model, folder / _WEIGHTS)
    if pruner is not None:
        pruner.load_state_dict(torch.load(folder / _PRUNER, map_location="cpu", weights_only=True))
