"""Whole jobs of tiny models in this process, from the spec to the bundle."""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from core.engine import delivery
from core.engine.inputs import Inputs
from core.engine.pipeline import run
from core.engine.verify import Findings, find
from core.jobs.defaults import resolve
from core.jobs.spec import JobSpec
from core.progress import Warned
from tests import tiny, tiny_tasks

SHORT = {"num_train_epochs": 1, "precision": "fp32", "max_length": 16}


@dataclass(frozen=True)
class Done:
    """What came of a job.

    Attributes:
        bundle: its folder.
        summary: as the API tells it.
        heard: all that the job said about itself.
    """

    bundle: Path
    summary: dict[str, Any]
    heard: list[Any]

    @cached_property
    def report(self) -> dict[str, Any]:
        return json.loads((self.bundle / "report.json").read_text())

    @property
    def warnings(self) -> list[str]:
        return [message.message for message in self.heard if isinstance(message, Warned)]


def run_job(
    folder: Path,
    model: Path,
    rows: Iterable[Mapping[str, Any]],
    task: Mapping[str, Any],
    *,
    data: Mapping[str, Any] | None = None,
    test: Iterable[Mapping[str, Any]] | None = None,
    training: Mapping[str, Any] | None = None,
    names: Mapping[Path, str] | None = None,
    heard: list[Any] | None = None,
    **parts: Any,
) -> Done:
    """Run a job on these rows; its bundle lies in `folder / "bundle"`.

    Args:
        folder: of this job alone; the rows' file in it is train.jsonl.
        model: of the model's files.
        rows: to train on, and to hold some out.
        task: without its data.
        data: what the data's part of the spec says besides where it is.
        test: rows of a file of their own, test.jsonl, to report on.
        training: what is other than `SHORT`.
        names: what the user calls files and folders that are called otherwise here.
        heard: filled with what the job says, for one that fails.
        parts: the other parts of the spec.
    """
    files = {"train": _written(rows, folder / "train.jsonl")}
    if test is not None:
        files["test"] = _written(test, folder / "test.jsonl")
    places = {split: str(path) for split, path in files.items()}
    (folder / "bundle").mkdir()
    asked = {
        "model": {"source": "path", "path": str(model)},
        "task": {**task, "data": {"source": "path", **places, **(data or {})}},
        "training": SHORT | dict(training or {}),
        **parts,
    }
    heard = [] if heard is None else heard
    inputs = Inputs(model, **files, names=names or {})
    summary = run(resolve(JobSpec.model_validate(asked)), inputs, folder / "bundle", heard.append)
    return Done(folder / "bundle", summary, heard)


def _written(rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(count: int) -> list[dict[str, str]]:
    """Rows without labels."""
    return [{"text": text} for text in tiny.sentences(count)]


def shorten_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the clean process that loads the bundle, which this one does instead, and without plots: they take longer
    than all the rest of a small job.
    """

    def verify(folder: Path, dense: Path) -> Findings:
        return find(folder)

    monkeypatch.setattr(delivery, "verify", verify)
    for name in ("plot_structure", "plot_topology"):
        monkeypatch.setattr(delivery, name, lambda *_: None)


def rows_of_any_task(count: int) -> list[dict[str, str | int]]:
    """With the columns of every task."""
    rows: list[dict[str, str | int]] = []
    for number, text in enumerate(tiny.sentences(count)):
        image = base64.b64encode(tiny_tasks.image(number)).decode()
        rows.append({"text": text, "source": text, "target": text, "image": image, "label": number % 2})
    return rows
