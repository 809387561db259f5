"""What the pruning service can do, told without one."""

import json

from client.answers import Json
from core.catalog import METHODS, MethodEntry
from core.families import FAMILIES


def methods() -> Json:
    """As `GET /v1/methods` answers; `api.schemas`, which the client must not import, has this form, too."""
    return {
        "data": [
            {"name": m.name, "title": m.title, "summary": m.summary, "paper": m.paper, "options": m.options_schema()}
            for m in METHODS
        ]
    }


def families() -> Json:
    """As `GET /v1/families` answers."""
    return {
        "data": [
            {
                "model_type": family.model_type,
                "title": family.title,
                "tasks": list(family.tasks),
                "uniform": list(family.uniform_kinds),
                "export_formats": list(family.export_formats),
            }
            for family in FAMILIES
        ]
    }


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
