"""The Python client of the HTTP API: plain, typed, and without torch.

    with NeuroPruneClient("http://127.0.0.1:8000") as client:
        job = client.submit({"model": …, "task": …, "target": {"sparsity": 0.5}})
        for event in client.watch(job["id"]):
            print(event.type, event.data)
        client.download(job["id"], Path("bundle"))

Jobs, files and artifacts are the JSON objects of the API as dictionaries: a newer service may say more than this
client knows.
"""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from client.bundle import digest_of, verify_manifest
from core.errors import InvalidInputError, NeuroPruneError, StorageError, shown

DEFAULT_URL = "http://127.0.0.1:8000"

_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
_UPLOAD_TIMEOUT = httpx.Timeout(30.0, connect=5.0, read=1800.0)
"""Between a file's last byte and the answer, the service copies some GiB to its store, which may be S3, and reads them
back through to check them, unpacked.
"""
_SILENCE_SECONDS = 45.0
"""The service pings every 15 s; a stream that is silent for longer is dead."""
_PAUSE_SECONDS = 0.5
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

Json = dict[str, Any]


class ApiError(NeuroPruneError):
    """The service refused a request; `problem` is its answer (RFC 9457)."""

    def __init__(self, status: int, problem: Json) -> None:
        faults = problem.get("errors") or []
        if len(faults) > 1:
            lines = [f"{f.get('pointer') or f.get('parameter') or 'request'}: {f.get('detail')}" for f in faults]
        else:
            lines = [str(problem.get("detail") or problem.get("title") or f"The service answered {status}.")]
        super().__init__("\n".join(lines))
        self.status = status
        self.problem = problem


class UnreachableError(NeuroPruneError):
    """No service answers at the URL."""


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a job's history; `seq` counts from 1 and resumes a stream."""

    seq: int
    type: str
    data: Json


