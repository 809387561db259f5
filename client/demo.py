"""The demo: the whole service on this machine prunes a real model, and shows what came of it."""

import json
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from client.answers import Json
from client.bundle import MANIFEST, digest_of, files_of_bundle
from client.comparison import comparison
from client.display import progress_display
from client.local import EmbeddedStack
from client.sdk import NeuroPruneClient
from core.errors import InvalidInputError, NeuroPruneError, VerificationError
from core.settings import get_settings
from core.wording import some_of

SPEC: Json = {
    "model": {"source": "builtin", "name": "all-MiniLM-L6-v2"},
    "task": {"name": "sentence-embedding", "data": {"source": "builtin", "name": "python-docs"}},
    "target": {"sparsity": 0.5},
}
NAME = "demo"
LABELS = {"made-by": "neuroprune-demo"}
"""What tells a demo's jobs from others: a user's may have the name, too."""

_DELIVERED = "demo-bundles"
"""File in the state folder: the sha256 of the manifest of each bundle that a demo has delivered, a line each."""
_UNFINISHED = ("queued", "starting", "running", "cancelling")
_CANCEL_SECONDS = 6.0


def run(console: Console, state_dir: Path, output: Path) -> None:
    """Start the stack, do the job, fetch, check, load and show the bundle, stop the stack.

    Raises:
        InvalidInputError: there is something else in the output than an earlier demo's bundle; nothing was started.
        NeuroPruneError: a step failed.
    """
    _check_room(output, state_dir)
    console.print("Starting broker, API and worker …")
    with EmbeddedStack(state_dir) as stack, NeuroPruneClient(stack.url, api_key=_own_key()) as client:
        console.print(
            f"The API is at {stack.url}/docs. Pruning half of the encoder of all-MiniLM-L6-v2 (22.7M parameters)."
        )
        job = do_job(console, stack, client)
        stack.tend_during(lambda: _deliver(client, job["id"], output, state_dir))
    console.print(f"Downloaded; every sha256 is right. Loading {output} in a clean process …", markup=False)
    loaded = load_in_clean_process(output)
    console.print(comparison(job["metrics_summary"], "all-MiniLM-L6-v2, before and after"))
    console.print(
        f"A clean process loaded the pruned model; its outputs differ from the recorded ones by at most "
        f"{loaded['max_abs_difference']:.1e}."
    )
    console.print(
        f"The model (model.safetensors, model.onnx), its report (report.json) and its card (README.md) lie in "
        f"{output.absolute()}.\nUse it: {_way_to_load(output)}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def do_job(console: Console, stack: EmbeddedStack, client: NeuroPruneClient) -> Json:
    """Submit the demo's job and follow it to its end; whoever interrupts, the job is cancelled.

    Raises:
        NeuroPruneError: it did not succeed.
    """
    _cancel_unfinished(client)
    job = client.submit(SPEC, name=NAME, labels=LABELS)
    events = client.watch(job["id"])
    try:
        with progress_display(console) as show:
            while (event := stack.tend_during(lambda: next(events, None))) is not None:
                show(event)
    except BaseException:
        _cancel_unfinished(client)
        raise
    job = client.job(job["id"])
    if job["status"] != "succeeded":
        reason = job["error"]["message"] if job["error"] else "see above"
        raise NeuroPruneError(f"The job {job['status']}: {reason}\nThe logs are in {stack.state_dir / 'logs'}.")
    return job


def load_in_clean_process(folder: Path) -> dict[str, Any]:
    """Load the bundle as a user would, and compare its outputs with the recorded ones.

    Raises:
        VerificationError: it does not load, or answers otherwise.
    """
    command = [sys.executable, "-P", "-m", "client.load", str(folder.absolute())]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise VerificationError(f"{folder} could not be loaded: {answer.stderr.strip()[-2000:]}")
    loaded: dict[str, Any] = json.loads(answer.stdout)
    return loaded


def _own_key() -> str | None:
    """The demo's service has the keys of this environment, if any; the client's may be for another service."""
    keys = get_settings().api_keys
    return keys[0].get_secret_value() if keys else None


def _deliver(client: NeuroPruneClient, job_id: str, output: Path, state_dir: Path) -> None:
    """Download the bundle in the place of an earlier demo's, and remember whose it is, even if that is interrupted."""
    [manifest] = [artifact for artifact in client.artifacts(job_id) if artifact["name"] == MANIFEST]
    with (state_dir / _DELIVERED).open("a") as file:
        file.write(f"{manifest['sha256']}\n")
    client.download(job_id, output, overwrite=True)


def _check_room(output: Path, state_dir: Path) -> None:
    """Whether the bundle may be put there, once there is one; an earlier demo's bundle then gives way.

    Raises:
        InvalidInputError: something else is there.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise InvalidInputError(f"{output} is no folder; choose another --output.")
    own = files_of_bundle(output) if _is_delivered(output / MANIFEST, state_dir / _DELIVERED) else set()
    others = sorted(path.name for path in output.iterdir() if path not in own)
    if others:
        raise InvalidInputError(
            f"{output} holds what no demo has put there: {some_of(others)}. Move it away, or choose another --output."
        )


def _is_delivered(manifest: Path, delivered: Path) -> bool:
    return manifest.is_file() and delivered.is_file() and digest_of(manifest) in delivered.read_text().split()


def _way_to_load(folder: Path) -> str:
    """A command for the shell that works anywhere: in the demo's own environment, of which the shell need not know."""
    literal = json.dumps(str(folder.absolute()), ensure_ascii=False)
    return shlex.join([sys.executable, "-P", "-c", f"from client.load import load; print(load({literal}))"])


def _cancel_unfinished(client: NeuroPruneClient) -> None:
    """Cancel demos' jobs, this one's or an interrupted one's, and give their worker a moment to stop."""
    deadline = time.monotonic() + _CANCEL_SECONDS
    with suppress(NeuroPruneError):
        while time.monotonic() < deadline:
            unfinished = [
                job
                for status in _UNFINISHED
                for job in client.jobs(status=status, limit=100)["data"]
                if job["labels"] == LABELS
            ]
            if not unfinished:
                return
            for job in unfinished:
                with suppress(NeuroPruneError):
                    client.cancel(job["id"])
            time.sleep(0.2)
