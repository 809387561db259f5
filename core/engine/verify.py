"""Verifies a bundle in a clean process: `python -m core.engine.verify FOLDER` prints its findings as JSON.

The model is loaded as its users will: through our loader, through transformers' Auto classes (with the bundle's own
modelling file or, where it has none, with nothing of ours), and, where there are such files, by ONNX Runtime and
ExecuTorch. Each answers the probe, and the largest difference from the recorded outputs of the masked model counts. All
compute in fp32, whatever the weights are saved in. What GGUF holds is compared with the model's weights. With the dense
model's folder as a second argument, it also finds out how much memory either takes: no other process of a job is clean
enough to tell.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.engine.anatomy import bind, count_parameters
from core.engine.data import Batch
from core.engine.export.bundle import load_bundle, read_probe, read_task
from core.engine.export.executorch import run_executorch
from core.engine.export.gguf import gguf_difference
from core.engine.export.modeling_neuroprune import MODELING_FILE
from core.engine.export.onnx import open_session, run_session
from core.engine.memory import ENVIRONMENT, peak_memory
from core.engine.tasks import Task
from core.errors import NeuroPruneError, OutOfMemoryError, StorageFullError, VerificationError
from core.resources import is_out_of_memory, is_out_of_space, kills_for_memory

TOLERANCE = {"compaction": 1e-5, "loader": 1e-5, "auto_class": 1e-5, "onnx": 1e-4, "gguf": 0.0, "executorch": 1e-4}
"""Largest difference from the masked model's outputs, fp32, by the way a bundle is loaded; see `tolerated`.

`compaction` is the model that is written, still in memory. For GGUF, which llama.cpp runs, it is the difference from
the model's weights.
"""

PROJECT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 1800.0
"""A bundle that does not load and answer in this time never will."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Findings:
    """What the clean process found: `differences`, and what `memory.peak_memory` says."""

    differences: dict[str, float]
    peak_memory_bytes: dict[str, dict[str, int]]


def tolerated(way: str, outputs: Tensor) -> float:
    """The largest difference from these outputs that counts as rounding.

    It is `TOLERANCE` of the largest output, if that is above 1: fp32 rounds in proportion, and logits of 30 differ by
    1e-5 when only the order of a sum has changed. One scale for all outputs: where they differ much in size, the small
    ones are judged leniently.
    """
    return TOLERANCE[way] * float(outputs.abs().max().clamp(1.0, torch.finfo(torch.float32).max))


@torch.inference_mode()
def differences(folder: Path) -> dict[str, float]:
    """Largest absolute difference from the probe's outputs, by the way the bundle is loaded.

    Raises:
        VerificationError: the bundle cannot be loaded.
    """
    inputs, expected = read_probe(folder)
    model, task = load_bundle(folder, torch.float32), read_task(folder)
    found = {"loader": _largest(_answer(task, model, inputs), expected)}
    own_code = (folder / MODELING_FILE).exists()
    model = task.auto_class.from_pretrained(
        folder, trust_remote_code=own_code, local_files_only=True, dtype=torch.float32
    ).train(False)
    found["auto_class"] = _largest(_answer(task, model, inputs), expected)
    if (folder / "model.onnx").exists():
        found["onnx"] = _largest(run_session(open_session(folder / "model.onnx", 1), inputs), expected)
    if (folder / "model.pte").exists():
        found["executorch"] = _largest(run_executorch(folder / "model.pte", inputs), expected)
    if (folder / "model.gguf").exists():
        found["gguf"] = gguf_difference(model, folder / "model.gguf")
    return found


@torch.inference_mode()
def inspect(folder: Path) -> dict[str, float | int | str]:
    """Load a bundle in this process and compare it with the outputs that were recorded before it was written.

    Returns:
        `max_abs_difference` of the outputs, and the model's class and size.

    Raises:
        VerificationError: the bundle cannot be loaded.
    """
    model, task = load_bundle(folder, torch.float32), read_task(folder)
    inputs, expected = read_probe(folder)
    return {
        "model": type(model).__name__,
        "max_abs_difference": _largest(_answer(task, model, inputs), expected),
        "encoder_parameters": bind(model).encoder_parameters,
        "total_parameters": count_parameters(model),
    }


def find(folder: Path, dense: Path | None = None) -> Findings:
    """Load, compare and measure in this process.

    Raises:
        VerificationError: the bundle cannot be loaded.
    """
    found = differences(folder)
    if dense is None:
        return Findings(found, {})
    return Findings(found, peak_memory(read_task(folder), dense, folder, read_probe(folder)[0]))


def verify(folder: Path, dense: Path | None = None) -> Findings:
    """Examine a bundle in a clean process, and judge how far its outputs differ.

    Args:
        folder: The bundle.
        dense: The dense model's folder, to learn how much memory either takes.

    Raises:
        VerificationError: a difference is more than is `tolerated`, or the bundle could not be loaded.
        StorageFullError: loading needs more disk than there is.
        OutOfMemoryError: loading needs more memory than there is.
    """
    kills = kills_for_memory()
    done = _in_clean_process(folder, *filter(None, [dense]))
    if done.returncode:
        logger.error("Loading %s in a clean process failed:\n%s", folder, done.stderr)
        raise _failure(done, is_killed_for_memory=kills_for_memory() > kills)
    found = Findings(**json.loads(done.stdout.splitlines()[-1]))
    _, outputs = read_probe(folder)
    for way, difference in found.differences.items():
        most = tolerated(way, outputs)
        if not difference <= most:
            what = "weights" if way == "gguf" else "outputs"
            raise VerificationError(
                f"Loaded through {way}, the {what} differ by {difference:.1e}, more than {most:.1e}."
            )
    return found


def _failure(done: subprocess.CompletedProcess[str], *, is_killed_for_memory: bool) -> NeuroPruneError:
    """Why a clean process failed: what the machine lacks is not the bundle's fault."""
    last_words = RuntimeError(_last_line(done.stderr))
    if is_out_of_space(last_words):
        return StorageFullError("The worker's disk is full (while verifying).")
    if is_out_of_memory(last_words) or (done.returncode == -signal.SIGKILL and is_killed_for_memory):
        return OutOfMemoryError("The worker's memory did not suffice (while verifying).")
    return VerificationError(f"The bundle does not load in a clean process: {last_words}")


def _in_clean_process(*folders: Path) -> subprocess.CompletedProcess[str]:
    search_path = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as modules:
        changes = {"HF_MODULES_CACHE": modules, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(search_path)}
        changes |= ENVIRONMENT
        try:
            return subprocess.run(
                [sys.executable, "-m", "core.engine.verify", *map(str, folders)],
                env=os.environ | changes,
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            logger.error("Loading %s in a clean process did not end:\n%s", folders[0], error.stderr)
            raise VerificationError(
                f"The bundle did not load and answer in a clean process within {TIMEOUT_SECONDS:g} seconds."
            ) from error


def _answer(task: type[Task], model: PreTrainedModel, inputs: Batch) -> Tensor:
    try:
        return task.outputs(model, inputs)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise VerificationError(f"The model cannot answer the bundle's probe: {error!r}") from error


def _largest(outputs: Tensor, expected: Tensor) -> float:
    if outputs.shape != expected.shape:
        raise VerificationError(
            f"The model answers the probe with shape {list(outputs.shape)}; recorded were {list(expected.shape)}."
        )
    return float((outputs - expected).abs().max())


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it ended without a message"


def main() -> None:
    """Entry point of the clean process."""
    try:
        print(json.dumps(asdict(find(*map(Path, sys.argv[1:])))))
    except NeuroPruneError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
