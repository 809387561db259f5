"""Archives of models: checked before they are stored, and unpacked for a job.

Names cannot leave the target folder, and links and pickles are refused.
"""

import gzip
import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from core.errors import InvalidInputError, InvalidModelError, shown
from core.uploads import CHUNK_BYTES
from core.wording import some_of

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})
"""Loading one of these runs code that it carries."""

MAX_MEMBERS = 10_000
MAX_DIRECTORY_BYTES = 16 * 2**20
# Of a .safetensors file; parsed, it takes up to 25 times as much memory. A tensor's entry has some 150 bytes (name,
# type, shape, offsets), so more than 100,000 tensors fit into one file; DeepSeek-V3 has 92,000, and these in 163 files.
MAX_HEADER_BYTES = 16 * 2**20
MAX_NAME_BYTES = 255  # what file systems take
MAX_PATH_BYTES = 1024  # of a name with its folders; systems take 4,096, with those of the job's folder


def check_model_archive(archive: Path, limit: int) -> None:
    """Read the archive through: it is whole, safe to unpack, below `limit` bytes, and holds a model.

    Raises:
        InvalidModelError: it is not; the message names the member that is to blame.
    """
    names = []
    for member in _members(archive, limit):
        names.append(member.name)
        if member.name.suffix == ".safetensors":
            _check_safetensors(member)
        elif member.name.name == "config.json":
            _check_config(member)
        else:
            for _ in member.chunks():
                pass
    _model_folder(names)


def unpack_model_archive(archive: Path, target: Path, limit: int) -> Path:
    """Unpack into the new folder `target`; the folder below it that holds `config.json`.

    Raises:
        InvalidModelError: as `check_model_archive`; what is in `target` by then must not be used.
    """
    target.mkdir(parents=True)
    names = []
    for member in _members(archive, limit):
        names.append(member.name)
        path = target / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.writelines(member.chunks())
    return target / _model_folder(names)


_Opener = Callable[[], IO[bytes]]


@dataclass(frozen=True, slots=True)
class _Member:
    """One regular file in an archive."""

    name: PurePosixPath
    size: int
    open: _Opener

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, all of them or an error."""
        left = self.size
        with _damage_reported(f"{self.name} in the archive is damaged"), self.open() as source:
            while chunk := source.read(CHUNK_BYTES):
                left -= len(chunk)
                yield chunk
            if left:
                raise EOFError("it is cut short")


@contextmanager
def _damage_reported(what: str) -> Iterator[None]:
    try:
        yield
    except InvalidInputError:
        raise
    except Exception as error:  # a hostile archive can make the decoders raise nearly anything
        raise InvalidModelError(f"{what}: {error or type(error).__name__}.") from error


def _members(archive: Path, limit: int) -> Iterator[_Member]:
    """The regular files of the archive, each safe to write below a folder, together below `limit` bytes."""
    read = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    total = 0
    with _damage_reported("The archive cannot be read"):
        for number, member in enumerate(read(archive, limit)):
            if number >= MAX_MEMBERS:
                raise InvalidModelError(f"The archive holds more than {MAX_MEMBERS} entries.")
            if member is None:
                continue
            total += member.size
            if total > limit:
                raise InvalidModelError(f"The archive unpacks to more than {limit} bytes, the most that is accepted.")
            if member.name in files or member.name in folders or not files.isdisjoint(member.name.parents):
                raise InvalidModelError(f"The archive holds {member.name} twice.")
            files.add(member.name)
            folders.update(member.name.parents)
            if not _is_litter(member.name):
                yield member


def _zip_members(archive: Path, _limit: int) -> Iterator[_Member | None]:
    """Every entry, None for a folder."""
    with _BoundedFile(archive) as file, zipfile.ZipFile(file) as opened:
        for info in opened.infolist():
            if info.is_dir():
                yield None
                continue
            name = _safe_name(info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise InvalidModelError(f"{name} in the archive is a link or a device; only files are accepted.")
            if info.flag_bits & 1:
                raise InvalidModelError(f"{name} in the archive is encrypted.")
            # The others' decoders take no bound on what one read gives: 457 bytes of bzip2 became 800 MiB in memory.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InvalidModelError(
                    f"{name} in the archive is neither deflated nor stored, which is what a .zip may hold; "
                    "pack it again without bzip2, LZMA or the like."
                )
            yield _Member(name, info.file_size, cast(_Opener, partial(opened.open, info)))


def _tar_members(archive: Path, limit: int) -> Iterator[_Member | None]:
    """Every entry, None for a folder."""
    with _BoundedGzip(archive) as file, tarfile.open(fileobj=file, mode="r:") as opened:
        for info in opened:
            opened.members.clear()  # type: ignore[attr-defined]  # it would keep all, each with its headers
            file.end = opened.offset + CHUNK_BYTES
            if info.isdir():
                yield None
                continue
            name = _safe_name(info.name)
            if info.size < 0:  # Some tarfiles go back by it, to read what they have read, again and again.
                raise InvalidModelError(f"{name} in the archive has a negative size.")
            if not info.isreg() or info.issparse():
                raise InvalidModelError(f"{name} in the archive is a link or a device; only files are accepted.")
            yield _Member(name, info.size, cast(_Opener, partial(opened.extractfile, info)))
        # What follows the last member is padding; reading it makes gzip compare its checksum.
        file.seek(max(file.tell(), 2 * limit))


class _BoundedFile(io.FileIO):
    """A file that refuses to read a directory of absurd size into memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise InvalidModelError(f"The archive's directory is larger than {MAX_DIRECTORY_BYTES} bytes.")
        return super().read(-1 if size is None else size) or b""


