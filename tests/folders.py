"""What lies in folders."""

from pathlib import Path


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, by its name there."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
