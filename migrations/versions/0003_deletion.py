"""What deleting needs: which job reads which upload, what is to go from the store, attempts that outlive their job."""

import re
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_JOBS = sa.table("jobs", sa.column("id"), sa.column("spec", sa.JSON))
_FILE_ID = re.compile(r"file_[0-9a-f]{32}")
_JOB_FILES = sa.table("job_files", sa.column("job_id"), sa.column("file_id"))


def upgrade() -> None:
    op.create_table(
        "job_files",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("file_id", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "file_id", name="pk_job_files"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_files_job_id", ondelete="CASCADE"),
    )
    op.create_index("ix_job_files_file_id", "job_files", ["file_id"])
    _find_files_of_jobs()
    op.create_table(
        "deletions",
        sa.Column("prefix", sa.String(300), nullable=False),
        sa.PrimaryKeyConstraint("prefix", name="pk_deletions"),
    )
    op.create_index("ix_files_created_at_id", "files", ["created_at", "id"])
    with op.batch_alter_table("job_attempts") as attempts:
        attempts.drop_constraint("fk_job_attempts_job_id", type_="foreignkey")
        attempts.add_column(sa.Column("queued_at", sa.DateTime(timezone=True)))
    op.execute(
        "UPDATE job_attempts SET queued_at = (SELECT created_at FROM jobs WHERE jobs.id = job_attempts.job_id) "
        "WHERE number = 1"
    )


def downgrade() -> None:
    op.execute("DELETE FROM job_attempts WHERE job_id NOT IN (SELECT id FROM jobs)")
    with op.batch_alter_table("job_attempts") as attempts:
        attempts.drop_column("queued_at")
        attempts.create_foreign_key("fk_job_attempts_job_id", "jobs", ["job_id"], ["id"], ondelete="CASCADE")
    op.drop_index("ix_files_created_at_id", "files")
    op.drop_table("deletions")
    op.drop_table("job_files")


def _find_files_of_jobs() -> None:
    connection = op.get_bind()
    for job_id, spec in connection.execute(sa.select(_JOBS.c.id, _JOBS.c.spec)).all():
        # Also of uploads that are no more: this may be an upgrade after a downgrade.
        named = {text for text in _texts(spec) if _FILE_ID.fullmatch(text)}
        rows = [{"job_id": job_id, "file_id": file_id} for file_id in sorted(named)]
        if rows:
            connection.execute(sa.insert(_JOB_FILES), rows)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _texts(child)
