"""Commits and names."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "journals",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("made", sa.String, nullable=False),
    )
    op.create_table(
        "commits",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("parent", sa.String, sa.ForeignKey("commits.id")),
        sa.Column("merged", sa.String, sa.ForeignKey("commits.id")),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("patch", sa.String, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("author", sa.String, nullable=False),
        sa.Column("time", sa.String, nullable=False),
        sa.Column("why", sa.String, nullable=False),
        sa.Column("model", sa.String),
        sa.Column("fingerprint", sa.String),
        sa.Column("made", sa.JSON, nullable=False),
        sa.Column("edits", sa.JSON, nullable=False),
        sa.Column("added", sa.JSON, nullable=False),
        sa.Column("scores", sa.JSON, nullable=False),
    )
    op.create_table(
        "names",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("target", sa.String),
        sa.Column("seal", sa.String, nullable=False),
    )


def downgrade() -> None:
    """Removes the tables, and all that is in them."""
    for name in ("names", "commits", "journals"):
        op.drop_table(name)
