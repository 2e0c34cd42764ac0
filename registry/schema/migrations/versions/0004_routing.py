"""Routing statistics beside each signature, and routing confusions."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

PLACE = ("stream_id", "step", "delta_id", "routed_to_id")


def upgrade() -> None:
    """Add the column `signatures.routing` and the table `confusions`."""
    op.add_column("signatures", sa.Column("routing", sa.String(), nullable=True))
    op.create_table(
        "confusions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("stream_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("delta_id", sa.Integer(), nullable=False),
        sa.Column("routed_to_id", sa.Integer(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.CheckConstraint("rows > 0", name=op.f("ck_confusions_rows")),
        sa.ForeignKeyConstraint(["stream_id"], ["streams.id"], name=op.f("fk_confusions_stream_id_streams")),
        sa.ForeignKeyConstraint(["delta_id"], ["deltas.id"], name=op.f("fk_confusions_delta_id_deltas")),
        sa.ForeignKeyConstraint(["routed_to_id"], ["deltas.id"], name=op.f("fk_confusions_routed_to_id_deltas")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_confusions")),
        sa.UniqueConstraint(*PLACE, name=op.f(f"uq_confusions_{'_'.join(PLACE)}")),
    )
    for column in ("delta_id", "routed_to_id"):
        op.create_index(op.f(f"ix_confusions_{column}"), "confusions", [column], unique=False)
