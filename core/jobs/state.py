"""The statuses of a job and the one table of legal transitions."""

from enum import StrEnum


class Status(StrEnum):
    """Where a job stands. `phase` says more about a running one."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"


S = Status

TRANSITIONS: dict[Status, frozenset[Status]] = {
    S.QUEUED: frozenset({S.STARTING, S.PAUSED, S.CANCELLED, S.EXPIRED}),
    S.STARTING: frozenset({S.RUNNING, S.QUEUED, S.CANCELLING, S.PAUSING, S.FAILED}),
    S.RUNNING: frozenset({S.SUCCEEDED, S.FAILED, S.QUEUED, S.CANCELLING, S.PAUSING}),
    S.PAUSING: frozenset({S.PAUSED, S.SUCCEEDED, S.FAILED, S.CANCELLING}),
    S.PAUSED: frozenset({S.QUEUED, S.CANCELLED}),
    S.CANCELLING: frozenset({S.CANCELLED, S.SUCCEEDED, S.FAILED}),
    S.CANCELLED: frozenset({S.QUEUED}),
    S.SUCCEEDED: frozenset(),
    S.FAILED: frozenset({S.QUEUED}),
    S.EXPIRED: frozenset({S.QUEUED}),
}
"""From a status to those that may follow it."""

TERMINAL: frozenset[Status] = frozenset({S.CANCELLED, S.SUCCEEDED, S.FAILED, S.EXPIRED})
"""The job has ended; only its user can have it tried again, and that not after a success."""
RETRYABLE: frozenset[Status] = frozenset(s for s in TERMINAL if S.QUEUED in TRANSITIONS[s])
ACTIVE: frozenset[Status] = frozenset({S.STARTING, S.RUNNING, S.PAUSING, S.CANCELLING})
"""A worker holds a lease on jobs in these."""


def sources(target: Status) -> frozenset[Status]:
    """The statuses from which `target` may be reached in one step."""
    return frozenset(s for s, following in TRANSITIONS.items() if target in following)
