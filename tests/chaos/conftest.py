"""What the scenarios share: the number of jobs, the uploads that they prune, and the table at the end."""

import gzip
import json
import os
import shutil

import pytest

from tests.chaos import results

JOBS = int(os.environ.get("CHAOS_JOBS", "30"))
"""Real pruning jobs a scenario."""


def pytest_terminal_summary(terminalreporter):
    lines = results.newest()
    if lines and any("tests/chaos" in report.nodeid for report in terminalreporter.getreports("passed")):
        terminalreporter.section(f"the newest run of each scenario ({results.RESULTS})")
        terminalreporter.write_line(results.table(lines))


@pytest.fixture(scope="session")
def model_archive(tmp_path_factory):
    """A tiny classifier, packed for upload."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("model")
    tiny.save(tiny.bert_classifier(), folder / "model")
    return shutil.make_archive(str(folder / "model"), "zip", folder, "model")


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Labelled sentences."""
    from tests import tiny

    path = tmp_path_factory.mktemp("rows") / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for text in tiny.sentences(64):
            file.write(json.dumps({"text": text, "label": int("good" in text)}) + "\n")
    return path
