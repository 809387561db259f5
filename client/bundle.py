"""A downloaded bundle on disk: is it whole, and is it what was made? Needs no torch."""

import hashlib
import json
from pathlib import Path

from core.errors import VerificationError

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
        manifest = json.loads((folder / MANIFEST).read_text())
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
