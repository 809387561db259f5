"""Uploads: models and datasets that jobs refer to by id; list, delete."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Annotated

import sqlalchemy as sa
import structlog
from anyio.to_thread import run_sync
from fastapi import APIRouter, File, Form, HTTPException, Query, Response, UploadFile

from api.deps import FileId, Provided, Services, Store
from api.errors import problems
from api.pages import link_to_next
from api.schemas import FileObject, FilePage
from core.errors import InvalidInputError, StorageError, StorageFullError
from core.jobs.ids import new_file_id
from core.jobs.keys import upload_key
from core.jobs.records import FileRecord, Purpose
from core.resources import is_out_of_space
from core.settings import Settings
from core.storage import Storage
from core.uploads import SUFFIXES, suffix_of
from core.uploads.archives import MAX_NAME_BYTES, check_model_archive
from core.uploads.datasets import check_dataset

logger = structlog.get_logger(__name__)
router = APIRouter(prefix="/v1/files", tags=["files"])

UPLOADS_AT_ONCE = 8
"""Others wait: one takes a thread for minutes, of the 40 that all requests share, and to be checked some memory."""

MOST_FIELDS = 8
"""Of a form, one of which is asked for: a file sent as a field, or a field too many, is to be answered in our words."""

MULTIPART_OVERHEAD_BYTES = 64 * 1024
"""What a multipart body holds beside the file."""

_ACCEPTED = " ".join(f"{purpose}: {', '.join(suffixes)}." for purpose, suffixes in SUFFIXES.items())


@router.post(
    "",
    status_code=201,
    response_model=FileObject,
    responses=problems(400, 413, 422, 503, 507),
    form_limits={"max_files": 1, "max_fields": MOST_FIELDS, "max_part_size": 1024},
)
async def upload_file(
    file: Annotated[UploadFile, File(description=_ACCEPTED)],
    purpose: Annotated[Purpose, Form(description="What jobs may use it for.")],
    services: Provided,
    response: Response,
) -> FileObject:
    """Store a file for jobs to use. It is checked here, so that a broken one fails now and not in a job."""
    limit = services.settings.max_upload_bytes
    if file.size is not None and file.size > limit:
        raise HTTPException(413, f"The file is larger than {limit} bytes, the most that is accepted.")
    try:
        record = await run_sync(_accept, file, purpose, services, limiter=services.upload_slots)
    except InvalidInputError as error:
        error.param = "/file"
        raise
    response.headers["Location"] = f"/v1/files/{record.id}"
    return FileObject.of(record)


@router.get("", response_model=FilePage, responses=problems(422, 503))
def list_files(
    store: Store,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=100, description="Files on the page.")] = 20,
    cursor: Annotated[
        str | None, Query(pattern=r"^[0-9]{16}_file_[0-9a-f]{32}$", description="`next_cursor` of a page.")
    ] = None,
    purpose: Annotated[Purpose | None, Query(description="Only files for this purpose.")] = None,
) -> FilePage:
    """Uploads, newest first."""
    found, next_cursor = store.file_page(limit, cursor, purpose)
    if next_cursor is not None:
        link_to_next(response, "/v1/files", limit=limit, cursor=next_cursor, purpose=purpose)
    return FilePage(
        data=[FileObject.of(record) for record in found], has_more=next_cursor is not None, next_cursor=next_cursor
    )


@router.get("/{file_id}", response_model=FileObject, responses=problems(404, 422, 503))
def get_file(file_id: FileId, store: Store) -> FileObject:
    """What is known about an upload."""
    return FileObject.of(store.get_file(file_id))


@router.delete("/{file_id}", status_code=204, response_class=Response, responses=problems(404, 409, 422, 503))
def delete_file(file_id: FileId, store: Store) -> None:
    """Delete an upload that no job will read; ended jobs that name it cannot be tried again.

    It is gone from here at once, and its bytes as soon as a worker has removed them.
    """
    store.delete_file(file_id)


def _accept(file: UploadFile, purpose: Purpose, services: Services) -> FileRecord:
    """Store, check, and register the file; what is refused leaves nothing behind.

    What is cut off is removed a day later: by a crash, or by a database that may have registered it after all.
    """
    filename = _plain_name(file.filename or "")
    suffix = suffix_of(filename, purpose)
    file_id = new_file_id()
    key = upload_key(file_id, suffix)
    services.store.expect_file(key)
    try:
        stored = services.storage.put(key, file.file)
        columns = _check(services.storage, key, purpose, services.settings)
    except BaseException:
        _discard(key, services)
        raise
    record = FileRecord(
        id=file_id,
        filename=filename,
        purpose=purpose,
        size=stored.size,
        sha256=stored.sha256,
        key=key,
        created_at=datetime.now(UTC),
        columns=columns,
    )
    services.store.add_file(record)
    return record


def _discard(key: str, services: Services) -> None:
    try:
        services.storage.delete_prefix(key)
        services.store.forget_deletion(key)
    except (StorageError, sa.exc.SQLAlchemyError) as error:  # which is not what the user has to know
        logger.warning("a refused upload is removed in a day", key=key, error=str(error))


def _plain_name(name: str) -> str:
    """The last part of whatever path the client sent, printable; if too long, its end, which has the suffix."""
    last = PurePosixPath(name.replace("\\", "/")).name
    plain = "".join(character for character in last if character.isprintable())
    if not plain:
        raise InvalidInputError("The file part carries no filename; send one, its suffix says what the file is.")
    return plain.encode()[-MAX_NAME_BYTES:].decode(errors="ignore")


def _check(storage: Storage, key: str, purpose: Purpose, settings: Settings) -> list[str] | None:
    """Check the bytes as they are stored, which is what jobs will read; tells the columns of rows."""
    try:
        with _on_disk(storage, key, settings.work_dir) as path:
            if purpose == "dataset":
                return check_dataset(path, settings.max_unpacked_bytes)
            check_model_archive(path, settings.max_unpacked_bytes)
            return None
    except OSError as error:
        if is_out_of_space(error):
            raise StorageFullError("There is no room to check the file.") from error
        raise


@contextmanager
def _on_disk(storage: Storage, key: str, scratch: Path) -> Iterator[Path]:
    local = storage.local_path(key)
    if local is not None:
        yield local
        return
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / PurePosixPath(key).name
        storage.fetch(key, path)
        yield path
