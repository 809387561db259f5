"""Load a bundle: `load(folder)` in Python, or `python -m client.load FOLDER` to check one.

The only module of the client that needs torch; nothing else imports it.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel

from core.engine.anatomy import bind, count_parameters
from core.engine.export.bundle import load_bundle, read_probe
from core.engine.tasks import TASKS
from core.errors import NeuroPruneError


def load(folder: str | Path) -> PreTrainedModel:
    """The pruned model of a bundle, in eval mode; no code of the bundle is run.

    Raises:
        VerificationError: the bundle is incomplete, was changed, or its config disagrees with its weights.
    """
    return load_bundle(Path(folder))


@torch.inference_mode()
def check(folder: str | Path) -> dict[str, float | int | str]:
    """Load a bundle and compare it with the outputs that were recorded before it was written.

    Returns:
        `max_abs_difference` of the outputs, and the model's class and size.
    """
    model = load(folder)
    inputs, expected = read_probe(Path(folder))
    outputs = TASKS[model.config.neuroprune["task"]].outputs(model, inputs)
    return {
        "model": type(model).__name__,
        "max_abs_difference": float((outputs - expected).abs().max()),
        "encoder_parameters": bind(model).encoder_parameters,
        "total_parameters": count_parameters(model),
    }


def main() -> None:
    """Print what `check` finds as JSON; a broken bundle ends in one line and exit code 1."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m client.load FOLDER")
    try:
        print(json.dumps(check(sys.argv[1])))
    except NeuroPruneError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
