"""`python -m migrations`: up by default, down on request."""

import sqlite3

import pytest

from core.settings import get_settings
from migrations.__main__ import main


@pytest.fixture
def revision(monkeypatch, tmp_path):
    """A function that tells the revision of the database in the settings."""
    monkeypatch.setenv("NEUROPRUNE_DATABASE_URL", f"sqlite:///{tmp_path}/neuroprune.db")
    get_settings.cache_clear()

    def read():
        connection = sqlite3.connect(tmp_path / "neuroprune.db")
        try:
            return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
        finally:
            connection.close()

    yield read
    get_settings.cache_clear()


def test_up_down_and_up_again(revision):
    main([])
    newest = revision()
    main(["--down-to", "0001"])
    assert revision() == "0001" != newest
    main([])
    assert revision() == newest


@pytest.mark.parametrize("target", ["", "7", "base", "-1"])
def test_revisions_that_are_none_are_refused_with_those_there_are(revision, capsys, target):
    main([])
    newest = revision()
    with pytest.raises(SystemExit, match="2"):
        main([f"--down-to={target}"])
    assert "'0001', '0002'" in capsys.readouterr().err
    assert revision() == newest


def test_down_does_not_lead_up(revision):
    main([])
    main(["--down-to", "0001"])
    with pytest.raises(SystemExit, match="not a valid downgrade target"):
        main(["--down-to", "0002"])
    assert revision() == "0001"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+psycopg://127.0.0.1:1/neuroprune", "refused"),
        ("sqlite:///{folder}", "unable to open"),
        ("sqlite:///{folder}/words.txt", "not a database"),
    ],
)
def test_a_database_that_cannot_be_used_is_said_without_a_traceback(monkeypatch, tmp_path, url, said):
    (tmp_path / "words.txt").write_text("no database, but long enough to be taken for one " * 100)
    monkeypatch.setenv("NEUROPRUNE_DATABASE_URL", url.format(folder=tmp_path))
    get_settings.cache_clear()
    with pytest.raises(SystemExit, match=f"cannot be used.*{said}"):
        main([])
    get_settings.cache_clear()


def test_a_schema_that_a_newer_version_made_is_left_alone(revision, tmp_path):
    main([])
    with sqlite3.connect(tmp_path / "neuroprune.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(SystemExit, match=r"'9999'.*a newer version may have been here"):
        main([])
    assert revision() == "9999"
