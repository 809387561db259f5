"""The Python client of the HTTP API: plain, typed, and without torch.

    with NeuroPruneClient("http://127.0.0.1:8000") as client:
        job = client.submit({"model": …, "task": …, "target": {"sparsity": 0.5}})
        for event in client.watch(job["id"]):
            print(event.type, event.data)
        client.download(job["id"], "bundle")

Jobs, files and artifacts are the JSON objects of the API as dictionaries: a newer service may say more than this
client knows.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from client import answers
from client.answers import Json
from client.bundle import MANIFEST, digest_of, make_way, partial_of, place, verify_manifest
from client.connection import connect
from client.errors import ApiError, UnreachableError, may_be_done
from client.events import Event, parse_events
from client.keys import key_of
from client.paths import file_path, job_path
from client.patience import Patience
from client.urls import without_userinfo
from core.errors import StorageError, StorageFullError
from core.resources import is_out_of_space

DEFAULT_URL = "http://127.0.0.1:8000"

_UPLOAD_TIMEOUT = httpx.Timeout(30.0, connect=5.0, read=1800.0)
"""Between a file's last byte and the answer, the service copies some GiB to its store, which may be S3, and reads them
back through to check them, unpacked.
"""
_SILENCE_SECONDS = 45.0
"""The service pings every 15 s; a stream that is silent for longer is dead."""
_PROBLEM = "application/problem+json"
_GATEWAY_ERRORS = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
"""What a proxy answers while the service behind it is away."""


class NeuroPruneClient:
    """A connection to one service; close it, or use it as a context manager.

    Whatever asks the service raises UnreachableError where none answers, and InvalidInputError where an id is none.

    Args:
        api_key: Where the service asks for one; by default what NEUROPRUNE_API_KEY holds.
        patience_seconds: How long `watch` and `download` wait for a service that went away.

    Raises:
        InvalidInputError: the URL is none, or the key.
        ConfigurationError: the environment names a proxy that cannot be used.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        patience_seconds: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._patience_seconds = patience_seconds
        self._http = connect(base_url, api_key, transport)
        self._shown_url = without_userinfo(str(self._http.base_url))

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
        self,
        spec: Mapping[str, Any],
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Json:
        """Queue a job. A request whose answer got lost is sent once more, under a key that makes no second job.

        Args:
            spec: It may hold a name and labels, too.
            name: Goes before that of the spec.
            labels: Go before those of the spec.
            idempotency_key: Whoever submits the same once more under the same key, within a day, gets the job that
                there is; by default each call has a key of its own.

        Raises:
            ApiError: the spec is not valid, and the message names each field and what is allowed; or the key was used
                for another.
            InvalidInputError: the key is none.
        """
        body = dict(spec)
        if name is not None:
            body["name"] = name
        if labels is not None:
            body["labels"] = dict(labels)
        headers = {"Idempotency-Key": key_of(idempotency_key)}

        def post() -> Json:
            return self._json(answers.is_job, "POST", "/v1/jobs", json=body, headers=headers)

        try:
            return post()
        except (ApiError, UnreachableError) as error:
            if not may_be_done(error):
                raise
            return post()

    def job(self, job_id: str) -> Json:
        """The job as it stands."""
        return self._json(answers.is_job, "GET", job_path(job_id))

    def jobs(self, *, limit: int = 20, cursor: str | None = None, status: str | None = None) -> Json:
        """One page of jobs, newest first: `data`, `has_more`, `next_cursor`."""
        return self._page("/v1/jobs", answers.is_job, limit=limit, cursor=cursor, status=status)

    def cancel(self, job_id: str) -> Json:
        """Ask for a job's end.

        Raises:
            ApiError: it has ended already.
        """
        return self._json(answers.is_job, "POST", f"{job_path(job_id)}/cancel")

    def pause(self, job_id: str) -> Json:
        """Ask for a job to be held back, at a checkpoint where it is running.

        Raises:
            ApiError: it has ended already.
        """
        return self._json(answers.is_job, "POST", f"{job_path(job_id)}/pause")

    def resume(self, job_id: str) -> Json:
        """Let a paused job go on.

        Raises:
            ApiError: it is not paused.
        """
        return self._json(answers.is_job, "POST", f"{job_path(job_id)}/resume")

    def retry(self, job_id: str) -> Json:
        """Have a job tried again that ended without a bundle.

        Raises:
            ApiError: it has not ended, or it has succeeded, or an upload that it reads was deleted.
        """
        return self._json(answers.is_job, "POST", f"{job_path(job_id)}/retry")

    def delete_job(self, job_id: str) -> None:
        """Delete a job that has ended, with its history and its bundle, for good.

        Raises:
            ApiError: it has not ended.
        """
        self._delete(job_path(job_id))

    def attempts(self, job_id: str) -> list[Json]:
        """Who worked at a job, when, and how each attempt ended."""
        return self._list(f"{job_path(job_id)}/attempts", answers.is_object)

    def watch(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """The job's events from number `after` + 1 to its end, as they happen; survives lost connections.

        Raises:
            ApiError: there is no such job.
            UnreachableError: no service answered at first, or later for longer than this client's patience.
        """
        self.job(job_id)  # without patience: a URL or an id that is wrong is not waited for
        patience = self._patience()
        while True:
            with patience:
                for event in self._events(job_id, after, patience):
                    after = event.seq
                    yield event
                if self.job(job_id)["finished_at"] is not None:
                    return
                patience.pause()

    def _events(self, job_id: str, after: int, patience: Patience) -> Iterator[Event]:
        """One stream, to where it ends or breaks."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        timeout = httpx.Timeout(30.0, read=_SILENCE_SECONDS)
        with self._http.stream("GET", f"{job_path(job_id)}/events", headers=headers, timeout=timeout) as response:
            self._raise_for_refusal(response)
            patience.renew()
            for event in parse_events(response.iter_text()):
                if event.type == "done":
                    return
                yield replace(event, data=event.data["data"])

    # ---- files and artifacts ---------------------------------------------------------------------------------------

    def upload_file(self, path: str | Path, purpose: str) -> Json:
        """Upload a model archive (`purpose` model) or rows (`purpose` dataset).

        Raises:
            ApiError: the service finds something wrong with the file.
        """
        path = Path(path)
        with path.open("rb") as source:
            files = {"file": (path.name, source, "application/octet-stream")}
            form = {"purpose": purpose}
            return self._json(answers.is_file, "POST", "/v1/files", data=form, files=files, timeout=_UPLOAD_TIMEOUT)

    def files(self, *, limit: int = 20, cursor: str | None = None, purpose: str | None = None) -> Json:
        """One page of uploads, newest first: `data`, `has_more`, `next_cursor`."""
        return self._page("/v1/files", answers.is_file, limit=limit, cursor=cursor, purpose=purpose)

    def delete_file(self, file_id: str) -> None:
        """Delete an upload for good; jobs that have ended and name it cannot be tried again.

        Raises:
            ApiError: a job that has not ended reads it.
        """
        self._delete(file_path(file_id))

    def artifacts(self, job_id: str) -> list[Json]:
        """The files of a finished job's bundle: name, bytes, sha256, media_type, url."""
        return self._list(f"{job_path(job_id)}/artifacts", answers.is_artifact)

    def download(self, job_id: str, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Fetch a job's bundle and check every byte of it; goes on where an earlier attempt stopped.

        A frontier has a bundle for each level, each in a folder of its own below. What the folder holds under other
        names stays as it is.

        Args:
            overwrite: Files of the bundle's names with other content give way, and so does the rest of the bundle
                whose manifest is among them.

        Raises:
            ApiError: there is no such job, or it has no bundle.
            InvalidInputError: there are such files, which are not to be overwritten; nothing was fetched.
            UnreachableError: the service was away for longer than this client's patience.
            StorageError: a file is not what the service says it is.
            StorageFullError: there is no room for a file; what has arrived of it stays.
            VerificationError: a file is not what the bundle's manifest says it is.
        """
        folder = Path(folder)
        artifacts = {place(artifact["name"], folder): artifact for artifact in self.artifacts(job_id)}
        if not artifacts:
            raise ApiError(HTTPStatus.NOT_FOUND, {"detail": f"{job_id} has no bundle: it has not succeeded."})
        make_way(artifacts, folder, overwrite=overwrite)
        # Manifests come first: they tell whose the files are that an interrupted download leaves.
        for path in sorted(artifacts, key=lambda path: path.name != MANIFEST):
            if not path.exists():
                self._fetch(artifacts[path], path)
        for bundle in sorted({folder, *(path.parent for path in artifacts)}):
            verify_manifest(bundle)
        return list(artifacts)

    def _fetch(self, artifact: Json, path: Path) -> None:
        """One file, under a temporary name until it is whole and right."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_of(path)
        resumes = partial.exists()
        patience = self._patience()
        while not partial.exists() or partial.stat().st_size < artifact["bytes"]:
            with patience, _full_disk_named(path):
                self._append(artifact, partial, patience)
        if digest_of(partial) == artifact["sha256"]:
            partial.replace(path)
            return
        partial.unlink()
        if not resumes:
            raise StorageError(f"{artifact['name']} arrived damaged: its sha256 is not the one that the service lists.")
        self._fetch(artifact, path)  # what was there may have been the beginning of another bundle's file

    def _append(self, artifact: Json, partial: Path, patience: Patience) -> None:
        """Fetch what is missing; from the start, if the service does not continue."""
        have = partial.stat().st_size if partial.exists() else 0
        headers = {"Range": f"bytes={have}-", "If-Range": f'"{artifact["sha256"]}"'} if have else {}
        # Without this, what is counted and resumed would be compressed bytes.
        headers["Accept-Encoding"] = "identity"
        with self._http.stream("GET", artifact["url"], headers=headers) as response:
            self._raise_for_refusal(response)
            continues = response.status_code == HTTPStatus.PARTIAL_CONTENT
            with partial.open("ab" if continues else "wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    patience.renew()
        have = partial.stat().st_size
        if have < artifact["bytes"]:
            raise StorageError(f"{artifact['name']} ends after {have} of the {artifact['bytes']} bytes listed.")

    # ---- catalogue -------------------------------------------------------------------------------------------------

    def methods(self) -> list[Json]:
        """The pruning methods that the service offers, with their options."""
        return self._list("/v1/methods", answers.is_object)

    def families(self) -> list[Json]:
        """The transformer families that the service can prune."""
        return self._list("/v1/families", answers.is_object)

    # ---- requests --------------------------------------------------------------------------------------------------

    def _json(self, is_right: answers.Check, method: str, path: str, **request: Any) -> Json:
        """What the service answers; `is_right` tells whether such a service could have."""
        answer = answers.parsed(self._ask(method, path, **request))
        if is_right(answer):
            return answer
        raise self._no_service()

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._away(error) from error
        self._raise_for_refusal(response)
        return response

    def _delete(self, path: str) -> None:
        if self._ask("DELETE", path).status_code != HTTPStatus.NO_CONTENT:
            raise self._no_service()

    def _page(self, path: str, is_right: answers.Check, **parameters: int | str | None) -> Json:
        given = {name: value for name, value in parameters.items() if value is not None}
        return self._json(answers.is_list_of(is_right), "GET", path, params=given)

    def _list(self, path: str, is_right: answers.Check) -> list[Json]:
        found: list[Json] = self._json(answers.is_list_of(is_right), "GET", path)["data"]
        return found

    def _raise_for_refusal(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        response.read()
        problem = answers.parsed(response) if response.headers.get("content-type", "").startswith(_PROBLEM) else None
        if answers.is_problem(problem):
            raise ApiError(response.status_code, problem)
        code, reason = response.status_code, f"{response.status_code} {response.reason_phrase}"
        raise self._away(reason, code) if code in _GATEWAY_ERRORS else self._no_service(f" ({reason})", code)

    def _away(self, reason: object, status: int | None = None) -> UnreachableError:
        return UnreachableError(f"No NeuroPrune service answers at {self._shown_url} ({reason}).", status)

    def _no_service(self, reason: str = "", status: int | None = None) -> UnreachableError:
        return UnreachableError(f"What answers at {self._shown_url} is no NeuroPrune service{reason}.", status)

    def _patience(self) -> Patience:
        return Patience(self._patience_seconds, self._shown_url)


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    """What the file system refuses while it writes names no file."""
    try:
        yield
    except OSError as error:
        if is_out_of_space(error):
            raise StorageFullError(f"There is no room for {path}; what has arrived of it stays.") from error
        raise
