"""Settings as the environment gives them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from core.errors import ConfigurationError
from core.settings import Settings, get_settings

KEY, NEXT_KEY = "the-key-of-today", "the-key-of-tomorrow"


@pytest.mark.parametrize(
    ("given", "roots"),
    [
        ("/models", ["/models"]),
        ("/models:/data", ["/models", "/data"]),
        (":/models::", ["/models"]),  # nothing between two separators is no folder, least of all the working directory
        ("", []),
        ('["/models", "/a:b"]', ["/models", "/a:b"]),
    ],
)
def test_folders_are_given_as_in_path_or_as_json(monkeypatch, given, roots):
    monkeypatch.setenv("NEUROPRUNE_MODEL_ROOTS", given)
    assert Settings().model_roots == tuple(map(Path, roots))


def test_broken_json_is_said(monkeypatch):
    monkeypatch.setenv("NEUROPRUNE_MODEL_ROOTS", "[/models]")
    with pytest.raises(ValidationError, match=r"model_roots\n.*expected value"):
        Settings()


SECONDS = [name.upper() for name in Settings.model_fields if name.endswith("_seconds")]


@pytest.mark.parametrize("given", [f"{KEY},{NEXT_KEY}", f" {KEY}\t{NEXT_KEY}\n", f"{KEY}, {NEXT_KEY},"])
def test_keys_are_parted_by_commas_or_spaces_and_not_shown(monkeypatch, given):
    monkeypatch.setenv("NEUROPRUNE_API_KEYS", given)
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == [KEY, NEXT_KEY]
    assert KEY not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_without_keys_and_hosts_the_service_is_for_this_machine(monkeypatch):
    for name in ("API_KEYS", "ALLOWED_HOSTS"):
        monkeypatch.delenv(f"NEUROPRUNE_{name}", raising=False)
    assert (Settings().api_keys, Settings().allowed_hosts) == ((), ("localhost", "127.0.0.1", "[::1]"))


@pytest.mark.parametrize(
    ("name", "given", "complaint"),
    [
        ("API_KEYS", f"{KEY},fifteen-letters", "each key has to have 16 characters or more"),
        ("API_KEYS", f"{KEY},schlüssel-des-nächsten-tages", "visible ASCII"),
        ("API_KEYS", "", "it is empty; unset it for the default"),
        ("API_KEYS", " , ", "it is empty; unset it for the default"),
        ("ALLOWED_HOSTS", "", "it is empty; unset it for the default"),
        ("DATABASE_URL", "", "it is empty; unset it for the default"),
        ("BROKER_URL", "", "it is empty; unset it for the default"),
        ("STORAGE_URL", "", "it is empty; unset it for the default"),
        ("WORK_DIR", "", "it is empty; unset it for the default"),
        ("BROKER_URL", "valkey://127.0.0.1:6379/0", "begin with redis://, rediss:// or redis+socket://"),
        ("BROKER_URL", "127.0.0.1:6379", "begin with redis://, rediss:// or redis+socket://"),
        *((name, "inf", "less than or equal to 3155760000") for name in SECONDS),
        *((name, "nan", "less than or equal to 3155760000") for name in SECONDS),
        ("ALLOWED_HOSTS", "localhost,prune.example:8000", "'prune.example:8000' is no name or address without port"),
        ("ALLOWED_HOSTS", "https://prune.example", "'https://prune.example' is no name or address"),
        ("ALLOWED_HOSTS", "*.prune.example", "is no name or address"),
        ("ALLOWED_HOSTS", "::1", "such as prune.example or [::1]"),
    ],
)
def test_what_cannot_be_meant_is_refused(monkeypatch, name, given, complaint):
    monkeypatch.setenv(f"NEUROPRUNE_{name}", given)
    get_settings.cache_clear()
    with pytest.raises(ConfigurationError) as caught:
        get_settings()
    assert f"NEUROPRUNE_{name}: " in caught.value.message
    assert complaint in caught.value.message


def test_a_service_that_refuses_to_start_does_not_print_its_keys():
    environment = os.environ | {"NEUROPRUNE_API_KEYS": f"{KEY} short-secret"}
    started = subprocess.run(
        [sys.executable, "-c", "from api.app import create_app; create_app()"],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert started.returncode == 1
    assert "NEUROPRUNE_API_KEYS: Value error, each key has to have 16" in started.stderr
    assert KEY not in started.stderr
    assert "short-secret" not in started.stderr


def test_wrong_settings_are_said_by_the_variables_names(monkeypatch):
    monkeypatch.setenv("NEUROPRUNE_LEASE_SECONDS", "abc")
    monkeypatch.setenv("NEUROPRUNE_MAX_ATTEMPTS", "0")
    get_settings.cache_clear()
    with pytest.raises(ConfigurationError, match=r"_MAX_ATTEMPTS: Input should be .*; .*_LEASE_SECONDS: Input should"):
        get_settings()
