"""Rows from files: formats, splits, and errors that name file, line and field."""

import csv
import gzip
import io
import json
import random

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.engine.data import Features, Row, Source, batches_by_length, text_of
from core.engine.readers import read_rows
from core.errors import InvalidDataError, InvalidInputError

TRAIN = Source("rows.jsonl", "/task/data/train")
ROWS = [{"text": "first, with a comma", "label": "a"}, {"text": 'second "quoted"\nand broken', "label": "b"}]


def parquet(table, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def write(path, rows):
    if ".parquet" in path.suffixes:
        content = parquet(pa.Table.from_pylist(rows))
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path
    file = io.StringIO(newline="")
    if ".csv" in path.suffixes:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    else:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    content = b"\xef\xbb\xbf" + file.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    "name", [f"rows.{kind}" for kind in ("jsonl", "jsonl.gz", "csv", "csv.gz", "parquet", "parquet.gz")]
)
def test_every_format_reads_the_same(tmp_path, name):
    assert read_rows(write(tmp_path / name, ROWS), TRAIN) == ROWS


@pytest.mark.parametrize("name", ["ROWS.JSONL", "rows.jsonl.GZ", "export.csv.jsonl"])
def test_the_last_suffix_decides_in_any_case(tmp_path, name):
    content = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    assert read_rows(path, TRAIN) == ROWS


def test_a_field_may_be_a_whole_document(tmp_path):
    text = "a long document " * 10_000
    (tmp_path / "rows.csv").write_text(f"text\n{text}\n")
    assert read_rows(tmp_path / "rows.csv", TRAIN) == [{"text": text}]


def test_upper_case_csv_is_csv(tmp_path):
    (tmp_path / "ROWS.CSV").write_bytes(b"text,label\na,b\n")
    assert read_rows(tmp_path / "ROWS.CSV", TRAIN) == [{"text": "a", "label": "b"}]


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"\.jsonl, \.csv") as caught:
        read_rows(tmp_path / "rows.xlsx", TRAIN)
    assert caught.value.param == TRAIN.param


