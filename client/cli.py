"""The `neuroprune` command."""

import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from client import demo as demo_job
from client.comparison import comparison
from client.display import progress_display
from client.local import EmbeddedStack
from client.sdk import DEFAULT_URL, Json, NeuroPruneClient
from core.catalog import METHODS
from core.errors import InvalidInputError, NeuroPruneError
from core.families import FAMILIES

app = typer.Typer(
    help="Prune transformers: post a job, follow it, fetch the smaller model and the proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

Url = Annotated[str, typer.Option("--url", envvar="NEUROPRUNE_URL", help="Where the service is.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, job_…")]
StateDir = Annotated[Path, typer.Option(help="Where the service keeps everything.")]

_TEND_SECONDS = 0.5


def main() -> None:
    """Entry point: errors become one message and an exit status, never a traceback."""
    try:
        app()
    # What the file system refuses names the file; a job's id can hold what no URL can.
    except (NeuroPruneError, OSError, httpx.InvalidURL) as error:
        errors.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


# ---- the service on this machine -----------------------------------------------------------------------------------


@app.command()
def up(
    state_dir: StateDir = Path(".neuroprune"),
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Of the API; 8000 or the next free one by default.")
    ] = None,
) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    _exit_on_termination()
    console.print("Starting broker, API and worker …")
    with EmbeddedStack(state_dir, port=port) as stack:
        console.print(
            f"NeuroPrune is at [bold]{stack.url}[/], its documentation at {stack.url}/docs. Try:", soft_wrap=True
        )
        console.print(_first_request(stack.url), markup=False, highlight=False, soft_wrap=True)
        console.print("Ctrl-C stops it; what it stored stays.")
        while True:
            time.sleep(_TEND_SECONDS)
            stack.tend()


@app.command()
def demo(
    state_dir: StateDir = Path(".neuroprune"),
    output: Annotated[Path, typer.Option(help="Folder for the pruned model.")] = Path("neuroprune-demo"),
) -> None:
    """Prune a real model on this machine, from start to finish."""
    _exit_on_termination()
    demo_job.run(console, state_dir, output)


# ---- jobs ----------------------------------------------------------------------------------------------------------


