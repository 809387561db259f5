"""Rows on the command line: tables that fit a terminal, tab-separated lines anywhere else; nothing is cut off."""

from collections.abc import Container, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

Rows = Sequence[Sequence[str]]

_GAP = 2
_NARROWEST = 8


def print_table(console: Console, headings: Sequence[str], rows: Rows, *, breakable: Container[str] = ()) -> None:
    """A line a row; where a terminal is narrow, cells fold between words, in `breakable` columns also within."""
    columns = [[heading, *cells] for heading, *cells in zip(headings, *rows, strict=True)]
    floors = [_NARROWEST if cells[0] in breakable else _longest_word(cells) for cells in columns]
    room = console.width - _GAP * (len(columns) - 1)
    if not console.is_terminal or sum(floors) > room:
        _print_lines(console, headings, rows)
        return
    widths = _widths(columns, floors, room)
    laid_out = [Column(h, width=width, overflow="fold") for h, width in zip(headings, widths, strict=True)]
    table = Table(*laid_out, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def print_blocks(console: Console, headings: Sequence[str], rows: Rows) -> None:
    """For long cells: on a terminal each row is a paragraph below its first cell."""
    if not console.is_terminal:
        _print_lines(console, headings, rows)
        return
    for title, *cells in rows:
        console.print(Text(title, style="bold"))
        console.print(Padding(Text("\n".join(cells)), (0, 0, 1, 2)))


def _print_lines(console: Console, headings: Sequence[str], rows: Rows) -> None:
    for line in (headings, *rows):
        print("\t".join(line), file=console.file)  # the console itself would make spaces of tabs


def _widths(columns: Rows, floors: Sequence[int], room: int) -> list[int]:
    """As wide as the cells; if that has no room, the widest columns give way, none beyond its floor."""
    widths = [max(map(cell_len, cells)) for cells in columns]
    while sum(widths) > room:
        widest = max((i for i, width in enumerate(widths) if width > floors[i]), key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _longest_word(cells: Sequence[str]) -> int:
    return max(cell_len(word) for cell in cells for word in cell.split())
