"""The figures of the suite: a line of JSON a run of a scenario, and the table that is made of them.

python -m tests.chaos.results    # the newest run of each scenario, as Markdown
"""

import json
import os
from pathlib import Path
from typing import Any

RESULTS = Path(os.environ.get("CHAOS_RESULTS", Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.jsonl"))

_COUNTED = ("lost", "completed_twice", "wrong_states", "broken_artifacts", "other_weights")


def add(line: dict[str, Any]) -> None:
    """Keep one run."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def newest() -> list[dict[str, Any]]:
    """The last run of each scenario."""
    if not RESULTS.exists():
        return []
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return list({line["scenario"]: line for line in lines}.values())


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = ["scenario", "jobs", "ended as", "attempts", "disturbed", *(name.replace("_", " ") for name in _COUNTED)]
    rows = [head, ["---"] * len(head), *map(_row, lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(line: dict[str, Any]) -> list[str]:
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(line["outcomes"].items()))
    counts = [str(line[name]) for name in _COUNTED]
    return [line["scenario"], str(line["jobs"]), outcomes, str(line["attempts"]), f"{line['disturbances']}x", *counts]


if __name__ == "__main__":
    print(table(newest()))
