"""Where the service has what an id names."""

import re

from core.errors import InvalidInputError, shown

_ID = re.compile(r"\w+", re.ASCII)
"""What an id looks like, loosely; anything else could make the path of something else."""


def job_path(job_id: str) -> str:
    """The path of a job.

    Raises:
        InvalidInputError: it is no id.
    """
    return _path("job", job_id, "job_01a20ada1ce073f39a8afeb4637ec46f")


def file_path(file_id: str) -> str:
    """The path of an upload.

    Raises:
        InvalidInputError: it is no id.
    """
    return _path("file", file_id, "file_32487e9412d67dcfacc0e6392135584c")


def _path(kind: str, item: str, example: str) -> str:
    if not _ID.fullmatch(item):
        raise InvalidInputError(f"{shown(item)} is no {kind}'s id; one looks like {example}.")
    return f"/v1/{kind}s/{item}"
