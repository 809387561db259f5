"""Identifiers that sort by the time they were made."""

import secrets
import time


def new_job_id() -> str:
    """`job_` and a UUIDv7 (RFC 9562, method 3: the 12 bits after the milliseconds are a fraction of one)."""
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = rest * 4096 // 1_000_000
    value = milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)
    return f"job_{value:032x}"


def new_file_id() -> str:
    """`file_` and 128 random bits: it cannot be guessed."""
    return f"file_{secrets.token_hex(16)}"
