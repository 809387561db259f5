"""Fixtures of databases: every test that takes one runs on SQLite and on PostgreSQL, unless its module says otherwise.

The database lives as long as the session; each test finds it empty. A test that takes the schema down asks for
`own_database`, so that the others find theirs whatever comes of it.
"""

import pytest
import sqlalchemy as sa

from core.db import create_engine, metadata, upgrade
from core.jobs.store import JobStore
from tests.servers import postgresql, postgresql_binaries

SQLITE_ONLY = pytest.mark.parametrize("database", ["sqlite"], indirect=True, scope="session")
"""For tests of what is above the store, which is tested on both."""


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def database(request, tmp_path_factory):
    """URL of a migrated database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('database')}/neuroprune.db"
        upgrade(url)
        yield url
        return
    binaries = postgresql_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server binaries on this machine")
    with postgresql(binaries) as url:
        upgrade(url)
        yield url


@pytest.fixture
def own_database(database, tmp_path):
    """URL of a migrated database of the same kind, which only this test uses."""
    shared = sa.make_url(database)
    if shared.get_backend_name() == "sqlite":
        url = f"sqlite:///{tmp_path}/own.db"
        upgrade(url)
        yield url
        return
    server = create_engine(database).execution_options(isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sa.text("CREATE DATABASE own"))
        try:
            url = shared.set(database="own").render_as_string(hide_password=False)
            upgrade(url)
            yield url
        finally:
            connection.execute(sa.text("DROP DATABASE own WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def engine(request, database):
    """An engine on the database, emptied; on the test's own where it asks for one."""
    engine = create_engine(
        request.getfixturevalue("own_database") if "own_database" in request.fixturenames else database
    )
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(sa.delete(table))
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine):
    return JobStore(engine, lease_seconds=60, max_attempts=2)
