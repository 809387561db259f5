"""Where a job's inputs lie on the machine that does it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.engine.data import Source


@dataclass(frozen=True, slots=True)
class Inputs:
    """The model's folder and the files of rows; none for builtin data, and none for splits that are held out."""

    model: Path
    train: Path | None = None
    validation: Path | None = None
    test: Path | None = None
    names: Mapping[Path, str] = field(default_factory=dict)
    """What the user calls those that lie here under another name."""

    def source(self, path: Path, param: str) -> Source:
        """Where the rows of a file come from, in the user's terms."""
        return Source(self.names.get(path, path.name), param)
