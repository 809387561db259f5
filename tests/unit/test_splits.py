"""Who learns from which rows: held out exactly, the same every time, and no text in two splits."""

import base64
import json
from pathlib import Path

import pytest

from core.engine.data import Row, Source
from core.engine.inputs import Inputs
from core.engine.python_docs import python_docs
from core.engine.splits import hold_out, sample, split
from core.errors import InvalidDataError
from core.jobs.spec import JobSpec
from tests.specs import DEMO

NOWHERE = Path("/nowhere")


def named(count):
    return [Row({"text": str(i)}, Source("rows", ""), i) for i in range(count)]


def text(row):
    return row["text"]


def texts(rows):
    return {row["text"] for row in rows}


@pytest.fixture
def split_files(tmp_path):
    """A function that splits texts, given by split; what was warned of is in `heard`."""

    def do(files, *, needs_test=False, heard=None, task=None, **data):
        paths = {}
        for name, rows in files.items():
            paths[name] = tmp_path / f"{name}.jsonl"
            rows = [row if isinstance(row, dict) else {"text": row} for row in rows]
            paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
        places = {"source": "path"} | {name: str(path) for name, path in paths.items()}
        task = {"name": "causal-lm", "data": places | data} | (task or {})
        spec = JobSpec.model_validate(DEMO | {"task": task})
        report = pytest.fail if heard is None else heard.append
        return split(spec, Inputs(NOWHERE, **paths), report, needs_test=needs_test)

    return do


def test_holding_out_is_a_partition_and_repeats():
    rows = named(50)
    train, held_out = hold_out(rows, 0.2, 1, text)
    assert len(held_out) == 10
    assert sorted(train + held_out, key=lambda row: row.number) == rows
    assert (train, held_out) == hold_out(rows, 0.2, 1, text)
    assert held_out != hold_out(rows, 0.2, 2, text)[1]


def test_a_budget_that_leaves_nothing_to_train_on_says_so(split_files):
    """It takes as many rows for the test as for validation if nothing is said."""
    texts = [str(i) for i in range(20)]
    with pytest.raises(InvalidDataError, match=r"Nothing is left to train on: 0\.5 of the training rows") as caught:
        split_files({"train": texts}, needs_test=True, validation_fraction=0.5)
    assert caught.value.param == "/task/data/validation_fraction"
    assert len(split_files({"train": texts}, needs_test=True, validation_fraction=0.4).train) == 4


def test_rows_of_one_text_are_held_out_together():
    rows = named(10) * 3
    train, held_out = hold_out(rows, 0.2, 1, text)
    assert (len(train), len(held_out)) == (24, 6)
    assert not texts(train) & texts(held_out)


@pytest.mark.parametrize("rows", [named(1), named(1) * 5])
def test_one_text_cannot_be_parted(rows):
    with pytest.raises(InvalidDataError, match="two rows with different texts"):
        hold_out(rows, 0.2, 1, text)


def test_sampling_keeps_order_and_repeats():
    rows = named(50)
    drawn = sample(rows, 10, seed=3)
    assert len(drawn) == 10
    assert drawn == sorted(drawn, key=lambda row: row.number)
    assert drawn == sample(rows, 10, seed=3)
    assert drawn != sample(rows, 10, seed=4)
    assert sample(rows, None, seed=3) is rows


@pytest.mark.parametrize(
    ("given", "needs_test", "data", "sizes"),
    [
        ("train", False, {}, (90, 10, None)),
        ("train", True, {}, (80, 10, 10)),
        ("train", False, {"test_fraction": 0.25, "validation_fraction": 0.2}, (55, 20, 25)),
        ("train validation", False, {}, (100, 5, None)),
        ("train validation", True, {}, (90, 5, 10)),
        ("train test", False, {"test_fraction": 0.5}, (90, 10, 7)),
        ("train validation test", True, {}, (100, 5, 7)),
        ("train test", False, {"max_train_rows": 9, "max_validation_rows": 2, "max_test_rows": 3}, (9, 2, 3)),
    ],
)
def test_splits_that_the_data_lacks_are_held_out(split_files, given, needs_test, data, sizes):
    files = {"train": range(100), "validation": range(1000, 1005), "test": range(2000, 2007)}
    files = {name: [f"text {i}" for i in numbers] for name, numbers in files.items() if name in given.split()}
    splits = split_files(files, needs_test=needs_test, **data)
    parts = [splits.train, splits.validation, splits.test]
    assert tuple(rows if rows is None else len(rows) for rows in parts) == sizes
    assert len({row["text"] for rows in parts for row in rows or []}) == sum(size or 0 for size in sizes)
    assert len(splits.everything) == 100
    assert splits.reported is (splits.validation if splits.test is None else splits.test)


