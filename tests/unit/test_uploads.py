"""Uploads are checked before anything relies on them."""

import gzip
import io
import json
import stat
import tarfile
import tracemalloc
import zipfile

import pytest

from core.errors import InvalidDataError, InvalidInputError, InvalidModelError
from core.uploads import suffix_of
from core.uploads.archives import check_model_archive, unpack_model_archive
from core.uploads.datasets import BYTES_CHECKED, MAX_ROW_BYTES, ROWS_CHECKED, check_dataset
from tests.archives import model_files, safetensors, write_tar, write_zip

LIMIT = 10**7
FORMATS = pytest.mark.parametrize(("suffix", "write"), [(".zip", write_zip), (".tar.gz", write_tar)])


@pytest.mark.parametrize(
    ("name", "purpose", "suffix"),
    [
        ("M.ZIP", "model", ".zip"),
        ("m.tar.gz", "model", ".tar.gz"),
        ("m.tgz", "model", ".tgz"),
        ("a.csv.gz", "dataset", ".csv.gz"),
        ("a.b.jsonl", "dataset", ".jsonl"),
        ("a.Parquet.gz", "dataset", ".parquet.gz"),
    ],
)
def test_accepted_names(name, purpose, suffix):
    assert suffix_of(name, purpose) == suffix


@pytest.mark.parametrize("name", ["model.bin", "model.pkl", "model.safetensors", ".zip", "x.gz", "data.jsonl", ""])
def test_refused_model_names_say_what_is_accepted(name):
    with pytest.raises(InvalidInputError, match=r"\.zip, \.tar\.gz, \.tgz.*safetensors"):
        suffix_of(name, "model")


# ---- model archives ------------------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("folder", ["", "my-model/", "./a/b/"])
def test_whole_model_is_accepted_and_unpacked(tmp_path, suffix, write, folder):
    files = {folder + name: content for name, content in model_files().items()}
    files |= {folder + "1_Pooling/config.json": b"{}", "__MACOSX/._model.safetensors": b"junk"}
    archive = write(tmp_path / f"m{suffix}", files)
    check_model_archive(archive, LIMIT)
    root = unpack_model_archive(archive, tmp_path / "out", LIMIT)
    assert (root / "model.safetensors").read_bytes() == safetensors()
    assert sorted(path.name for path in root.iterdir()) == sorted([*model_files(), "1_Pooling"])


@FORMATS
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config__json": None}, "no config.json"),
        ({"model__safetensors": None}, "no .safetensors"),
        ({"config__json": b"[1]"}, "config.json in the archive is not a JSON object"),
        ({"config__json": b"\xff{"}, "config.json in the archive is not JSON"),
        ({"model__safetensors": b"PK"}, "is not a safetensors file"),
        ({"model__safetensors": b""}, "is not a safetensors file"),
        ({"model__safetensors": b"\xff" * 64}, "is not a safetensors file"),
        ({"model__safetensors": safetensors()[:-1]}, "is damaged: its header describes"),
        ({"model__safetensors": safetensors() + b"x"}, "is damaged: its header describes"),
        ({"pytorch_model__bin": b"x"}, "pytorch_model.bin in the archive is a pickle"),
        ({"training_args__PT": b"x"}, "is a pickle"),
    ],
)
def test_archives_that_are_no_model(tmp_path, suffix, write, changes, message):
    archive = write(tmp_path / f"m{suffix}", model_files(**changes))
    with pytest.raises(InvalidModelError, match=message):
        check_model_archive(archive, LIMIT)


@FORMATS
def test_of_several_models_none_is_chosen(tmp_path, suffix, write):
    files = {f"{folder}/{name}": content for folder in ("new", "old") for name, content in model_files().items()}
    archive = write(tmp_path / f"m{suffix}", files)
    with pytest.raises(InvalidModelError, match=r"holds a model in each of new, old; pack one of these folders\."):
        check_model_archive(archive, LIMIT)


@FORMATS
def test_names_too_long_for_a_file_are_refused(tmp_path, suffix, write):
    archive = write(tmp_path / f"m{suffix}", model_files() | {"ü" * 200: b"x"})
    with pytest.raises(InvalidModelError, match="at most 255 bytes") as caught:
        check_model_archive(archive, LIMIT)
    assert len(caught.value.message) < 300


