"""Rows on terminals of every width: nothing is cut off, and words that matter stay whole."""

import io

import pytest
from rich.console import Console

from client.tables import print_blocks, print_table

ID = f"job_{'1' * 32}"
HEADINGS = ["job", "name", "status", "created (UTC)"]
ROWS = [
    [ID, "a-name-[without]-any-space-in-it", "cancelling (evaluating)", "2026-01-01 10:20:30"],
    [ID, "a title of several words, or more", "cancelled", "2026-01-01 10:20:30"],
]


def printed(width, rows=ROWS, **options):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    print_table(console, HEADINGS, rows, **options)
    return console.file.getvalue()


def test_a_wide_terminal_has_a_line_a_row():
    headings, _, *lines = printed(160).splitlines()
    assert headings.split() == ["job", "name", "status", "created", "(UTC)"]
    assert [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines] == ROWS


@pytest.mark.parametrize("width", range(72, 110, 3))
def test_a_narrow_terminal_folds_cells_between_words(width):
    shown = printed(width, breakable=["name"])
    assert max(map(len, shown.splitlines())) <= width
    words = shown.split()
    for word in (ID, "cancelling", "(evaluating)", "cancelled", "2026-01-01", "10:20:30"):
        assert word in words
    assert "…" not in shown
    assert "".join(words).count("title") == 1


def test_words_of_breakable_columns_fold_where_there_is_no_room():
    name = "".join(line[38:48].strip() for line in printed(80, ROWS[:1], breakable=["name"]).splitlines()[2:])
    assert name.startswith("a-name-[wi")
    assert "\t" in printed(80, ROWS[:1])  # without, its longest word has no room


@pytest.mark.parametrize("width", [20, 60])
def test_a_terminal_too_narrow_for_columns_has_plain_lines(width):
    assert printed(width, breakable=["name"]).splitlines()[1:] == ["\t".join(row) for row in ROWS]


def test_a_table_without_rows_is_its_headings():
    assert printed(80, []).split()[:3] == ["job", "name", "status"]


def test_blocks_have_the_first_cell_as_their_title():
    console = Console(file=io.StringIO(), width=30, force_terminal=True, color_system=None)
    print_blocks(console, ["method", "summary", "paper"], [["smart", "a soft [top-k] " * 3, "https://arxiv.org/abs/1"]])
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == [
        "smart",
        "  a soft [top-k] a soft",
        "  [top-k] a soft [top-k]",
        "  https://arxiv.org/abs/1",
        "",
    ]