class _BoundedGzip(gzip.GzipFile):
    """A gzip stream that refuses to read headers of absurd size into memory: before an entry, those up to `end`."""

    end = CHUNK_BYTES

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.end - self.tell():
            raise InvalidModelError(f"The archive holds a header larger than {CHUNK_BYTES} bytes.")
        return super().read(size)


def _safe_name(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise InvalidModelError(f"{shown(name)} in the archive would be written outside of its folder.")
    if len(name.encode(errors="replace")) > MAX_PATH_BYTES:
        raise InvalidModelError(
            f"{shown(name)} in the archive lies too deep; its name and folders may have {MAX_PATH_BYTES} bytes."
        )
    if any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in path.parts) or not _is_encodable(name):
        raise InvalidModelError(
            f"{shown(name)} in the archive is no name for a file; it must be UTF-8, at most {MAX_NAME_BYTES} bytes."
        )
    if path.suffix.lower() in PICKLES and not _is_litter(path):
        raise InvalidModelError(
            f"{name} in the archive is a pickle, which can run code when it is loaded; "
            "leave it out and save the weights as .safetensors."
        )
    return path


def _is_encodable(name: str) -> bool:
    return name == name.encode(errors="replace").decode()


def _is_litter(name: PurePosixPath) -> bool:
    """What macOS leaves in archives."""
    return "__MACOSX" in name.parts or name.name.startswith("._") or name.name == ".DS_Store"


def _model_folder(names: Iterable[PurePosixPath]) -> PurePosixPath:
    """The folder of the outermost config.json, which must hold weights too."""
    names = list(names)
    configs = sorted((name for name in names if name.name == "config.json"), key=lambda name: len(name.parts))
    if not configs:
        raise InvalidModelError("The archive holds no config.json; pack a model's whole folder.")
    outermost = [str(name.parent) for name in configs if len(name.parts) == len(configs[0].parts)]
    if len(outermost) > 1:
        raise InvalidModelError(
            f"The archive holds a model in each of {some_of(outermost)}; pack one of these folders."
        )
    folder = configs[0].parent
    if not any(name.suffix == ".safetensors" and name.parent == folder for name in names):
        raise InvalidModelError(
            f"The archive holds no .safetensors file beside {configs[0]}; save the weights as such."
        )
    return folder


def _check_config(member: _Member) -> None:
    if member.size > MAX_DIRECTORY_BYTES:
        raise InvalidModelError(f"{member.name} in the archive is larger than {MAX_DIRECTORY_BYTES} bytes.")
    text = b"".join(member.chunks())
    with _damage_reported(f"{member.name} in the archive is not JSON"):
        if not isinstance(json.loads(text), dict):
            raise InvalidModelError(f"{member.name} in the archive is not a JSON object.")


def _check_safetensors(member: _Member) -> None:
    """The header (8 bytes of length, then JSON) parses, and describes exactly the bytes that follow it."""
    head = bytearray()
    header_end = 8
    for chunk in member.chunks():
        if len(head) < header_end:
            head += chunk
            header_end = 8 + int.from_bytes(head[:8], "little")
            if header_end > member.size:
                raise InvalidModelError(f"{member.name} in the archive is not a safetensors file.")
            if header_end > 8 + MAX_HEADER_BYTES:
                raise InvalidModelError(
                    f"{member.name} in the archive has a header larger than {MAX_HEADER_BYTES} bytes; "
                    "save the weights in several files."
                )
    with _damage_reported(f"{member.name} in the archive is not a safetensors file"):
        header: dict[str, Any] = json.loads(head[8:header_end])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = header_end + max(ends, default=0)
    if expected != member.size:
        raise InvalidModelError(
            f"{member.name} in the archive is damaged: its header describes {expected} bytes, it has {member.size}."
        )
