"""What the pruning service can do, told without one."""

import json

from client.answers import Json
from core.catalog import METHODS, MethodEntry
from core.families import FAMILIES


def methods() -> Json:
    """As `GET /v1/methods` answers."""
    return {"data": [method.described() for method in METHODS]}


def families() -> Json:
    """As `GET /v1/families` answers."""
    return {"data": [family.described() for family in FAMILIES]}


def method_rows() -> list[list[str]]:
    """Name, summary, options with defaults, and paper of each method."""
    return [[m.name, m.summary, _defaults(m), m.paper] for m in METHODS]


def family_rows() -> list[list[str]]:
    """Model type, title, tasks, what can be uniform, and export formats of each family."""
    return [
        [f.model_type, f.title, ", ".join(f.tasks), ", ".join(f.uniform_kinds), ", ".join(f.export_formats)]
        for f in FAMILIES
    ]


def _defaults(method: MethodEntry) -> str:
    options = method.options_schema()["properties"].items()
    return ", ".join(f"{name}={json.dumps(option['default'])}" for name, option in options if name != "name")
