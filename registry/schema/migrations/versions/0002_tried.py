"""What a search for the method looked at is kept with the delta."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deltas", sa.Column("tried", sa.JSON(), server_default="[]", nullable=False))


def downgrade() -> None:
    op.drop_column("deltas", "tried")
