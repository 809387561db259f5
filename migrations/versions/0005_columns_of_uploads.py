"""Which columns an upload's rows have, so that a job which names another is refused at once."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("files", sa.Column("columns", sa.JSON))


def downgrade() -> None:
    op.drop_column("files", "columns")
