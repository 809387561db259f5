"""What every refusal of the API must look like."""

from urllib.parse import unquote

import httpx


def assert_problem(answer: httpx.Response, status: int, code: str, *pointers: str) -> dict:
    """The answer is a problem detail of this kind that blames these fields; its body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"] == f"urn:neuroprune:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert unquote(body["instance"]) == answer.request.url.path
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert [error.get("pointer", error.get("parameter")) for error in body["errors"]] == list(pointers)
    assert all(error["detail"] for error in body["errors"])
    return body
