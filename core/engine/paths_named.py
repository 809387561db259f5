"""Refuses configs by which transformers would read files outside of a model's folder, and deliver what they hold.

Whoever uploads a model could otherwise read what the worker can, and whoever fetches one from the Hub could publish it.
"""

import json
import os
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.engine.inspection import blaming_the_model
from core.errors import InvalidModelError, shown

FROM_TWO_ENTRIES = "class_info_file"
"""Of an image processor of transformers: a file's name, the path to which is another entry."""


def check_paths(folder: Path, name: str, *, unread: Container[str] = ()) -> None:
    """Refuse a JSON file of the folder, if it is there, that names an existing file elsewhere.

    Args:
        folder: The model's.
        name: Of the file.
        unread: Entries that nobody reads.

    Raises:
        InvalidModelError: it does, or cannot be read.
    """
    if not (folder / name).is_file():
        return
    with blaming_the_model(f"{name} cannot be read"):
        entries = dict(json.loads((folder / name).read_text()))
        for key, text in _texts({key: value for key, value in entries.items() if key not in unread}):
            if key == FROM_TWO_ENTRIES or _leads_out(folder, text):
                raise InvalidModelError(
                    f"{name} names a file outside of the model's folder, {shown(text)}: leave the entry out.",
                    param="/model",
                )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, with the name of the entry that it is in."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, key)
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _texts(part, name)


def _leads_out(folder: Path, text: str) -> bool:
    """Whether this is the path of a file elsewhere, from here or from the folder.

    Links are not followed: the Hub's cache is made of them.
    """
    home = Path(os.path.normpath(Path.cwd() / folder))
    for base in (Path.cwd(), home):
        with suppress(OSError, ValueError):  # a text that cannot be a path
            path = Path(os.path.normpath(base / text))
            if not path.is_relative_to(home) and path.exists() and not path.is_dir():
                return True
    return False
