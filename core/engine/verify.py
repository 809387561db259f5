"""Verifies a bundle in a clean process: `python -m core.engine.verify FOLDER` prints its findings as JSON.

The model is loaded as its users will: through our loader, through transformers' Auto classes with the bundle's own
modelling file, and, where there is one, from ONNX. Each answers the probe, and the largest difference from the
recorded outputs of the masked model counts.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from core.engine.anatomy import bind, count_parameters
from core.engine.export.bundle import load_bundle, read_probe
from core.engine.export.onnx import open_session, run_session
from core.engine.tasks import TASKS
from core.errors import NeuroPruneError, VerificationError

TOLERANCE = {"loader": 1e-5, "auto_class": 1e-5, "onnx": 1e-4}
"""Largest absolute difference from the masked model's outputs, fp32, by the way a bundle is loaded."""


@torch.inference_mode()
def differences(folder: Path) -> dict[str, float]:
    """Largest absolute difference from the probe's outputs, by the way the bundle is loaded.

    Raises:
        VerificationError: the bundle cannot be loaded.
    """
    inputs, expected = read_probe(folder)
    model = load_bundle(folder)
    task = TASKS[model.config.neuroprune["task"]]
    found = {"loader": _largest(task.outputs(model, inputs), expected)}
    model = task.auto_class.from_pretrained(folder, trust_remote_code=True, local_files_only=True).train(False)
    found["auto_class"] = _largest(task.outputs(model, inputs), expected)
    if (folder / "model.onnx").exists():
        found["onnx"] = _largest(run_session(open_session(folder / "model.onnx", 1), inputs), expected)
    return found


@torch.inference_mode()
def inspect(folder: Path) -> dict[str, float | int | str]:
    """Load a bundle in this process and compare it with the outputs that were recorded before it was written.

    Returns:
        `max_abs_difference` of the outputs, and the model's class and size.

    Raises:
        VerificationError: the bundle cannot be loaded.
    """
    model = load_bundle(folder)
    inputs, expected = read_probe(folder)
    return {
        "model": type(model).__name__,
        "max_abs_difference": _largest(TASKS[model.config.neuroprune["task"]].outputs(model, inputs), expected),
        "encoder_parameters": bind(model).encoder_parameters,
        "total_parameters": count_parameters(model),
    }


def verify(folder: Path) -> dict[str, float]:
    """Run `differences` in a clean process and judge them.

    Raises:
        VerificationError: a difference exceeds `TOLERANCE`, or the bundle could not be loaded.
    """
    with tempfile.TemporaryDirectory() as modules:
        done = subprocess.run(
            [sys.executable, "-m", "core.engine.verify", str(folder)],
            env={**os.environ, "HF_MODULES_CACHE": modules, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise VerificationError(f"The bundle does not load in a clean process: {_last_line(done.stderr)}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    for way, difference in found.items():
        if not difference <= TOLERANCE[way]:
            raise VerificationError(
                f"Loaded through {way}, the outputs differ by {difference:.1e}, more than {TOLERANCE[way]:.0e}."
            )
    return found


def _largest(outputs: torch.Tensor, expected: torch.Tensor) -> float:
    return float((outputs - expected).abs().max())


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it ended without a message"


def main() -> None:
    """Entry point of the clean process."""
    try:
        print(json.dumps(differences(Path(sys.argv[1]))))
    except NeuroPruneError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
