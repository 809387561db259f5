"""Fixtures of databases: every test that takes `database_url` runs on SQLite and on PostgreSQL."""

import pytest
import sqlalchemy as sa

from core.db import create_engine, metadata, upgrade
from core.jobs.store import JobStore
from tests.servers import postgresql, postgresql_binaries


@pytest.fixture(scope="session")
def postgresql_url():
    binaries = postgresql_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server binaries on this machine")
    with postgresql(binaries) as url:
        upgrade(url)
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """A migrated, empty database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/neuroprune.db"
        upgrade(url)
        return url
    url = request.getfixturevalue("postgresql_url")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {', '.join(metadata.tables)}"))
    engine.dispose()
    return url


@pytest.fixture
def engine(database_url):
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine):
    return JobStore(engine, lease_seconds=60, max_attempts=2)
