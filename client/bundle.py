"""A downloaded bundle on disk: is it whole, and is it what was made? Needs no torch."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import InvalidInputError, StorageError, VerificationError
from core.wording import some_of

MANIFEST = "manifest.json"
FORMAT = 1
"""Of the manifests that this version reads."""


def digest_of(path: Path) -> str:
    """The file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_manifest(folder: Path) -> int:
    """Compare every file with the bundle's own manifest; how many there are.

    Raises:
        VerificationError: the manifest or a file of it is missing, of an unknown format, or another one.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise VerificationError(
                f"{folder / MANIFEST} has format {manifest['format']!r}; this version reads format {FORMAT}. "
                "Use the version that wrote the bundle, or a newer one."
            )
        expected = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(f"{folder / MANIFEST} cannot be read: {error!r}") from error
    for name, sha256 in expected.items():
        path = folder / Path(name).name
        if not path.is_file():
            raise VerificationError(f"{name} is missing from {folder}.")
        if digest_of(path) != sha256:
            raise VerificationError(f"{path} is not the file that was made: its sha256 differs from the manifest's.")
    return len(expected)


def files_of_bundle(folder: Path) -> set[Path]:
    """What there is of the bundle that was downloaded into the folder, wholly or in part, by its manifest's word.

    What was changed since is not among it, nor what belongs to a frontier's levels, which have folders of their own.
    Where the manifest is missing or not one of ours, nothing is.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        expected = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        expected = expected if manifest["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    named = {folder / name: sha256 for name, sha256 in expected.items() if _is_name(name)}
    whole = {path for path, sha256 in named.items() if path.is_file() and digest_of(path) == sha256}
    partial = {partial_of(path) for path in (folder / MANIFEST, *named) if partial_of(path).is_file()}
    return whole | partial | ({folder / MANIFEST} if named else set())


def place(name: str, folder: Path) -> Path:
    """Where a file of a bundle belongs.

    Raises:
        StorageError: outside of the folder.
    """
    parts = name.split("/")
    if not all(map(_is_name, parts)):
        raise StorageError(f"The service names a file {name!r}, which would lie outside of {folder}.")
    return folder.joinpath(*parts)


def _is_name(part: str) -> bool:
    """Whether this is the name of something in a folder, and not the way to elsewhere."""
    return Path(part).name == part and part not in {"", ".", ".."} and "\0" not in part


def partial_of(path: Path) -> Path:
    """Where the file grows."""
    return path.with_name(f".{path.name}.partial")


def make_way(artifacts: Mapping[Path, Any], folder: Path, *, overwrite: bool) -> None:
    """See to it that what there is of these files is right.

    Raises:
        InvalidInputError: something else has a name of theirs, and is not to be overwritten; or a file has a folder's.
    """
    for place_of_files in sorted({folder, *(path.parent for path in artifacts)}):
        if place_of_files.exists() and not place_of_files.is_dir():
            raise InvalidInputError(f"{place_of_files} is a file, not a folder.")
    others = {path for path, artifact in artifacts.items() if os.path.lexists(path) and not _is_right(path, artifact)}
    if folders := sorted(str(path) for path in others if path.is_dir()):
        raise InvalidInputError(f"There are folders where the bundle has files: {some_of(folders)}. Move them away.")
    if others and not overwrite:
        names = sorted(path.relative_to(folder).as_posix() for path in others)
        raise InvalidInputError(
            f"{folder} holds other files of the same names as the bundle's: {some_of(names)}. "
            "Choose another folder, or overwrite them (--force; in Python, overwrite=True)."
        )
    manifests = {path for path in others if path.name == MANIFEST}
    for manifest in manifests:
        others |= files_of_bundle(manifest.parent) - artifacts.keys()
    # The manifests last: with them, an interrupted removal can be taken up.
    for path in (*sorted(others - manifests), *sorted(manifests)):
        path.unlink(missing_ok=True)


def _is_right(path: Path, artifact: Any) -> bool:
    return path.is_file() and digest_of(path) == artifact["sha256"]
