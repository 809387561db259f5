"""No process but a job's own ever loads torch and its like, however an import may be written.

The contracts in `.importlinter` read import statements; this test runs them.
"""

import subprocess
import sys

from tests.dependencies import ROOT, closure, declared, import_names

PACKAGES = ("api", "client", "core", "migrations", "worker")
BEHIND_THE_WALL = ("core.engine", "client.load", "worker.runner")
RUN_BY_OTHERS = ("migrations.__main__", "migrations.env", "migrations.versions")

HEAVY = import_names(closure(declared("engine", "executorch")) - closure(declared("api", "embedded")))
OF_OTHERS = {
    ("colorama", "structlog.dev"),
    ("xxhash", "redis.commands.core"),
    ("yaml", "kombu.serialization"),
    ("zstandard", "fsspec.compression"),
    ("zstandard", "httpx._decoders"),
}
"""What libraries before the wall use where it is there, and which module of theirs asks."""

IMPORT_WITHOUT_HEAVY_PACKAGES = f"""
import importlib
import importlib.abc
import sys

HEAVY = {HEAVY}
OF_OTHERS = {OF_OTHERS}
asked_for = []


class Ban(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in HEAVY:
            if (fullname, asker()) not in OF_OTHERS:
                asked_for.append(fullname)  # whoever asks may swallow the error
            raise ImportError(fullname + " is behind the wall")
        return None


def asker():
    frame = sys._getframe(2)
    while frame.f_globals["__name__"].partition(".")[0] == "importlib":
        frame = frame.f_back
    return frame.f_globals["__name__"]


sys.meta_path.insert(0, Ban())
for module in sys.argv[1:]:
    importlib.import_module(module)
    if asked_for:
        sys.exit("importing " + module + " asks for " + ", ".join(asked_for))
"""


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def modules() -> list[str]:
    """Every module on disk, also those in folders that lack an `__init__.py`."""
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files)
    return [name for name in names if not is_within(name, BEHIND_THE_WALL + RUN_BY_OTHERS)]


def import_without_heavy_packages(names: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_WITHOUT_HEAVY_PACKAGES, *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_entry_points_are_among_the_modules() -> None:
    assert {"api.app", "client", "client.cli", "client.sdk", "core.families", "worker.app", "worker.tasks"} <= {
        *modules()
    }


def test_nothing_before_the_wall_asks_for_torch() -> None:
    result = import_without_heavy_packages(modules())
    assert result.returncode == 0, result.stderr


def test_the_ban_sees_what_is_swallowed() -> None:
    result = import_without_heavy_packages(["core.engine.anatomy"])
    assert result.returncode != 0
    assert "torch" in result.stderr


def test_every_folder_of_modules_is_a_package() -> None:
    """import-linter does not look into folders without an `__init__.py`."""
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_no_package_shadows_a_library() -> None:
    for folder in ("docker", "tests/api", "tests/client", "tests/core", "tests/worker"):
        assert not (ROOT / folder / "__init__.py").exists(), folder
