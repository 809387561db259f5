"""The files of a finished job's bundle: list, download."""

import base64
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Request
from fastapi.responses import Response, StreamingResponse
from starlette.convertors import StringConvertor, register_url_convertor

from api.conditional import UnsatisfiableRangeError, is_named, parse_range
from api.deps import JobId, Store, Stored
from api.errors import problem, problems
from api.schemas import ArtifactList, ArtifactObject
from core.errors import NotFoundError, shown
from core.jobs.records import ArtifactRecord
from core.jobs.state import Status
from core.jobs.store import JobStore


class _ArtifactName(StringConvertor):
    """A file's name, or a folder's and a file's. Starlette's own `path` would drop a newline at the end."""

    regex = "[^/]+(?:/[^/]+)?"

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("artifact", _ArtifactName())

router = APIRouter(prefix="/v1/jobs/{job_id}/artifacts", tags=["artifacts"])


@router.get("", response_model=ArtifactList, responses=problems(404, 422, 503))
def list_artifacts(job_id: JobId, store: Store) -> ArtifactList:
    """The bundle's files with size and digest; empty until the job has succeeded."""
    return ArtifactList(data=[ArtifactObject.of(record) for record in store.artifacts(job_id)])


@router.head("/{name:artifact}", include_in_schema=False)
@router.get(
    "/{name:artifact}",
    response_class=StreamingResponse,
    responses=problems(404, 412, 416, 422, 503)
    | {
        200: {"description": "The file.", "content": {"application/octet-stream": {}}},
        206: {"description": "The part named by Range."},
        304: {"description": "If-None-Match names this file."},
    },
)
def download_artifact(
    job_id: JobId,
    name: str,
    request: Request,
    store: Store,
    storage: Stored,
    range_: Annotated[str | None, Header(alias="Range", description="One byte range, `bytes=0-1023`.")] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_match: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Download a file. Its ETag is its sha256; a broken download resumes with Range and If-Range."""
    record = _find(store, job_id, name)
    headers = _headers(record)
    etag = headers["ETag"]
    if if_match is not None and not is_named(etag, if_match):
        return problem(request, 412, f"The file's ETag is {etag}; If-Match names another.")
    if is_named(etag, if_none_match):
        return Response(status_code=304, headers={"ETag": etag})
    try:
        part = parse_range(range_, record.size) if if_range in (None, etag) else None
    except UnsatisfiableRangeError:
        detail = f"{name} has {record.size} bytes; {shown(range_)} names none of them."
        return problem(request, 416, detail, headers={"Content-Range": f"bytes */{record.size}"})
    start, end = (part.start, part.end) if part else (0, record.size)
    status = 206 if part else 200
    headers["Content-Length"] = str(end - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{record.size}"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=record.media_type)
    chunks = storage.read_range(record.key, start, end)
    return StreamingResponse(chunks, status_code=status, headers=headers, media_type=record.media_type)


def _find(store: JobStore, job_id: str, name: str) -> ArtifactRecord:
    records = store.artifacts(job_id)
    for record in records:
        if record.name == name:
            return record
    if records:
        raise NotFoundError(f"{job_id} has no artifact {shown(name)}; it has {', '.join(r.name for r in records)}.")
    status = store.get(job_id).status
    raise NotFoundError(f"{job_id} is {status}; it has artifacts once it is {Status.SUCCEEDED}.")


def _headers(record: ArtifactRecord) -> dict[str, str]:
    filename = record.name.rpartition("/")[2]
    digest = base64.b64encode(bytes.fromhex(record.sha256)).decode()
    return {
        "ETag": f'"{record.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(filename)}",
        "Cache-Control": "private, no-cache",
    }
