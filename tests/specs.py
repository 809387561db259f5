"""Job specs for tests."""

from typing import Any

from core.jobs.spec import JobSpec

DEMO: dict[str, Any] = {
    "model": {"source": "builtin", "name": "all-MiniLM-L6-v2"},
    "task": {"name": "sentence-embedding", "data": {"source": "builtin", "name": "python-docs"}},
    "target": {"sparsity": 0.5},
}


def demo_spec(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(DEMO | changes)


def upload_spec(train: str) -> JobSpec:
    data = {"source": "upload", "train": train}
    return demo_spec(task={"name": "sequence-classification", "data": data})
