"""Settings as the environment gives them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from core.errors import ConfigurationError
from core.settings import Settings, get_settings


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


def test_wrong_settings_are_said_by_the_variables_names(monkeypatch):
    monkeypatch.setenv("NEUROPRUNE_LEASE_SECONDS", "abc")
    monkeypatch.setenv("NEUROPRUNE_MAX_ATTEMPTS", "0")
    get_settings.cache_clear()
    with pytest.raises(ConfigurationError, match=r"_MAX_ATTEMPTS: Input should be .*; .*_LEASE_SECONDS: Input should"):
        get_settings()