@app.command()
def submit(
    spec: Annotated[str, typer.Argument(help="A file with the job's spec as JSON, or - for standard input.")],
    name: Annotated[str | None, typer.Option(help="Any title; goes before that of the spec.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Queue a pruning job."""
    with NeuroPruneClient(url) as client:
        job = client.submit(_read_spec(spec), name=name)
        if not as_json:
            console.print(f"{job['id']} is {job['status']}.")
        if watch:
            _follow(client, job["id"], as_json=as_json)
        elif as_json:
            _print_json(job)


@app.command()
def watch(job_id: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Follow a job to its end; the exit status is 0 if it succeeds. With --json, one event a line."""
    with NeuroPruneClient(url) as client:
        _follow(client, job_id, as_json=as_json)


@app.command()
def show(job_id: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Show where a job stands, and what came of it."""
    with NeuroPruneClient(url) as client:
        job = client.job(job_id)
    _print_json(job) if as_json else _print_job(job)


@app.command()
def download(
    job_id: JobId,
    folder: Annotated[Path | None, typer.Argument(help="Where to; by default a folder named like the job.")] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Fetch a job's bundle and check every sha256; resumes where it was interrupted."""
    target = folder or Path(job_id)
    with NeuroPruneClient(url) as client:
        paths = client.download(job_id, target)
    if as_json:
        _print_json([str(path) for path in paths])
    else:
        console.print(f"{len(paths)} files in {target}, every sha256 is right.", soft_wrap=True)


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A model archive, or rows.")],
    purpose: Annotated[Literal["model", "dataset"], typer.Option(help="What it is.")],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Upload a file for jobs to use; prints its id."""
    with NeuroPruneClient(url) as client:
        file = client.upload_file(path, purpose)
    _print_json(file) if as_json else console.print(file["id"])


@app.command()
def jobs(
    status: Annotated[str | None, typer.Option(help="Only those in this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, newest first."""
    with NeuroPruneClient(url) as client:
        page = client.jobs(limit=limit, status=status)
    if as_json:
        _print_json(page)
        return
    rows = [
        [job["id"], job["name"] or "", job["status"], job["phase"] or "", job["created_at"][:19]]
        for job in page["data"]
    ]
    _print_table(["job", "name", "status", "phase", "created"], rows)


@app.command()
def cancel(job_id: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Cancel a job."""
    _steer(NeuroPruneClient.cancel, job_id, as_json=as_json, url=url)


@app.command()
def pause(job_id: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Hold a job back: a queued one at once, a running one at its next checkpoint."""
    _steer(NeuroPruneClient.pause, job_id, as_json=as_json, url=url)


@app.command()
def resume(job_id: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Queue a paused job again; it goes on from where it was."""
    _steer(NeuroPruneClient.resume, job_id, as_json=as_json, url=url)


@app.command()
def retry(job_id: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Queue a failed, cancelled or expired job again; it goes on from its last checkpoint while that is kept."""
    _steer(NeuroPruneClient.retry, job_id, as_json=as_json, url=url)


# ---- catalogue -----------------------------------------------------------------------------------------------------


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the pruning methods."""
    if as_json:
        _print_json(
            [
                {
                    "name": m.name,
                    "title": m.title,
                    "summary": m.summary,
                    "paper": m.paper,
                    "options": m.options_schema(),
                }
                for m in METHODS
            ]
        )
        return
    _print_table(["method", "summary", "paper"], [[m.name, m.summary, m.paper] for m in METHODS])


@app.command()
def families(as_json: AsJson = False) -> None:
    """List the transformer families that can be pruned."""
    if as_json:
        _print_json([family.as_dict() for family in FAMILIES])
        return
    rows = [
        [f.model_type, f.title, ", ".join(f.tasks), ", ".join(f.uniform_kinds), ", ".join(f.export_formats)]
        for f in FAMILIES
    ]
    _print_table(["model_type", "family", "tasks", "uniform", "export"], rows)


def _steer(request: Callable[[NeuroPruneClient, str], Json], job_id: str, *, as_json: bool, url: str) -> None:
    with NeuroPruneClient(url) as client:
        job = request(client, job_id)
    _print_json(job) if as_json else console.print(f"{job['id']} is {job['status']}.")


def _follow(client: NeuroPruneClient, job_id: str, *, as_json: bool) -> None:
    with nullcontext(_print_event) if as_json else progress_display(console) as show:
        for event in client.watch(job_id):
            show(event)
    job = client.job(job_id)
    if job["status"] != "succeeded":
        raise typer.Exit(1)
    if not as_json:
        _print_outcome(job)


def _print_job(job: Json) -> None:
    # A job that has ended keeps the phase that it ended in, which says something of those that failed.
    phase = f" ({job['phase']})" if job["phase"] and job["status"] != "succeeded" else ""
    reason = f": {job['error']['message']}" if job["error"] else "."
    console.print(f"{job['id']} is {job['status']}{phase}{reason}", markup=False, highlight=False, soft_wrap=True)
    _print_outcome(job)


def _print_outcome(job: Json) -> None:
    if job["metrics_summary"] is not None:
        console.print(comparison(job["metrics_summary"], escape(job["name"] or job["id"])))


def _print_event(event: Any) -> None:
    print(json.dumps({"seq": event.seq, "type": event.type, "data": event.data}), flush=True)


def _read_spec(source: str) -> Json:
    try:
        spec = json.loads(sys.stdin.read() if source == "-" else Path(source).read_text())
    except OSError as error:
        raise InvalidInputError(f"{source} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InvalidInputError(f"{source} is not JSON: {error}.") from error
    if not isinstance(spec, dict):
        raise InvalidInputError(f"{source} must hold one JSON object, the job's spec.")
    return spec


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(headings: list[str], rows: list[list[str]]) -> None:
    table = Table(Column(headings[0], no_wrap=True), *headings[1:])  # ids are to be copied whole
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def _first_request(url: str) -> str:
    body = json.dumps(demo_job.SPEC)
    return f"  curl -s {url}/v1/jobs -H 'Content-Type: application/json' \\\n    -d '{body}'"


def _exit_on_termination() -> None:
    """End as upon Ctrl-C, with everything stopped, when the terminal closes or `kill` asks."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)


if __name__ == "__main__":
    main()
