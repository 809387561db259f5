"""Attempts and how they ended, checkpoints, losses that count, and since when a job waits."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("losses", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("checkpoints", sa.JSON()))
    op.add_column("jobs", sa.Column("queued_at", sa.DateTime(timezone=True)))
    op.execute("UPDATE jobs SET queued_at = created_at")
    op.execute("UPDATE jobs SET losses = attempt - 1 WHERE attempt > 1")  # until now every attempt counted
    op.create_table(
        "job_attempts",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.String(16)),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_job_attempts"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_attempts_job_id", ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("job_attempts")
    for column in ("queued_at", "checkpoints", "losses"):
        op.drop_column("jobs", column)
