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
from rich.filesize import decimal
from rich.markup import escape

from client import catalog
from client import demo as demo_job
from client.answers import Json
from client.comparison import comparison
from client.connection import KEY_VARIABLE
from client.display import progress_display
from client.local import EmbeddedStack
from client.output import complain, console, note, print_json, print_json_line, say, speak_in_any_locale
from client.sdk import DEFAULT_URL, NeuroPruneClient
from client.spec_file import read_spec
from client.standing import moment, place_in_queue, sentences, standing
from client.tables import print_blocks, print_table
from core.errors import InvalidInputError, NeuroPruneError, shown
from core.settings import get_settings
from core.version import VERSION

app = typer.Typer(
    help="Prune transformers: post a job, follow it, fetch the smaller model and the proof.",
    epilog=f"{KEY_VARIABLE} in the environment holds the key, where the service asks for one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Url = Annotated[str, typer.Option("--url", envvar="NEUROPRUNE_URL", help="Where the service is.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Cursor = Annotated[str | None, typer.Option(help="Where to go on; each page names that of the next one.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, job_…")]
StateDir = Annotated[Path, typer.Option(help="Where the service keeps everything.")]

_TEND_SECONDS = 0.5


def main() -> None:
    """Entry point: errors become one message and an exit status, never a traceback."""
    speak_in_any_locale()
    try:
        app()
    # What the file system refuses names the file; what a service names as a file's URL may be none.
    except (NeuroPruneError, OSError, httpx.InvalidURL) as error:
        complain(str(error))
    # What the shell hands over can be any bytes.
    except UnicodeEncodeError as error:
        complain(f"{_culprit(error)} cannot be written as {error.encoding}.")
    sys.exit(1)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"neuroprune {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Those that go before every command."""


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
        say(_first_request(stack.url))
        if get_settings().api_keys:
            say(f"It asks for a key: {KEY_VARIABLE} has to hold one, there and for the other commands.")
        if stack.url != DEFAULT_URL:
            say(f"The other commands look at {DEFAULT_URL}; where they are to look here, first say:")
            say(f"  export NEUROPRUNE_URL={stack.url}")
        say(f"The worker's log is {stack.state_dir / 'logs' / 'worker.log'}, the API's lies beside it.")
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
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Repeated with the same KEY within a day, this makes no second job."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON, for programs; with --watch a line for the job, then one an event."),
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Queue a pruning job."""
    with NeuroPruneClient(url) as client:
        job = _submit(client, spec, name, idempotency_key)
        if not as_json:
            say(f"{job['id']} is {job['status']}.")
        elif watch:
            print_json_line(job)
        else:
            print_json(job)
        if watch:
            _follow(client, job["id"], as_json=as_json)


@app.command()
def watch(job_id: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Follow a job to its end; the exit status is 0 if it succeeds. With --json, one event a line."""
    with NeuroPruneClient(url) as client:
        _follow(client, job_id, as_json=as_json)


