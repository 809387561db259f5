"""Runs the revisions against the URL that `core.db.upgrade` passes, or the one in the settings."""

from alembic import context

from core.db import create_engine, metadata, writer
from core.settings import get_settings


def run() -> None:
    """Apply the revisions in one transaction, so that a failed upgrade leaves the schema as it was."""
    url = context.config.attributes.get("url") or get_settings().database_url
    engine = create_engine(url)
    try:
        with writer(engine).connect() as connection:
            context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
            with context.begin_transaction():
                context.run_migrations()
    finally:
        engine.dispose()


run()
