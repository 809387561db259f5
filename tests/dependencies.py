"""What the project depends on, as it declares it and as it is installed."""

import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def closure(requirements: list[Requirement]) -> set[str]:
    """Names of all that the requirements bring along on this platform, themselves included."""
    names: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    open_ends = [(canonicalize_name(r.name), frozenset(r.extras)) for r in requirements]
    while open_ends:
        name, extras = open_ends.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        names.add(name)
        try:
            found = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        for requirement in found:
            environments = [{"extra": extra} for extra in (*extras, "")]
            if requirement.marker is None or any(requirement.marker.evaluate(e) for e in environments):
                open_ends.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return names


def import_names(names: set[str]) -> set[str]:
    """The modules that these packages install; of one that is not installed, what it is probably called."""
    found = {
        module
        for module, packages in packages_distributions().items()
        if any(canonicalize_name(package) in names for package in packages)
    }
    return {module for module in found if module.isidentifier()} | {name.replace("-", "_") for name in names}