class NeuroPruneClient:
    """A connection to one service; close it, or use it as a context manager.

    Args:
        patience_seconds: How long `watch` and `download` wait for a service that went away.

    Raises:
        InvalidInputError: the URL is none.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        patience_seconds: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._patience_seconds = patience_seconds
        try:
            is_local = httpx.URL(base_url).host in _LOOPBACK
        except httpx.InvalidURL as error:
            raise InvalidInputError(f"{shown(base_url)} is no URL: {error}.") from error
        # A proxy from the environment cannot reach this machine's own services.
        self._http = httpx.Client(base_url=base_url, timeout=_TIMEOUT, transport=transport, trust_env=not is_local)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # ---- jobs ------------------------------------------------------------------------------------------------------

    def submit(
        self, spec: Mapping[str, Any], *, name: str | None = None, labels: Mapping[str, str] | None = None
    ) -> Json:
        """Queue a job. A request whose answer got lost is sent once more, under a key that makes no second job.

        Args:
            spec: It may hold a name and labels, too.
            name: Goes before that of the spec.
            labels: Go before those of the spec.

        Raises:
            ApiError: the spec is not valid; the message names each field and what is allowed.
        """
        body = dict(spec)
        if name is not None:
            body["name"] = name
        if labels is not None:
            body["labels"] = dict(labels)
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        try:
            return self._json("POST", "/v1/jobs", json=body, headers=headers)
        except UnreachableError as error:
            if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                raise
            return self._json("POST", "/v1/jobs", json=body, headers=headers)

    def job(self, job_id: str) -> Json:
        """The job as it stands."""
        return self._json("GET", f"/v1/jobs/{job_id}")

    def jobs(self, *, limit: int = 20, cursor: str | None = None, status: str | None = None) -> Json:
        """One page of jobs, newest first: `data`, `has_more`, `next_cursor`."""
        parameters = {"limit": limit, "cursor": cursor, "status": status}
        return self._json("GET", "/v1/jobs", params={k: v for k, v in parameters.items() if v is not None})

    def cancel(self, job_id: str) -> Json:
        """Ask for a job's end.

        Raises:
            ApiError: it has ended already.
        """
        return self._json("POST", f"/v1/jobs/{job_id}/cancel")

    def pause(self, job_id: str) -> Json:
        """Ask for a job to be held back, at a checkpoint where it is running.

        Raises:
            ApiError: it has ended already.
        """
        return self._json("POST", f"/v1/jobs/{job_id}/pause")

    def resume(self, job_id: str) -> Json:
        """Let a paused job go on.

        Raises:
            ApiError: it is not paused.
        """
        return self._json("POST", f"/v1/jobs/{job_id}/resume")

    def retry(self, job_id: str) -> Json:
        """Have a job tried again that ended without a bundle.

        Raises:
            ApiError: it has not ended, or it has succeeded.
        """
        return self._json("POST", f"/v1/jobs/{job_id}/retry")

    def attempts(self, job_id: str) -> list[Json]:
        """Who worked at a job, when, and how each attempt ended."""
        return list(self._json("GET", f"/v1/jobs/{job_id}/attempts")["data"])

    def watch(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """The job's events from number `after` + 1 to its end, as they happen; survives lost connections.

        Raises:
            UnreachableError: the service was away for longer than this client's patience.
        """
        patience = self._patience()
        while True:
            with patience:
                for event in self._events(job_id, after):
                    after = event.seq
                    patience.renew()
                    yield event
                if self.job(job_id)["finished_at"] is not None:
                    return
                time.sleep(_PAUSE_SECONDS)

    def _events(self, job_id: str, after: int) -> Iterator[Event]:
        """One stream, to where it ends or breaks."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        timeout = httpx.Timeout(30.0, read=_SILENCE_SECONDS)
        with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=timeout) as response:
            _raise_for_problem(response)
            for event in parse_events(response.iter_lines()):
                if event.type == "done":
                    return
                yield replace(event, data=event.data["data"])

    # ---- files and artifacts ---------------------------------------------------------------------------------------

    def upload_file(self, path: Path, purpose: str) -> Json:
        """Upload a model archive (`purpose` model) or rows (`purpose` dataset).

        Raises:
            ApiError: the service finds something wrong with the file.
        """
        with path.open("rb") as source:
            files = {"file": (path.name, source, "application/octet-stream")}
            return self._json("POST", "/v1/files", data={"purpose": purpose}, files=files, timeout=_UPLOAD_TIMEOUT)

    def artifacts(self, job_id: str) -> list[Json]:
        """The files of a finished job's bundle: name, bytes, sha256, media_type, url."""
        found: list[Json] = self._json("GET", f"/v1/jobs/{job_id}/artifacts")["data"]
        return found

    def download(self, job_id: str, folder: Path) -> list[Path]:
        """Fetch a job's bundle and check every byte of it; goes on where an earlier attempt stopped.

        A frontier has a bundle for each level, each in a folder of its own below.

        Raises:
            StorageError: a file is not what the service or the bundle's manifest says it is.
        """
        artifacts = self.artifacts(job_id)
        if not artifacts:
            raise ApiError(HTTPStatus.NOT_FOUND, {"detail": f"{job_id} has no bundle: it has not succeeded."})
        folder.mkdir(parents=True, exist_ok=True)
        paths = [self._fetch(artifact, folder) for artifact in artifacts]
        for bundle in sorted({folder, *(path.parent for path in paths)}):
            verify_manifest(bundle)
        return paths

    def _fetch(self, artifact: Json, folder: Path) -> Path:
        """One file, under a temporary name until it is whole and right."""
        name, sha256 = str(artifact["name"]), artifact["sha256"]
        parts = name.split("/")
        if any(Path(part).name != part or part in {"", ".", ".."} for part in parts):
            raise StorageError(f"The service names a file {name!r}, which would lie outside of {folder}.")
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        if path.exists() and digest_of(path) == sha256:
            return path
        patience = self._patience()
        while not partial.exists() or partial.stat().st_size < artifact["bytes"]:
            with patience:
                self._append(artifact, partial, patience)
        if digest_of(partial) != sha256:
            partial.unlink()
            raise StorageError(f"{name} arrived damaged: its sha256 is not the one that the service lists.")
        return partial.replace(path)

    def _append(self, artifact: Json, partial: Path, patience: "_Patience") -> None:
        """Fetch what is missing; from the start, if the service does not continue."""
        have = partial.stat().st_size if partial.exists() else 0
        headers = {"Range": f"bytes={have}-", "If-Range": f'"{artifact["sha256"]}"'} if have else {}
        # Without this, what is counted and resumed would be compressed bytes.
        headers["Accept-Encoding"] = "identity"
        with self._http.stream("GET", artifact["url"], headers=headers) as response:
            _raise_for_problem(response)
            continues = response.status_code == HTTPStatus.PARTIAL_CONTENT
            with partial.open("ab" if continues else "wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    patience.renew()

    # ---- catalogue -------------------------------------------------------------------------------------------------

    def methods(self) -> list[Json]:
        """The pruning methods that the service offers, with their options."""
        found: list[Json] = self._json("GET", "/v1/methods")["data"]
        return found

    def families(self) -> list[Json]:
        """The transformer families that the service can prune."""
        found: list[Json] = self._json("GET", "/v1/families")["data"]
        return found

    # ---- requests --------------------------------------------------------------------------------------------------

    def _json(self, method: str, path: str, **request: Any) -> Json:
        try:
            response = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise UnreachableError(f"No NeuroPrune service answers at {self._http.base_url} ({error}).") from error
        _raise_for_problem(response)
        try:
            answer: Json = response.json()
        except ValueError as error:
            raise UnreachableError(f"What answers at {self._http.base_url} is no NeuroPrune service.") from error
        return answer

    def _patience(self) -> "_Patience":
        return _Patience(self._patience_seconds, str(self._http.base_url))


class _Patience:
    """As a context manager, swallows a lost connection, after a pause, until it has lasted too long."""

    def __init__(self, seconds: float, url: str) -> None:
        self._seconds = seconds
        self._url = url
        self.renew()

    def renew(self) -> None:
        """The service answers."""
        self._ends_at = time.monotonic() + self._seconds

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        is_passing = isinstance(error, httpx.TransportError | UnreachableError) or (
            isinstance(error, ApiError) and error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        )
        if not is_passing:
            return False
        if time.monotonic() > self._ends_at:
            raise UnreachableError(f"{self._url} has not answered for {self._seconds:g} s: {error}") from error
        time.sleep(_PAUSE_SECONDS)
        return True


def parse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events: fields up to an empty line make one; comments are pings."""
    fields: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        elif fields:
            if "data" in fields:
                data = json.loads("\n".join(fields["data"]))
                yield Event(int(fields.get("id", ["0"])[-1]), fields.get("event", ["message"])[-1], data)
            fields = {}


def _raise_for_problem(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    raise ApiError(response.status_code, problem if isinstance(problem, dict) else {})