def test_names_that_are_no_text_are_refused(tmp_path):
    archive = write_tar(tmp_path / "m.tar.gz", model_files() | {"a\udcff": b"x"})
    with pytest.raises(InvalidModelError, match="must be UTF-8") as caught:
        check_model_archive(archive, LIMIT)
    assert caught.value.message.isascii()


@FORMATS
@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\..\\x"])
def test_names_cannot_leave_the_folder(tmp_path, suffix, write, name):
    archive = write(tmp_path / f"m{suffix}", model_files() | {name: b"x"})
    with pytest.raises(InvalidModelError, match="outside of its folder"):
        check_model_archive(archive, LIMIT)
    with pytest.raises(InvalidModelError, match="outside of its folder"):
        unpack_model_archive(archive, tmp_path / "out", LIMIT)


@FORMATS
def test_paths_that_no_job_folder_can_hold_are_refused(tmp_path, suffix, write):
    deep = "/".join(["d" * 200] * 6)
    archive = write(tmp_path / f"m{suffix}", model_files() | {f"{deep}/x": b"x"})
    with pytest.raises(InvalidModelError, match="lies too deep; its name and folders may have 1024 bytes"):
        check_model_archive(archive, LIMIT)


@FORMATS
def test_bombs_are_refused_before_they_go_off(tmp_path, suffix, write):
    archive = write(tmp_path / f"m{suffix}", model_files() | {"big.txt": bytes(LIMIT)})
    assert archive.stat().st_size < LIMIT / 100
    with pytest.raises(InvalidModelError, match="unpacks to more than"):
        check_model_archive(archive, LIMIT)


@FORMATS
def test_too_many_entries_are_refused(tmp_path, suffix, write):
    archive = write(tmp_path / f"m{suffix}", {f"{n}.txt": b"" for n in range(10_001)})
    with pytest.raises(InvalidModelError, match="more than 10000 entries"):
        check_model_archive(archive, LIMIT)


@FORMATS
def test_folders_count_as_entries(tmp_path, suffix, write):
    archive = write(tmp_path / f"m{suffix}", {f"{n}/": b"" for n in range(10_001)})
    with pytest.raises(InvalidModelError, match="more than 10000 entries"):
        check_model_archive(archive, LIMIT)
    with pytest.raises(InvalidModelError, match="more than 10000 entries"):
        unpack_model_archive(archive, tmp_path / "out", LIMIT)


@FORMATS
@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_name_that_is_file_and_folder_is_refused(tmp_path, suffix, write, names):
    archive = write(tmp_path / f"m{suffix}", model_files() | dict.fromkeys(names, b""))
    with pytest.raises(InvalidModelError, match="twice"):
        check_model_archive(archive, LIMIT)


@FORMATS
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_cut_off_archives_are_refused(tmp_path, suffix, write, share):
    archive = write(tmp_path / f"m{suffix}", model_files(vocab__txt=bytes(range(256)) * 400))
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InvalidModelError):
        check_model_archive(archive, LIMIT)


@FORMATS
def test_flipped_bytes_are_refused(tmp_path, suffix, write):
    archive = write(tmp_path / f"m{suffix}", model_files(vocab__txt=b"word" * 5000))
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(InvalidModelError):
        check_model_archive(archive, LIMIT)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_tar_links_and_devices_are_refused(tmp_path, kind):
    path = tmp_path / "m.tgz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("vocab.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(InvalidModelError, match="link or a device"):
        check_model_archive(path, LIMIT)


def test_zip_links_are_refused(tmp_path):
    path = tmp_path / "m.zip"
    info = zipfile.ZipInfo("vocab.txt")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InvalidModelError, match="link or a device"):
        check_model_archive(path, LIMIT)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_members_whose_decoder_has_no_bound_are_refused(tmp_path, method):
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in model_files().items():
            archive.writestr(name, content, method if name == "model.safetensors" else zipfile.ZIP_STORED)
    with pytest.raises(InvalidModelError, match=r"^model\.safetensors in the archive is neither deflated nor stored"):
        check_model_archive(path, LIMIT)
    with pytest.raises(InvalidModelError, match="neither deflated nor stored"):
        unpack_model_archive(path, tmp_path / "out", LIMIT)


def pax_header(comment_bytes):
    return pax_record(b"comment=" + b"a" * comment_bytes)


def pax_record(entry):
    record = entry + b"\n"
    length = len(record) + 1
    length += len(str(length + 3))
    content = b"%d " % length + record
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(content)
    return info.tobuf() + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def endless_sparse_map():
    head = bytearray(tarfile.TarInfo("sparse").tobuf())
    head[156:157], head[482], head[148:156] = tarfile.GNUTYPE_SPARSE, 1, b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + (b"00000000001\0" * 42 + b"\1" + bytes(7)) * 4000