@app.command()
def show(job_id: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Show where a job stands, what it waits for or warns of, and what came of it."""
    with NeuroPruneClient(url) as client:
        job = client.job(job_id)
    if as_json:
        print_json(job)
        return
    for sentence in sentences(job):
        say(sentence)
    _print_outcome(job)


@app.command()
def download(
    job_id: JobId,
    folder: Annotated[Path | None, typer.Argument(help="Where to; by default a folder named like the job.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files of other content in the folder.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Fetch a job's bundle and check every sha256; resumes where it was interrupted."""
    target = folder or Path(job_id)
    with NeuroPruneClient(url) as client:
        paths = client.download(job_id, target, overwrite=force)
    if as_json:
        print_json([str(path) for path in paths])
    else:
        say(f"{len(paths)} files in {target}, every sha256 is right.")


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
    print_json(file) if as_json else say(file["id"])


@app.command()
def jobs(
    status: Annotated[str | None, typer.Option(help="Only those in this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="As many at most.")] = 20,
    cursor: Cursor = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, newest first."""
    with NeuroPruneClient(url) as client:
        page = client.jobs(limit=limit, cursor=cursor, status=status)
    rows = [[job["id"], job["name"] or "", standing(job), moment(job["created_at"])] for job in page["data"]]
    _print_page(page, ["job", "name", "status", "created (UTC)"], rows, as_json=as_json)


@app.command()
def files(
    purpose: Annotated[Literal["model", "dataset"] | None, typer.Option(help="Only those for this.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="As many at most.")] = 20,
    cursor: Cursor = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List uploads, newest first."""
    with NeuroPruneClient(url) as client:
        page = client.files(limit=limit, cursor=cursor, purpose=purpose)
    rows = [
        [file["id"], file["filename"], file["purpose"], decimal(file["bytes"]), moment(file["created_at"])]
        for file in page["data"]
    ]
    _print_page(page, ["file", "name", "purpose", "size", "created (UTC)"], rows, as_json=as_json)


@app.command()
def delete(
    item: Annotated[str, typer.Argument(metavar="ID", help="The id of a job that has ended, or of an upload.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Delete a job with its history and its bundle, or an upload; nothing brings them back."""
    with NeuroPruneClient(url) as client:
        delete_it = client.delete_file if item.startswith("file_") else client.delete_job
        delete_it(item)
    say(f"{item} is deleted.")


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
    """List the pruning methods, their options with the defaults, and their papers; with --json as GET /v1/methods."""
    if as_json:
        print_json(catalog.methods())
        return
    print_blocks(console, ["method", "summary", "options", "paper"], catalog.method_rows())
    note("null: chosen by task, mode or target. Each option's meaning and limits: neuroprune methods --json")


@app.command()
def families(as_json: AsJson = False) -> None:
    """List the transformer families that can be pruned; with --json as GET /v1/families."""
    if as_json:
        print_json(catalog.families())
        return
    print_table(console, ["model_type", "family", "tasks", "uniform", "export"], catalog.family_rows())


def _steer(request: Callable[[NeuroPruneClient, str], Json], job_id: str, *, as_json: bool, url: str) -> None:
    with NeuroPruneClient(url) as client:
        job = request(client, job_id)
    print_json(job) if as_json else say(f"{job['id']} is {job['status']}.")


def _follow(client: NeuroPruneClient, job_id: str, *, as_json: bool) -> None:
    try:
        if not as_json:
            for sentence in place_in_queue(client.job(job_id)):
                say(sentence)
        with nullcontext(_print_event) if as_json else progress_display(console) as show:
            for event in client.watch(job_id):
                show(event)
    except KeyboardInterrupt:
        note(f"The job goes on. Follow it: neuroprune watch {job_id}; end it: neuroprune cancel {job_id}")
        raise
    job = client.job(job_id)
    if job["status"] != "succeeded":
        raise typer.Exit(1)
    if not as_json:
        _print_outcome(job)


def _print_outcome(job: Json) -> None:
    if job["metrics_summary"] is not None:
        console.print(comparison(job["metrics_summary"], escape(job["name"] or job["id"])))


def _print_event(event: Any) -> None:
    print_json_line({"seq": event.seq, "type": event.type, "data": event.data})


def _submit(client: NeuroPruneClient, source: str, name: str | None, key: str | None) -> Json:
    try:
        return client.submit(read_spec(source), name=name, idempotency_key=key)
    except RecursionError as error:
        raise InvalidInputError(f"{source} is nested too deeply for a job's spec.") from error
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{source}, or the name, holds {_culprit(error)}, which is no character.") from error


def _culprit(error: UnicodeEncodeError) -> str:
    return shown(error.object[error.start : error.end])


def _print_page(page: Json, headings: list[str], rows: list[list[str]], *, as_json: bool) -> None:
    if as_json:
        print_json(page)
        return
    print_table(console, headings, rows, breakable=["name"])
    if page["has_more"]:
        note(f"There are more; for the next page repeat this with --cursor {page['next_cursor']}")


def _first_request(url: str) -> str:
    body = json.dumps(demo_job.SPEC)
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if get_settings().api_keys else ""
    return f"  curl -s {url}/v1/jobs{key} -H 'Content-Type: application/json' \\\n    -d '{body}'"


def _exit_on_termination() -> None:
    """End as upon Ctrl-C, with everything stopped, when the terminal closes or `kill` asks.

    Not where whoever started it had that ignored, as `nohup` does to outlive the terminal.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)


if __name__ == "__main__":
    main()
