"""A bundle: a folder with everything needed to use a pruned model, and to check that it is whole.

model.safetensors, config.json, tokenizer…   what transformers reads
modeling_neuroprune.py                       how layers of different width are built, for trust_remote_code
probe.safetensors                            a few inputs with the outputs that the model gave before it was written
report.json, README.md                       what was measured, and the model card
manifest.json                                size and sha256 of every other file
"""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.engine.data import Batch
from core.engine.export import modeling_neuroprune
from core.engine.tasks import Task
from core.errors import VerificationError
from core.version import VERSION

MANIFEST_FORMAT = 1
MODELING_FILE = "modeling_neuroprune.py"
PROBE_FILE = "probe.safetensors"


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, folder: Path) -> None:
    """Write a compacted model with its config, modelling file and tokenizer."""
    base, stock = type(model.base_model).__name__, type(model).__name__
    classes = sorted({base, stock})
    auto_map = {"AutoModel": f"modeling_neuroprune.Pruned{base}"}
    auto_map[task.auto_class.__name__] = f"modeling_neuroprune.Pruned{stock}"
    model.config.auto_map = auto_map
    model.config.neuroprune = {**model.config.neuroprune, "architecture": stock, "task": task.name}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _name_pruned_architecture(folder / "config.json", f"Pruned{stock}")
    source = Path(modeling_neuroprune.__file__).read_text()
    imports = f"\n\nfrom transformers import {', '.join(classes)}  # noqa: E402\n\n"
    bindings = "\n".join(f"Pruned{name} = pruned({name})" for name in classes)
    (folder / MODELING_FILE).write_text(f"{source.rstrip()}\n{imports}{bindings}\n")


def write_probe(inputs: Batch, outputs: Tensor, folder: Path) -> None:
    """Record what the model answers, for everybody who loads it to compare."""
    save_file({**{k: v.contiguous() for k, v in inputs.items()}, "outputs": outputs.contiguous()}, folder / PROBE_FILE)


def read_probe(folder: Path) -> tuple[Batch, Tensor]:
    """Inverse of `write_probe`."""
    probe = load_file(folder / PROBE_FILE)
    return {name: tensor for name, tensor in probe.items() if name != "outputs"}, probe["outputs"]


def write_manifest(folder: Path) -> None:
    """Record size and sha256 of every file in the folder; written last."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }
    manifest = {"format": MANIFEST_FORMAT, "generator": f"neuroprune {VERSION}", "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def check_manifest(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        VerificationError: the manifest is missing or of an unknown format, or a file is missing or changed.
    """
    manifest = _read_json(folder / "manifest.json")
    if manifest.get("format") != MANIFEST_FORMAT:
        raise VerificationError(
            f"manifest.json has format {manifest.get('format')!r}; this version reads format {MANIFEST_FORMAT}. "
            "Use the version that wrote the bundle, or a newer one."
        )
    for name, recorded in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise VerificationError(f"{name} is missing from the bundle.")
        if path.stat().st_size != recorded["size"] or _sha256(path) != recorded["sha256"]:
            raise VerificationError(f"{name} is not the file that was delivered: its size or sha256 differs.")


def load_bundle(folder: str | Path) -> PreTrainedModel:
    """Load a bundle's model without running code from the bundle, in eval mode.

    Raises:
        VerificationError: the bundle is incomplete, was changed, or its config disagrees with its weights.
    """
    folder = Path(folder)
    check_manifest(folder)
    description = _read_json(folder / "config.json").get("neuroprune", {})
    stock = getattr(transformers, str(description.get("architecture")), None)
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise VerificationError(
            f"config.json names no architecture of transformers: {description.get('architecture')!r}."
        )
    try:
        loaded: Any = modeling_neuroprune.pruned(stock).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise VerificationError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise VerificationError(f"{path.name} is not a JSON object.")
    return content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
