"""A column of deltas for the candidates that a search over methods evaluated."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column `deltas.tried`."""
    op.add_column("deltas", sa.Column("tried", sa.JSON(), server_default="[]", nullable=False))


def downgrade() -> None:
    """Drop the column `deltas.tried`."""
    op.drop_column("deltas", "tried")