def huge_pax_header():
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2**31
    return info.tobuf() + bytes(4096)


@pytest.mark.parametrize(
    "headers",
    [huge_pax_header, lambda: pax_header(10_000) * 200, endless_sparse_map],
    ids=["one header", "many headers", "a sparse map"],
)
def test_absurd_tar_headers_are_not_read_into_memory(tmp_path, headers):
    path = tmp_path / "m.tar.gz"
    path.write_bytes(gzip.compress(headers() + tarfile.TarInfo("x").tobuf() + bytes(1024)))
    with pytest.raises(InvalidModelError, match="header larger than"):
        check_model_archive(path, LIMIT)


def test_a_negative_size_does_not_lead_back_in_a_tar(tmp_path):
    """Up to the number of entries, a small archive would be unpacked again from its start."""
    path = tmp_path / "m.tar.gz"
    back = pax_record(b"size=-1536") + tarfile.TarInfo("x").tobuf()
    path.write_bytes(gzip.compress(back + bytes(1024)))
    with pytest.raises(InvalidModelError, match=r"negative size|cannot be read"):
        check_model_archive(path, LIMIT)


def test_headers_of_many_tar_entries_are_not_kept(tmp_path):
    path = tmp_path / "m.tar.gz"
    folder = tarfile.TarInfo("x")
    folder.type = tarfile.DIRTYPE
    path.write_bytes(gzip.compress((pax_header(900_000) + folder.tobuf()) * 40 + bytes(1024), 1))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidModelError, match=r"no config\.json"):
            check_model_archive(path, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


def test_large_safetensors_headers_are_not_parsed(tmp_path):
    header = b'{"a":[' + b"[]," * (17 * 2**20 // 3) + b"0]}"
    weights = len(header).to_bytes(8, "little") + header
    path = write_zip(tmp_path / "m.zip", model_files(model__safetensors=weights))
    with pytest.raises(InvalidModelError, match=r"has a header larger than 16777216 bytes"):
        check_model_archive(path, 10 * LIMIT)


# ---- datasets ------------------------------------------------------------------------------------------------------


def dataset(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "one"}\n\n{"text": "two"}'),
        ("a.jsonl", b'{"text": "x"}\n' * 500),
        ("a.csv", 'text,label\n"one, with\nnewline",1\nzwölf,0\n'.encode()),
        ("a.csv", b"\xef\xbb\xbftext\r\none\r\n"),
        ("a.csv", b"text\n" + b"a long document " * 10_000),
        ("a.parquet", b"PAR1" + b"pages" + b"footer" + b"\x06\0\0\0PAR1"),
    ],
)
def test_good_data_is_accepted_and_left_as_it_is(tmp_path, suffix, name, content):
    path = dataset(tmp_path, name + suffix, content)
    uploaded = path.read_bytes()
    check_dataset(path, LIMIT)
    assert path.read_bytes() == uploaded


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.jsonl", b'{"text": "one", "id": 7}\n\n{"label": 1, "text": "two"}', ["text", "id", "label"]),
        ("a.jsonl", b'{"text": "x"}\n' * ROWS_CHECKED + b'{"later": 1}\n', ["text"]),
        ("a.jsonl", b'{"\\ud800": 1, "\\u00e9": 2}', ["?", "é"]),
        ("a.jsonl", b'{"' + b"x" * 201 + b'": 1}', None),
        ("a.jsonl", b'{"' + b"y" * 200 + b'": 2}', ["y" * 200]),
        ("a.jsonl", json.dumps(dict.fromkeys(map(str, range(200)))).encode(), [str(i) for i in range(200)]),
        ("a.jsonl", json.dumps(dict.fromkeys(map(str, range(201)))).encode(), None),
        ("a.jsonl", b"".join(b'{"c%d": 1}\n' % i for i in range(99)), [f"c{i}" for i in range(99)]),
        ("a.csv", b'\xef\xbb\xbftext,"the label"\r\none,1\r\n', ["text", "the label"]),
        ("a.parquet", b"PAR1" + b"pages" + b"footer" + b"\x06\0\0\0PAR1", None),
    ],
)
def test_the_columns_of_the_first_rows_are_told(tmp_path, suffix, name, content, columns):
    assert check_dataset(dataset(tmp_path, name + suffix, content), LIMIT) == columns


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b"\n \n", "no rows"),
        ("a.jsonl", b'{"a": 1}\n{"a": ', "Line 2 is not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "Line 2 is not a JSON object"),
        ("a.jsonl", b"[" * 100_000, "Line 1 is not JSON"),
        ("a.jsonl", b'{"a": "\xff"}', "Line 1 is not UTF-8"),
        ("a.csv", b"", "Line 1 must name every column"),
        ("a.csv", b"text,\none,1\n", "Line 1 must name every column"),
        ("a.csv", b"text;label\none;1\n", "Line 1 names one column, 'text;label'; columns must be separated by commas"),
        ("a.csv", b"text\tlabel\none\t1\n", "must be separated by commas"),
        ("a.csv", b"text,label\n", "no rows below its header"),
        ("a.csv", b"text,label\none,1\ntwo\n", "Line 3 has 1 fields; the header names 2"),
        ("a.csv", b'text\n"open', "Line 2 is not CSV"),
        ("a.csv", b"text\ra\r", r"Line 1 is not CSV: new-line character seen in unquoted field\.$"),
        ("a.csv", b"text,label,text\na,1,b\n", "Line 1 names the column 'text' twice"),
        ("a.csv", b'text,label\n"a\nb",1\n"c\nd"\n', "Line 4 has 1 fields"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"^Line 2 is not JSON: Expecting value at character"),
        ("a.parquet", b"", "not Parquet"),
        ("a.parquet", b"PAR1", "not Parquet"),
        ("a.parquet", b"PAR1" + b"pages", "cut short"),
        ("a.parquet", b"PK\x03\x04" + b"footer" + b"\x06\0\0\0PAR1", "not Parquet"),
        ("a.parquet", b"PAR1" + b"\0\0\0\1PAR1", "footer would be longer"),
    ],
)
def test_bad_data_is_refused_with_its_line(tmp_path, suffix, name, content, message):
    with pytest.raises(InvalidDataError, match=message):
        check_dataset(dataset(tmp_path, name + suffix, content), LIMIT)


