"""Two real jobs through a running service, and the table of what came back.

    python -m benchmarks.service_jobs DATA [--url URL]

DATA holds `sst2/{train,validation}.jsonl.gz`, `tinystories/{train,validation}.jsonl.gz` and a Llama-type model's folder
`models/babyllama-tok105`. A finished job's figures are kept in `benchmarks/results/service_jobs.jsonl`; it is not run
again.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import typer

from client.sdk import DEFAULT_URL, NeuroPruneClient

RESULTS = Path(__file__).parent / "results" / "service_jobs.jsonl"
SPLITS = ("train", "validation")


def sst2(client: NeuroPruneClient, data: Path) -> dict[str, Any]:
    """Half of all-MiniLM-L6-v2's encoder, 16,000 rows of SST-2, default options."""
    rows = {split: client.upload_file(data / "sst2" / f"{split}.jsonl.gz", "dataset")["id"] for split in SPLITS}
    return {
        "model": {"source": "builtin", "name": "all-MiniLM-L6-v2"},
        "task": {"name": "sequence-classification", "data": {"source": "upload", **rows, "max_train_rows": 16_000}},
        "target": {"sparsity": 0.5},
    }


def babyllama(client: NeuroPruneClient, data: Path) -> dict[str, Any]:
    """Half of a 0.9M Llama with grouped-query attention, TinyStories, default options."""
    rows = {split: client.upload_file(data / "tinystories" / f"{split}.jsonl.gz", "dataset")["id"] for split in SPLITS}
    with tempfile.TemporaryDirectory() as folder:
        archive = shutil.make_archive(f"{folder}/babyllama-tok105", "zip", data / "models" / "babyllama-tok105")
        model = client.upload_file(Path(archive), "model")["id"]
    return {
        "model": {"source": "upload", "file": model},
        "task": {"name": "causal-lm", "data": {"source": "upload", **rows}},
        "target": {"sparsity": 0.5},
        "training": {"max_length": 256},
    }


JOBS = {"sst2-half": sst2, "babyllama-half": babyllama}


def run(name: str, client: NeuroPruneClient, data: Path) -> dict[str, Any]:
    """The job's summary: from the service if it has done it before, else from a new job."""
    done = [job for job in client.jobs(status="succeeded")["data"] if job["name"] == name]
    job = done[0] if done else client.submit(JOBS[name](client, data), name=name)
    for event in client.watch(job["id"]):
        print(name, event.type, json.dumps(event.data)[:120], file=sys.stderr)
    job = client.job(job["id"])
    if job["status"] != "succeeded":
        raise SystemExit(f"{name} {job['status']}: {job['error']}")
    resolved = {part: job["resolved_spec"][part] for part in ("method", "training")}
    return {"name": name, "job": job["id"], **resolved, **job["metrics_summary"]}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one column of dense and one of pruned figures a job."""
    lines = ["| | " + " | ".join(f"{r['name']}, dense | pruned" for r in results) + " |"]
    lines.append("|---|" + "---:|" * 2 * len(results))
    rows: list[tuple[str, list[str]]] = [
        ("metric", [f"{side:.4f}" for r in results for side in _sides(r["metrics"][r["headline_metric"]])]),
        ("encoder parameters", [f"{side:,}" for r in results for side in _sides(r["parameters"]["encoder"])]),
        ("all parameters", [f"{side:,}" for r in results for side in _sides(r["parameters"]["total"])]),
        ("weights, MB", [f"{side / 1e6:.1f}" for r in results for side in _sides(r["size_bytes"])]),
    ]
    for runtime in ("torch", "onnxruntime"):
        medians = [side["median"] for r in results for side in _sides(r["latency_ms"][runtime])]
        rows.append((f"latency {runtime}, ms", [f"{median:.2f}" for median in medians]))
    lines += [f"| {title} | {' | '.join(cells)} |" for title, cells in rows]
    return "\n".join(lines)


def _sides(pair: dict[str, Any]) -> tuple[Any, Any]:
    return pair["dense"], pair["pruned"]


def main(data: Path, url: str = DEFAULT_URL) -> None:
    """Run what is missing, print the table."""
    RESULTS.parent.mkdir(exist_ok=True)
    results = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    with NeuroPruneClient(url) as client:
        for name in [name for name in JOBS if name not in {result["name"] for result in results}]:
            results.append(run(name, client, data))
            with RESULTS.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    print(table(sorted(results, key=lambda result: list(JOBS).index(result["name"]))))


if __name__ == "__main__":
    typer.run(main)
