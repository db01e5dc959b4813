"""Commits say with which review they were accepted, and how a revert or a merge was had."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns; of commits that were made before, they say nothing."""
    op.add_column("commits", sa.Column("review", sa.JSON))
    op.add_column("commits", sa.Column("how", sa.JSON))


def downgrade() -> None:
    """Removes the columns."""
    op.drop_column("commits", "how")
    op.drop_column("commits", "review")