def test_a_test_split_does_not_move_the_validation_split(split_files):
    files = {"train": [f"text {i}" for i in range(30)]}
    assert split_files(files).validation == split_files(files, needs_test=True).validation


def test_a_text_in_two_files_stays_in_the_one_that_judges(split_files):
    heard = []
    files = {"train": ["a", "b", "b", "c", "d"], "validation": ["b", "c", "e"], "test": ["c", "f"]}
    splits = split_files(files, heard=heard)
    assert [texts(splits.train), texts(splits.validation), texts(splits.test)] == [{"a", "d"}, {"b", "e"}, {"c", "f"}]
    counted = [warning.message.split(" rows")[0] for warning in heard]
    assert counted == ["1 validation", "2 training", "1 training"]


def test_pairs_are_the_same_only_as_pairs(split_files):
    task = {"name": "sequence-classification", "text_pair_column": "other"}
    rows = [{"text": "a", "other": str(i % 2), "label": i} for i in range(8)]
    heard = []
    splits = split_files({"train": rows, "validation": rows[:1]}, heard=heard, task=task)
    assert {row["other"] for row in splits.train} == {"1"}
    assert "4 training rows" in heard[0].message


def test_an_image_is_the_same_under_another_name_and_in_another_form(split_files):
    files = [base64.b64encode(bytes([i])).decode() for i in range(6)]
    train = [{"image": {"bytes": file, "path": f"train/{i}.png"}, "label": i} for i, file in enumerate(files)]
    heard, task = [], {"name": "image-classification"}
    splits = split_files({"train": train, "validation": [{"image": files[2], "label": 2}]}, heard=heard, task=task)
    assert [row["label"] for row in splits.train] == [0, 1, 3, 4, 5]
    assert [warning.message for warning in heard] == [
        "1 training rows are left out: the validation rows have the same image."
    ]


@pytest.mark.parametrize("value", [None, 5, "no base64", {"path": "a.png"}])
def test_rows_without_their_image_are_left_to_whoever_reads_them(split_files, value):
    rows = [{"image": value, "label": i} for i in range(2)]
    assert len(split_files({"train": rows, "validation": rows}, task={"name": "image-classification"}).train) == 2


def test_a_split_that_leakage_leaves_empty_is_refused(split_files):
    with pytest.raises(InvalidDataError, match=r"train\.jsonl: .*validation rows as well.*no training row"):
        split_files({"train": ["a", "b"], "validation": ["a", "b", "c"]}, heard=[])


def test_rows_without_their_text_are_left_to_whoever_reads_them(split_files):
    rows = [{"prose": "a"}, {"prose": "b"}]
    splits = split_files({"train": rows, "validation": rows})
    assert len(splits.train) == 2


@pytest.mark.parametrize("parts", [1, 2])
def test_python_docs_hold_out_whole_topics_without_leaking(parts):
    train, held_out = python_docs(held_out_parts=parts)
    assert len(train) > 1000
    assert len(held_out) == parts
    assert all(len(part) > 100 / parts for part in held_out)
    trained = [row["text"] for row in train]
    assert len(set(trained)) == len(trained)
    assert not [row for part in held_out for row in part if any(row["text"] in text for text in trained)]
    assert len(set().union(*map(texts, held_out))) == sum(map(len, held_out))


def test_builtin_data_has_a_test_split_when_one_is_needed():
    spec = JobSpec.model_validate(DEMO)
    without, splits = (split(spec, Inputs(NOWHERE), pytest.fail, needs_test=needed) for needed in (False, True))
    assert without.test is None
    assert without.train == splits.train
    assert len(without.validation) == len(splits.validation) + len(splits.test)


@pytest.mark.parametrize("empty", ["", " \n"])
def test_rows_with_an_empty_text_are_left_out_and_counted(split_files, empty):
    heard = []
    splits = split_files({"train": ["a", empty, "b", empty], "validation": [empty, "c"]}, heard=heard)
    assert [row["text"] for row in splits.train] == ["a", "b"]
    assert [row["text"] for row in splits.validation] == ["c"]
    assert [warning.message for warning in heard] == [
        "2 training rows are left out: there is nothing in them to read.",
        "1 validation rows are left out: there is nothing in them to read.",
    ]
    assert splits.train[1].number == 3


def test_rows_that_all_have_an_empty_text_are_left_to_whoever_reads_them(split_files):
    assert len(split_files({"train": ["", ""], "validation": ["a"]}, heard=[]).train) == 2
