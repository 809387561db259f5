"""Since when something may go from the store: uploads are noted before their bytes are there."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deletions", sa.Column("not_before", sa.DateTime(timezone=True)))


def downgrade() -> None:
    # Whatever is noted is due by that: no upload is under way, as the API is stopped.
    op.drop_column("deletions", "not_before")
