"""How the command line speaks: rows, sentences and JSON to its standard output, notes and errors beside it."""

import io
import json
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape


def _is_terminal(stream: TextIO | None) -> bool:
    """None is what a stream is that was closed before the start."""
    return stream is not None and stream.isatty()


# A program that reads gets neither tables nor colours, also where FORCE_COLOR asks for them.
console = Console(emoji=False, force_terminal=_is_terminal(sys.stdout))
_beside = Console(emoji=False, force_terminal=_is_terminal(sys.stderr), stderr=True)


def speak_in_any_locale() -> None:
    """What the encoding of the output lacks becomes a question mark, and no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(text: str) -> None:
    """A sentence that is the command's result; names in it are no markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A sentence that must not get among the rows where those go to a program."""
    _beside.print(text, markup=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """Say what went wrong."""
    _beside.print(f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One value, for people to read, too."""
    is_unicode = console.encoding.startswith("utf")
    print(json.dumps(value, indent=2, ensure_ascii=not is_unicode))


def print_json_line(value: Any) -> None:
    """One of several values, each as soon as it is there."""
    print(json.dumps(value), flush=True)
