"""A bundle: a folder with everything needed to use a pruned model, and to check that it is whole.

model.safetensors, config.json, tokenizer…   what transformers reads; of images, their processor's config
modeling_neuroprune.py                       how layers of different width are built, for trust_remote_code; where all
                                             have one width there is none, and the config is that of the stock class
model.safetensors.zst                        the same weights compressed, where what was pruned is zero
probe.safetensors                            a few inputs with the outputs that the model gave before it was written
report.json, README.md                       what was measured, and the model card
manifest.json                                size and sha256 of every other file
"""

import json
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
import zstandard
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from core.engine.data import Batch
from core.engine.export import modeling_neuroprune
from core.engine.export.description import read_architecture, read_description, read_manifest
from core.engine.precision import weights_in
from core.engine.tasks import TASKS, Task
from core.engine.tasks.base import Processor
from core.errors import VerificationError
from core.version import VERSION

WEIGHTS_FILE = "model.safetensors"
COMPRESSED_FILE = f"{WEIGHTS_FILE}.zst"
PROBE_FILE = "probe.safetensors"

COMPRESSION_LEVEL = 9
"""Of fp32 weights with 90 % zeros, levels 1, 9 and 19 leave 14, 13 and 12 %; 19 takes sixty times as long as 9."""


def write_model(model: PreTrainedModel, processor: Processor, task: Task, folder: Path, dtype: torch.dtype) -> None:
    """Write a pruned model with config, tokenizer or image processor, and its modelling file where it needs one.

    Its weights are written in `dtype`.
    """
    with weights_in(model, dtype):
        if getattr(model.config, "neuroprune", None):
            _write_ragged(model, task, folder)
        else:
            model.save_pretrained(folder)
    # All of a tokenizer's chat templates in its config: transformers would put further ones into a folder of their own,
    # where neither the manifest nor a download reaches.
    processor.save_pretrained(folder, save_jinja_files=False)


def _write_ragged(model: PreTrainedModel, task: Task, folder: Path) -> None:
    stock = type(model).__name__
    classes = _further_classes(model) | {"AutoModel": type(model.base_model).__name__, task.auto_class.__name__: stock}
    model.config.auto_map = {auto: f"modeling_neuroprune.Pruned{name}" for auto, name in classes.items()}
    model.config.neuroprune = {**model.config.neuroprune, "architecture": stock, "task": task.name}
    # Under the modules' own names: older ones are not translated back for classes that are not transformers' own.
    model.save_pretrained(folder, save_original_format=False)
    _name_pruned_architecture(folder / "config.json", f"Pruned{stock}")
    modeling_neuroprune.copy_code(folder)


def _further_classes(model: PreTrainedModel) -> dict[str, str]:
    """What transformers makes of such a config through other Auto classes, for a further task with another head.

    Without their names, it would make stock models, as wide as before pruning, with weights that do not fit. Of
    architectures with two stacks some of these models have but one, which cannot be narrowed as described.
    """
    if len(model.config.neuroprune["family"]["stacks"]) > 1:
        return {}
    classes: dict[str, str] = {}
    for name in dir(transformers):
        mapping = getattr(getattr(transformers, name), "_model_mapping", None) if name.startswith("AutoModel") else None
        found = None if mapping is None else mapping.get(type(model.config), None)
        if isinstance(found, type):
            # Some are not transformers' to give, and the layers of some bear other names than those of the weights.
            given: Any = getattr(transformers, found.__name__, None)
            if given == found and given.base_model_prefix == model.base_model_prefix:
                classes[name] = found.__name__
    return classes


def write_compressed(folder: Path) -> None:
    """Compress the weights beside themselves, with Zstandard."""
    compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, threads=-1)
    with (folder / WEIGHTS_FILE).open("rb") as source, (folder / COMPRESSED_FILE).open("wb") as target:
        compressor.copy_stream(source, target)


def compressed_bytes(folder: Path) -> int | None:
    """Size of the compressed weights, if the bundle has them."""
    path = folder / COMPRESSED_FILE
    return path.stat().st_size if path.exists() else None


def write_probe(task: type[Task], inputs: Batch, outputs: Tensor, folder: Path) -> None:
    """Record what the model answers, for everybody who loads it to compare; and for which task, as a stock config does
    not say.
    """
    tensors = {**{k: v.contiguous() for k, v in inputs.items()}, "outputs": outputs.contiguous()}
    save_file(tensors, folder / PROBE_FILE, metadata={"task": task.name})


def read_probe(folder: Path) -> tuple[Batch, Tensor]:
    """Inverse of `write_probe`.

    Raises:
        VerificationError: there is none, or it cannot be read.
    """
    try:
        probe = load_file(folder / PROBE_FILE)
        outputs = probe.pop("outputs")
    except (OSError, SafetensorError) as error:
        raise VerificationError(f"{PROBE_FILE} cannot be read: {error}") from error
    except KeyError as error:
        raise VerificationError(f"{PROBE_FILE} holds no 'outputs'.") from error
    return probe, outputs


def read_task(folder: Path) -> type[Task]:
    """What the folder's model is for.

    Raises:
        VerificationError: neither config nor probe names a task.
    """
    description = read_description(folder)
    if description is not None:
        return TASKS[description.task]
    try:
        with safe_open(folder / PROBE_FILE, framework="pt") as probe:
            name = (probe.metadata() or {}).get("task")
    except (OSError, SafetensorError) as error:
        raise VerificationError(f"{PROBE_FILE} cannot be read: {error}") from error
    if name not in TASKS:
        raise VerificationError(f"{PROBE_FILE} names the task {name!r}; known are {', '.join(TASKS)}.")
    return TASKS[name]


def write_manifest(folder: Path) -> None:
    """Record size and sha256 of every file in the folder; written last."""
    modeling_neuroprune.write_manifest(folder, f"neuroprune {VERSION}")


def check_manifest(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        VerificationError: the manifest is missing or of an unknown format, or a file is missing or changed.
    """
    for name, recorded in read_manifest(folder).files.items():
        path = folder / name
        if not path.is_file():
            raise VerificationError(f"{name} is missing from the bundle.")
        if path.stat().st_size != recorded.size or modeling_neuroprune.sha256(path) != recorded.sha256:
            raise VerificationError(f"{name} is not the file that was delivered: its size or sha256 differs.")


def load_bundle(folder: str | Path, dtype: torch.dtype | Literal["auto"] = "auto") -> PreTrainedModel:
    """Load a bundle's model without running code from the bundle, in eval mode.

    Args:
        folder: The bundle.
        dtype: What its weights are wanted in; as they are saved unless said otherwise.

    Raises:
        VerificationError: the bundle is incomplete, was changed, or its config disagrees with its weights.
    """
    folder = Path(folder)
    check_manifest(folder)
    description = read_description(folder)
    architecture = read_architecture(folder) if description is None else description.architecture
    stock = getattr(transformers, architecture, None)
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise VerificationError(f"config.json names no architecture of transformers: {architecture!r}.")
    model_class = stock if description is None else modeling_neuroprune.pruned(stock)
    try:
        loaded: Any = model_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
        raise VerificationError(f"The config and the weights do not fit together: {error}") from error
    model, info = loaded
    wrong = {kind: sorted(map(str, keys))[:3] for kind, keys in info.items() if keys and kind != "error_msgs"}
    if wrong:
        raise VerificationError(f"The config and the weights do not fit together: {wrong}.")
    model.train(False)
    return cast(PreTrainedModel, model)


def _name_pruned_architecture(path: Path, name: str) -> None:
    config = json.loads(path.read_text())
    config["architectures"] = [name]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
