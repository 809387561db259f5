"""Model archives for tests: whole ones, and ones made to do harm."""

import io
import json
import tarfile
import zipfile
from pathlib import Path


def safetensors(values: bytes = bytes(16)) -> bytes:
    """The smallest weights file: one tensor of F32."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [len(values) // 4], "data_offsets": [0, len(values)]}}).encode()
    return len(header).to_bytes(8, "little") + header + values


def model_files(**changes: bytes | None) -> dict[str, bytes]:
    """Name → content of a minimal model; None leaves one out."""
    files = {"config.json": b'{"model_type": "bert"}', "model.safetensors": safetensors(), "tokenizer.json": b"{}"}
    merged = files | {name.replace("__", "."): content for name, content in changes.items()}
    return {name: content for name, content in merged.items() if content is not None}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
