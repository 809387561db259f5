"""What this machine has left, and what a job takes of it: memory and disk in bytes, read from the kernel (Linux)."""

import errno
import os
from contextlib import suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_VMSTAT = Path("/proc/vmstat")
_CGROUP = Path("/sys/fs/cgroup")
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)
_WORDS = (*map(os.strerror, _OUT_OF_SPACE), "PytorchStreamWriter failed writing")
_OUT_OF_GPU_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_OUT_OF_MEMORY = ("can't allocate memory", os.strerror(errno.ENOMEM), "std::bad_alloc", MemoryError.__name__)


def available_memory() -> int | None:
    """Main memory that a new process can have: the machine's, or the container's if that is less; None if unknown."""
    known = [bytes_ for bytes_ in (_available_on_machine(), _available_in_container()) if bytes_ is not None]
    return min(known, default=None)


def _available_on_machine() -> int | None:
    with suppress(OSError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _available_in_container() -> int | None:
    """Up to the limit of the control group (version 2); caches that can be dropped count as free."""
    with suppress(OSError, ValueError):  # "max" is no number: there is no limit
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        statistics = _fields(_CGROUP / "memory.stat")
        return max(0, limit - used + statistics.get("inactive_file", 0))
    return None


def kills_for_memory() -> int:
    """How many processes the kernel has killed because memory ran out: in this container, or else on this machine."""
    with suppress(OSError):
        return _fields(_CGROUP / "memory.events").get("oom_kill", 0)
    with suppress(OSError):
        return _fields(_VMSTAT).get("oom_kill", 0)
    return 0


def _fields(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}


def is_out_of_space(error: BaseException | None) -> bool:
    """Whether this says that a disk, or somebody's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in _OUT_OF_SPACE
    # What libraries in other languages raise only quotes the kernel, and torch not even that.
    return any(words in str(error) for words in _WORDS)


def is_out_of_gpu_memory(error: BaseException) -> bool:
    """Whether this says that a GPU's memory is full."""
    # By name: torch is the engine's. What other libraries on the GPU raise only quotes them.
    kind = type(error)
    is_torchs = kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("torch")
    return is_torchs or any(words in str(error) for words in _OUT_OF_GPU_MEMORY)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that main memory is full."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def folder_bytes(folder: Path) -> int:
    """What lies in a folder and below it; what vanishes meanwhile counts nothing."""
    total = 0
    # Path.rglob raises where a folder vanishes under it.
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(parent, name).lstat().st_size
    return total