def test_rows_know_where_they_were_read(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a"}\n\n{"text": 5}\n' + b'{"text": "b"}\n' * 20)
    rows = read_rows(tmp_path / "rows.jsonl", TRAIN)
    with pytest.raises(InvalidDataError, match=r"rows\.jsonl, line 3: column 'text' holds 5; it must hold text"):
        [text_of(row, "text") for row in reversed(rows)]


@pytest.mark.parametrize("text", ["", " \t"])
def test_an_empty_text_is_called_empty(text):
    with pytest.raises(InvalidDataError, match=r"line 3: column 'text' is empty; it must hold text\."):
        text_of(Row({"text": text}, TRAIN, 3), "text")


def test_lone_surrogates_are_replaced_in_lists_as_well(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(rb'{"target": ["a \ud83d b", 3]}')
    (row,) = read_rows(tmp_path / "rows.jsonl", TRAIN)
    assert row["target"] == ["a ? b", 3]


def test_lone_surrogates_are_replaced(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(rb'{"te\ud83dxt": "a \ud83d b \ud83d\ude00", "n": 1}')
    assert read_rows(tmp_path / "rows.jsonl", TRAIN) == [{"te?xt": "a ? b \U0001f600", "n": 1}]


@pytest.mark.parametrize("row", [{"text": ["x" * 100] * 60_000}, {"x" * 100_000: 1, "text": None}])
def test_errors_repeat_little_of_a_row(row):
    with pytest.raises(InvalidDataError) as caught:
        text_of(Row(row, TRAIN, 1), "text")
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"text": "a"}\n{"text": \n', r"rows\.jsonl, line 2: not JSON"),
        ("rows.jsonl", b'{"text": "a"}\n[1]\n', r"line 2: a row must be a JSON object"),
        ("rows.jsonl", b'{"text": "a"}\n' * 150 + b"[" * 100_000, "line 151: .* nesting is too deep"),
        ("rows.jsonl", b'{"text": ' + b"[" * 800 + b"]" * 800 + b"}", "line 1: .* nesting is too deep"),
        ("rows.jsonl", b'{"text": "a"}\n' * 150 + b"9" * 5000, "line 151: a number has too many digits"),
        ("rows.jsonl", b"\n\n", "holds no rows"),
        ("rows.jsonl", b"\xff\xfe", "cannot be read"),
        ("rows.csv", b"text\na\nb \xff\n", r"rows\.csv, line 3: cannot be read as UTF-8"),
        ("rows.jsonl.gz", b"not gzip", "cannot be read"),
        ("rows.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], "cannot be read"),
        ("rows.csv", b"text,label\na,b,c\n", r"line 2: the header has 2 columns"),
        ("rows.parquet", b"PAR1 no PAR1", "rows.parquet.*cannot be read as Parquet"),
        ("rows.parquet", parquet(pa.table({"text": ["a"] * 9}))[:-9], "cannot be read as Parquet"),
        ("rows.parquet", parquet(pa.table({"text": pa.array([], pa.string())})), "holds no rows"),
        ("rows.csv", b"text,label\na\n", r"line 2: the header has 2 columns"),
        ("rows.csv", b'text,label\n"a\nb",1\n"c\nd"\n', r"line 4: the header has 2 columns"),
        ("rows.csv", b'text\na\n"b\nc', r"line 3: not CSV \(unexpected end of data\)"),
        ("rows.csv", b"text\ra\r", r"line 1: not CSV \(new-line character seen in unquoted field\)"),
        ("rows.csv", b"text,label,text\na,1,b\n", r"line 1: the header names column 'text' twice"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidDataError, match=message) as caught:
        read_rows(path, Source(name, "/task/data/train"))
    assert caught.value.param == "/task/data/train"


def test_columns_of_csv_without_a_name_do_no_harm(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b",,text\n0,1,a\n")
    assert read_rows(tmp_path / "rows.csv", Source("rows.csv", "/task/data/train"))[0]["text"] == "a"


def test_a_row_of_csv_is_at_its_first_line(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b'text,label\r\n"one\r\ntwo",1\r\n\r\nthree,0\r\n')
    rows = read_rows(tmp_path / "rows.csv", Source("rows.csv", "/task/data/train"))
    assert rows == [{"text": "one\r\ntwo", "label": "1"}, {"text": "three", "label": "0"}]
    assert [row.number for row in rows] == [2, 5]


def test_rows_of_parquet_keep_their_types_and_say_which_they_are(tmp_path):
    values = {"text": ["a", "b"], "image": [b"\x89PNG", None], "targets": [["x", "y"], []], "label": [1, 0]}
    (tmp_path / "rows.parquet").write_bytes(parquet(pa.table(values)))
    rows = read_rows(tmp_path / "rows.parquet", Source("mine.parquet", "/task/data/train"))
    assert rows == [{column: cells[i] for column, cells in values.items()} for i in range(2)]
    with pytest.raises(InvalidDataError, match=r"mine\.parquet, row 2: column 'label' holds 0; it must hold text"):
        text_of(rows[1], "label")


def test_class_names_are_read_from_what_datasets_writes(tmp_path):
    names = ("negative", "positive")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    rows = {"text": ["a", "b"], "label": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    read = read_rows(tmp_path / "rows.parquet", TRAIN)
    assert [row["label"] for row in read] == [1, 0]
    assert read[0].source.class_names == {"label": names}


@pytest.mark.parametrize(
    "note", [b"no JSON", b"[]", b'{"info": {"features": {"label": 1, "x": {"_type": "ClassLabel"}}}}']
)
def test_other_notes_in_a_schema_say_nothing(tmp_path, note):
    table = pa.table({"text": ["a"]}).replace_schema_metadata({b"huggingface": note})
    (tmp_path / "rows.parquet").write_bytes(parquet(table))
    assert read_rows(tmp_path / "rows.parquet", TRAIN)[0].source.class_names == {}


def test_equal_values_cannot_blow_up(tmp_path, monkeypatch):
    monkeypatch.setattr("core.engine.parquet.MAX_TABLE_BYTES", 10**6)
    content = parquet(pa.table({"text": ["x" * 10_000] * 1000}))
    assert len(content) < 50_000
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(InvalidDataError, match=r"rows\.jsonl: unpacks to more than 1000000 bytes"):
        read_rows(tmp_path / "rows.parquet", TRAIN)


@pytest.fixture
def batches(monkeypatch):
    """How many rows each batch of a Parquet file has that is read; each may take a million bytes."""
    monkeypatch.setattr("core.engine.parquet.BATCH_BYTES", 10**6)
    sizes = []

    class Spy(pq.ParquetFile):
        def iter_batches(self, *arguments, **options):
            for batch in super().iter_batches(*arguments, **options):
                sizes.append(batch.num_rows)
                yield batch

    monkeypatch.setattr(pq, "ParquetFile", Spy)
    return sizes


ENCODINGS = [
    {},
    {"compression": "zstd"},
    {"compression": "none"},
    {"data_page_version": "2.0"},
    {"use_dictionary": False},
    {"dictionary_pagesize_limit": 20_000},
    {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
]


@pytest.mark.parametrize("options", ENCODINGS)
@pytest.mark.parametrize("column", ["text", "texts"])
def test_a_large_value_that_many_rows_repeat_comes_a_few_times_a_batch(tmp_path, batches, options, column):
    values = [("x" * 30_000) if place % 2 else f"a {place}" for place in range(400)]
    rows = [{column: value if column == "text" else [value]} for value in values]
    (tmp_path / "rows.parquet").write_bytes(parquet(pa.Table.from_pylist(rows), **options))
    assert read_rows(tmp_path / "rows.parquet", TRAIN) == rows
    assert max(batches) <= 70


@pytest.mark.parametrize("options", ENCODINGS[:-1])
def test_a_file_of_many_short_texts_is_read_in_large_batches(tmp_path, batches, options):
    """However much they are together: as long as the dictionary is short in which texts are looked up."""
    table = pa.table({"text": [f"{place} lorem ipsum dolor sit amet" for place in range(50_000)]})
    options = {"dictionary_pagesize_limit": 20_000} | options
    (tmp_path / "rows.parquet").write_bytes(parquet(table, **options))
    assert [row["text"] for row in read_rows(tmp_path / "rows.parquet", TRAIN)] == table["text"].to_pylist()
    assert len(batches) <= 2000


def test_images_come_a_few_at_a_time(tmp_path, batches):
    """Not repeated, they are large all the same."""
    rows = [{"image": random.Random(place).randbytes(50_000)} for place in range(100)]
    content = parquet(pa.Table.from_pylist(rows), use_dictionary=False, compression="none")
    (tmp_path / "rows.parquet").write_bytes(content)
    assert read_rows(tmp_path / "rows.parquet", TRAIN) == rows
    assert max(batches) <= 20


@pytest.mark.parametrize("row", [{}, {"text": 3}, {"text": " "}, {"text": None}])
def test_a_row_without_text_is_named(row):
    with pytest.raises(InvalidDataError, match=r"rows\.jsonl, line 7: column 'text'") as caught:
        text_of(Row(row, TRAIN, 7), "text")
    assert caught.value.param == TRAIN.param


def test_batches_by_length_hold_every_row_once():
    features = Features([{"input_ids": [1] * (1 + i % 7)} for i in range(23)])
    seen = []
    for batch in batches_by_length(features, 5, lambda rows: rows):
        lengths = [len(row["input_ids"]) for row in batch]
        assert max(lengths) - min(lengths) <= 3
        seen += [row["row"] for row in batch]
    assert sorted(seen) == list(range(23))
