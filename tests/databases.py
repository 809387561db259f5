"""Fixtures of databases: every test that takes one runs on SQLite and on PostgreSQL, unless its module says otherwise.

The database lives as long as the session; each test finds it empty.
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
def engine(database):
    """An engine on the database, emptied."""
    engine = create_engine(database)
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(sa.delete(table))
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine):
    return JobStore(engine, lease_seconds=60, max_attempts=2)