def test_cut_off_gzip_is_refused(tmp_path):
    path = dataset(tmp_path, "a.jsonl.gz", b"".join(b'{"a": %d}\n' % n for n in range(20_000)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InvalidDataError, match="not a whole gzip"):
        check_dataset(path, LIMIT)


def test_what_is_not_gzip_is_refused(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(b"text\none\n")
    with pytest.raises(InvalidDataError, match="not a whole gzip"):
        check_dataset(path, LIMIT)


def test_data_bombs_are_refused(tmp_path):
    rows = io.BytesIO()
    with gzip.open(rows, "wb") as file:
        for _ in range(100):
            file.write(b'{"a": "' + b"a" * 200_000 + b'"}\n')
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(rows.getvalue())
    with pytest.raises(InvalidDataError, match="unpacks to more than"):
        check_dataset(path, LIMIT)


@pytest.mark.parametrize(
    ("name", "content", "number"),
    [
        ("a.jsonl.gz", b'{"a": "' + b"a" * MAX_ROW_BYTES, 1),
        ("a.csv.gz", b"a,b\n1,2\n" + b'"a\n",' * (MAX_ROW_BYTES // 5 + 1), 3),
    ],
    ids=["one line", "one row of many lines"],
)
def test_one_endless_row_is_refused(tmp_path, name, content, number):
    path = dataset(tmp_path, name, content)
    with pytest.raises(InvalidDataError, match=f"The row in line {number} is longer than {MAX_ROW_BYTES} bytes"):
        check_dataset(path, 10**9)


def test_rows_of_many_lines_may_together_be_longer_than_one(tmp_path):
    row = b'"' + b"a\n" * (MAX_ROW_BYTES // 5) + b'",1\n'
    columns = check_dataset(dataset(tmp_path, "a.csv", b"text,label\n" + row * 4), 10**9)
    assert columns == ["text", "label"]


def test_rows_that_are_large_are_not_all_parsed(tmp_path):
    content = b'{"text": "' + b"a" * (BYTES_CHECKED // 2) + b'"}\n'
    check_dataset(dataset(tmp_path, "a.jsonl", content * 3 + b"not JSON"), 10**9)
    with pytest.raises(InvalidDataError, match="Line 2 is not JSON"):
        check_dataset(dataset(tmp_path, "a.jsonl", content + b"not JSON"), 10**9)
