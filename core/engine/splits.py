"""Splits: the rows that a model learns from, those that decisions are taken on, and those that it is judged by.

What is known of a held-out row must not be learnt from it: no text is in two splits, and no image.
"""

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from core.engine.data import Row, is_empty
from core.engine.images import file_in
from core.engine.inputs import Inputs
from core.engine.python_docs import python_docs
from core.engine.readers import read_rows
from core.engine.tasks import TASKS
from core.errors import InvalidDataError
from core.jobs.sources import BuiltinData, HubData
from core.jobs.spec import JobSpec
from core.progress import Reporter, Warned

Identity = Callable[[Row], Hashable]
"""What two rows have in common that a model cannot tell apart."""


@dataclass(frozen=True, slots=True)
class Splits:
    """Rows by what they are for."""

    everything: list[Row]
    """All that training rows were drawn from; it may hold held-out rows. For what must be known of the data as a
    whole, such as its classes."""
    train: list[Row]
    validation: list[Row]
    """What decisions are taken on."""
    test: list[Row] | None
    """What nothing was decided on."""

    @property
    def reported(self) -> list[Row]:
        """The rows that metrics are reported on."""
        return self.validation if self.test is None else self.test


def split(spec: JobSpec, inputs: Inputs, report: Reporter, *, needs_test: bool) -> Splits:
    """Read the job's data, and hold out of the training rows what it does not bring along.

    Rows with the same text or image stay together: one of the test split is left out of the others, one of the
    validation split out of training. Rows without a word to read are left out, too.

    Args:
        spec: A resolved spec.
        inputs: Its inputs, on this machine.
        report: Told of rows that were left out.
        needs_test: Whether to hold out a test split even if the data names none.

    Raises:
        InvalidDataError: a file cannot be read, or a split has no rows.
    """
    data, seed = spec.task.data, spec.training.seed
    is_builtin = isinstance(data, BuiltinData)
    found = _builtin(needs_test=needs_test) if is_builtin else _from_files(spec, inputs, report, needs_test)
    test = found.test
    validation = _apart(found.validation, "validation", {"test": test or []}, spec, report)
    train = _apart(found.train, "training", {"validation": validation, "test": test or []}, spec, report)
    return Splits(
        found.everything,
        sample(train, data.max_train_rows, seed),
        validation[: data.max_validation_rows],
        test and test[: data.max_test_rows],
    )


def hold_out(rows: list[Row], fraction: float, seed: int, identity: Identity) -> tuple[list[Row], list[Row]]:
    """Part rows at random into those that are kept and a share that is held out; both get at least one.

    Rows of one identity go to the same side; `fraction` is that of the identities.
    """
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(identity(row), []).append(row)
    if len(groups) < 2:
        raise InvalidDataError(
            "At least two rows with different texts or images are needed to hold some out.", param="/task/data/train"
        )
    shuffled = list(groups)
    random.Random(seed).shuffle(shuffled)  # noqa: S311
    count = min(max(1, round(len(shuffled) * fraction)), len(shuffled) - 1)
    kept, held_out = ([row for key in keys for row in groups[key]] for keys in (shuffled[count:], shuffled[:count]))
    return kept, held_out


def sample(rows: list[Row], limit: int | None, seed: int) -> list[Row]:
    """At most `limit` rows drawn at random, in their original order."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]  # noqa: S311


def _builtin(*, needs_test: bool) -> Splits:
    train, held_out = python_docs(held_out_parts=2 if needs_test else 1)
    return Splits(train, train, held_out[0], held_out[1] if needs_test else None)


def _from_files(spec: JobSpec, inputs: Inputs, report: Reporter, needs_test: bool) -> Splits:
    data, seed = spec.task.data, spec.training.seed
    assert inputs.train is not None  # noqa: S101 only builtin data has no file
    assert not isinstance(data, BuiltinData)  # noqa: S101 the caller has looked

    def read(path: Path, split_name: str) -> list[Row]:
        field = f"{split_name}_split" if isinstance(data, HubData) else split_name
        rows = read_rows(path, inputs.source(path, f"/task/data/{field}"))
        name = "training" if split_name == "train" else split_name
        return _with_words(rows, name, spec.task.input_columns(), report)

    identity = _identity(spec)
    validation_share, test_share = data.held_out(needs_test=needs_test)
    if validation_share + test_share >= 1:
        raise InvalidDataError(
            f"Nothing is left to train on: {validation_share:g} of the training rows are held out to decide on, and "
            f"{test_share:g} as test rows, as this target needs them.",
            param="/task/data/validation_fraction",
        )
    train = everything = read(inputs.train, "train")
    if inputs.validation is not None:
        validation, left = read(inputs.validation, "validation"), 1.0
    else:
        train, validation = hold_out(train, validation_share, seed, identity)
        left = 1 - validation_share
    test = None
    if inputs.test is not None:
        test = read(inputs.test, "test")
    elif test_share:
        train, test = hold_out(train, test_share / left, seed, identity)
    return Splits(everything, train, validation, test)


def _with_words(rows: list[Row], name: str, columns: tuple[str, ...], report: Reporter) -> list[Row]:
    """The rows without an empty text, as corpora have between paragraphs; those are counted in a warning.

    Where all are, they stay, for whoever reads them to say so.
    """
    fresh = [row for row in rows if not any(is_empty(row.get(column)) for column in columns)]
    dropped = len(rows) - len(fresh)
    if not dropped or not fresh:
        return rows
    report(Warned(message=f"{dropped} {name} rows are left out: there is nothing in them to read."))
    return fresh


def _apart(rows: list[Row], name: str, held_out: dict[str, list[Row]], spec: JobSpec, report: Reporter) -> list[Row]:
    """The rows whose text or image is in none of the held-out splits; the others are counted in a warning."""
    identity, what = _identity(spec), "image" if TASKS[spec.task.name].reads_images else "text"
    for other, others in held_out.items():
        known = {identity(row) for row in others}
        fresh = [row for row in rows if identity(row) not in known]
        dropped = len(rows) - len(fresh)
        if not fresh:
            problem = f"every one of its {what}s is in the {other} rows as well; no {name} row is left."
            raise rows[0].source.error(problem)
        if dropped:
            report(Warned(message=f"{dropped} {name} rows are left out: the {other} rows have the same {what}."))
        rows = fresh
    return rows


def _identity(spec: JobSpec) -> Identity:
    columns = spec.task.input_columns()
    if TASKS[spec.task.name].reads_images:
        return partial(_image_of, column=columns[0])
    return partial(_text_of, columns=columns)


def _image_of(row: Row, column: str) -> Hashable:
    """The checksum of an image's file, whatever its name. A row that has none is like no other."""
    try:
        file = file_in(row.get(column))
    except ValueError:
        file = None
    return id(row) if file is None else sha256(file).digest()


def _text_of(row: Row, columns: tuple[str, ...]) -> Hashable:
    """What a model reads of a row. One that lacks a column is like no other: whoever reads it will say so."""
    values = [row.get(column) for column in columns]
    if None in values:
        return id(row)
    return tuple(value if isinstance(value, str) else repr(value) for value in values)
