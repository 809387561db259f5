"""Runs the revisions against the URL that `core.db.upgrade` passes, or the one in the settings."""

import sqlalchemy as sa
from alembic import context

from core.db import UPGRADE_LOCK, create_engine, metadata, writer
from core.settings import get_settings


def run() -> None:
    """Apply the revisions in one transaction, so that a failed upgrade leaves the schema as it was.

    One process does it at a time.
    """
    url = context.config.attributes.get("url") or get_settings().database_url
    engine = create_engine(url)
    try:
        with writer(engine).connect() as connection:
            context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
            with context.begin_transaction():
                if connection.dialect.name == "postgresql":  # SQLite has taken its one write lock by now
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(UPGRADE_LOCK)))
                context.run_migrations()
    finally:
        engine.dispose()


run()
