"""Where the artifact store has what belongs to jobs and uploads: keys of `core.storage`, and prefixes of them."""

CHECKPOINTS = "checkpoints"
"""Below it, all jobs' checkpoints lie in the store."""


def artifacts_of(job_id: str) -> str:
    """Where all files of a job's attempts lie."""
    return f"artifacts/{job_id}"


def artifact_prefix(job_id: str, attempt: int) -> str:
    """Where an attempt's files go; they become visible only with the job's success."""
    return f"{artifacts_of(job_id)}/{attempt}"


def checkpoints_of(job_id: str) -> str:
    """Where all checkpoints of a job lie, by attempt."""
    return f"{CHECKPOINTS}/{job_id}"


def upload_key(file_id: str, suffix: str) -> str:
    """Where an upload lies; its suffix says what it is."""
    return f"uploads/{file_id}{suffix}"
