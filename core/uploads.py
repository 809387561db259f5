"""What users upload: model archives and datasets, checked before anything relies on them.

Nothing here trusts a header: reads are bounded, sizes are summed before they are read, names cannot leave the target
folder, links and pickles are refused, and every byte is decompressed once so that its checksum counts.
"""

import csv
import gzip
import io
import json
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

from core.errors import InvalidDataError, InvalidInputError, InvalidModelError, shown
from core.jobs.records import Purpose

SUFFIXES: dict[Purpose, tuple[str, ...]] = {
    "model": (".zip", ".tar.gz", ".tgz"),
    "dataset": (".jsonl", ".csv", ".parquet", ".jsonl.gz", ".csv.gz", ".parquet.gz"),
}
"""File names that are accepted, by purpose."""

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})
"""Loading one of these runs code that it carries."""

CHUNK_BYTES = 2**20
MAX_MEMBERS = 10_000
MAX_DIRECTORY_BYTES = 16 * 2**20
# Of a .safetensors file; parsed, it takes up to 25 times as much memory. A tensor's entry has some 150 bytes (name,
# type, shape, offsets), so more than 100,000 tensors fit into one file; DeepSeek-V3 has 92,000, and these in 163 files.
MAX_HEADER_BYTES = 16 * 2**20
MAX_NAME_BYTES = 255  # what file systems take
MAX_ROW_BYTES = 16 * 2**20
# A document may be one field; the module's own limit, of 131,072 characters, is for all readers of a process.
csv.field_size_limit(MAX_ROW_BYTES)
ROWS_CHECKED = 100
PARQUET_MAGIC = b"PAR1"
PARQUET_TAIL_BYTES = 4 + len(PARQUET_MAGIC)  # the footer's length, then the magic


def suffix_of(filename: str, purpose: Purpose) -> str:
    """The accepted suffix that the name ends with.

    Raises:
        InvalidInputError: none; the message lists those that are accepted.
    """
    lowered = filename.lower()
    for suffix in sorted(SUFFIXES[purpose], key=len, reverse=True):
        if lowered.endswith(suffix) and len(lowered) > len(suffix):
            return suffix
    allowed = ", ".join(SUFFIXES[purpose])
    hint = ""
    if purpose == "model":
        hint = " Pack the model's folder (config.json, *.safetensors, tokenizer) into one archive; pickles are refused."
    raise InvalidInputError(f"{shown(filename)}: a file of purpose={purpose} must end in {allowed}.{hint}")


# ---- models --------------------------------------------------------------------------------------------------------


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


# ---- datasets ------------------------------------------------------------------------------------------------------


def check_dataset(path: Path, limit: int) -> None:
    """The file opens, begins as its suffix promises, and is whole and below `limit` bytes once unpacked.

    Of text the first rows are parsed; of Parquet only its frame is looked at, since its rows need a decoder that no
    upload should reach in the API's process.

    Raises:
        InvalidDataError: it does not; the message names the line.
    """
    suffix = suffix_of(path.name, "dataset")
    check = _CHECKS[suffix.removesuffix(".gz")]
    try:
        with gzip.open(path) if suffix.endswith(".gz") else path.open("rb") as source:
            check(cast(BinaryIO, source), limit)
            while source.read(CHUNK_BYTES):  # to the end, where gzip compares its checksum
                _check_size(source.tell(), limit)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidDataError(f"The file is not a whole gzip file: {error}.") from error


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise InvalidDataError(f"The file unpacks to more than {limit} bytes, the most that is accepted.")


def _lines(source: BinaryIO, limit: int) -> Iterator[str]:
    """Lines as text, a byte order mark dropped."""
    for number in range(1, 2**63):
        line = source.readline(MAX_ROW_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_ROW_BYTES:
            raise InvalidDataError(f"Line {number} is longer than {MAX_ROW_BYTES} bytes.")
        _check_size(source.tell(), limit)
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidDataError(f"Line {number} is not UTF-8 text.") from error


def _check_jsonl(source: BinaryIO, limit: int) -> None:
    rows = 0
    for number, line in enumerate(islice(_lines(source, limit), ROWS_CHECKED), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            # Its own account of the place would count this line as the first.
            reason = (
                f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            )
            raise InvalidDataError(f"Line {number} is not JSON: {reason}. JSONL has one JSON object a line.") from error
        if not isinstance(row, dict):
            raise InvalidDataError(f"Line {number} is not a JSON object; JSONL has one object a line.")
        rows += 1
    if not rows:
        raise InvalidDataError("The file holds no rows.")


def _check_csv(source: BinaryIO, limit: int) -> None:
    reader = csv.reader(_lines(source, limit), strict=True)
    rows, line = 0, 1
    try:
        header = next(reader, [])
        if not header or not all(name.strip() for name in header):
            raise InvalidDataError("Line 1 must name every column of the CSV.")
        if twice := repeated(header):
            raise InvalidDataError(f"Line 1 names the column {shown(twice)} twice.")
        line = reader.line_num + 1
        for row in islice(reader, ROWS_CHECKED):
            if row and len(row) != len(header):
                raise InvalidDataError(f"Line {line} has {len(row)} fields; the header names {len(header)} columns.")
            rows += bool(row)
            line = reader.line_num + 1
    except csv.Error as error:
        raise InvalidDataError(f"Line {line} is not CSV: {described(error)}.") from error
    if not rows:
        raise InvalidDataError("The file holds no rows below its header.")


def repeated(names: list[str]) -> str | None:
    """The first name that is there more than once; columns without a name are asked for by nobody."""
    return next((name for name, count in Counter(names).items() if name and count > 1), None)


def described(error: csv.Error) -> str:
    """What is wrong, without csv's advice to programmers on how to open the file."""
    return str(error).partition(" - ")[0]


def _check_parquet(source: BinaryIO, limit: int) -> None:
    """`PAR1` at both ends, and before the last one a footer of the length that it says (Apache Parquet format)."""
    head = source.read(len(PARQUET_MAGIC))
    tail = head
    size = len(head)
    while chunk := source.read(CHUNK_BYTES):
        size += len(chunk)
        _check_size(size, limit)
        tail = (tail + chunk)[-PARQUET_TAIL_BYTES:]
    if head != PARQUET_MAGIC or tail[4:] != PARQUET_MAGIC or len(tail) < PARQUET_TAIL_BYTES:
        raise InvalidDataError("The file is not Parquet, or is cut short: it must begin and end with PAR1.")
    if int.from_bytes(tail[:4], "little") > size - len(PARQUET_MAGIC) - PARQUET_TAIL_BYTES:
        raise InvalidDataError("The file is not Parquet: its footer would be longer than the file.")


_CHECKS: dict[str, Callable[[BinaryIO, int], None]] = {
    ".jsonl": _check_jsonl,
    ".csv": _check_csv,
    ".parquet": _check_parquet,
}
