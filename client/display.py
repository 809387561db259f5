"""Shows how a job goes: a live bar on a terminal, plain lines anywhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.text import Text

from client.events import Event

Show = Callable[[Event], None]

_LINE_EVERY_SECONDS = 10.0


@contextmanager
def progress_display(console: Console) -> Iterator[Show]:
    """A function to be called with each event of a job in turn."""
    if not console.is_terminal:
        yield PlainLines(console).show
        return
    columns = [TextColumn("[bold]{task.description:<11}"), BarColumn(), TaskProgressColumn(), _TimeLeft()]
    with Progress(*columns, TextColumn("[dim]{task.fields[metrics]}"), console=console) as progress:
        yield LiveBar(progress).show


class LiveBar:
    """One bar; what matters besides is printed above it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("waiting", total=1.0, metrics="", eta_at=None)

    def show(self, event: Event) -> None:
        """Draw the event."""
        data = event.data
        match event.type:
            case "phase":
                self._progress.update(self._task, description=data["phase"])
            case "progress":
                self._progress.update(
                    self._task, completed=data["fraction"], metrics=metrics_line(data), eta_at=data["eta_at"]
                )
            case "status" | "warning":
                style = "yellow" if event.type == "warning" else "dim"
                self._progress.console.print(sentence(event), style=style, markup=False, highlight=False)
                if data.get("status") == "succeeded":
                    self._progress.update(self._task, description="done", completed=1.0, eta_at=None)


class PlainLines:
    """A line for each change, and one every few seconds for progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""
        self._printed_at = -_LINE_EVERY_SECONDS

    def show(self, event: Event) -> None:
        """Print the event, if it is worth a line; kinds that are not known are not."""
        match event.type:
            case "phase":
                self._phase = event.data["phase"]
                self._printed_at = -_LINE_EVERY_SECONDS
            case "progress":
                if time.monotonic() - self._printed_at >= _LINE_EVERY_SECONDS:
                    self._printed_at = time.monotonic()
                    self._print(self._progress_line(event.data))
            case "status" | "warning":
                self._print(sentence(event))

    def _progress_line(self, data: dict[str, Any]) -> str:
        parts = [f"{self._phase:<11} {data['fraction']:4.0%}", metrics_line(data), time_left(data["eta_at"])]
        return "  ".join(part for part in parts if part)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _TimeLeft(ProgressColumn):
    """Counts down to the job's end between two events."""

    def render(self, task: Task) -> Text:
        return Text("" if task.finished else time_left(task.fields["eta_at"]), style="cyan")


def sentence(event: Event) -> str:
    """A change of status, or a warning, in words."""
    data = event.data
    if event.type == "warning":
        return f"warning: {data['message']}"
    error = data.get("error")
    return f"{data['status']}: {error['message'] if error else data['reason']}"


def metrics_line(data: dict[str, Any]) -> str:
    """The step and the current metrics of a progress event."""
    steps = [f"step {data['step']}/{data['total_steps']}"] if data.get("step") is not None else []
    return ", ".join(steps + [f"{name} {value:.3g}" for name, value in data["metrics"].items()])


def time_left(eta_at: str | None) -> str:
    """From now to a time, in minutes and seconds; empty if that is not known, or past, as where a job has ended."""
    if eta_at is None:
        return ""
    seconds = round((datetime.fromisoformat(eta_at) - datetime.now(UTC)).total_seconds())
    if seconds <= 0:
        return ""
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02}:{seconds % 60:02} left" if hours else f"{minutes}:{seconds % 60:02} left"
