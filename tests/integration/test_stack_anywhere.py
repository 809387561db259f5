"""The embedded stack where its user happens to be: odd names, and files that are called as its modules are."""

import httpx

from client.local import EmbeddedStack

MODULES = ("api", "celery", "client", "core", "redis", "uvicorn", "worker")


def test_it_starts_from_a_folder_of_any_name_with_anything_in_it(tmp_path, monkeypatch):
    folder = tmp_path / "C# w?rk 100% ü"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text("raise SystemExit('this is the user's own')")
    monkeypatch.chdir(folder)
    with EmbeddedStack(folder / ".neuroprune", port=0) as stack:
        ready = httpx.get(f"{stack.url}/readyz", trust_env=False).json()
    assert ready["status"] == "ready"
    assert (folder / ".neuroprune" / "neuroprune.db").is_file()
