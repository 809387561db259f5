"""The schema's history (Alembic). `core.db` holds the schema as it is now."""
